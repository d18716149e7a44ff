"""Does the model draw what the caption says? python -m pipelines.house.evaluate [--weights DIR] [--num 224] [--out DIR]

Captions of combinations that training never saw; a judge trained on drawn clips says what it sees in the decoded
frames. Printed first: how well the judge does on fresh drawn clips. OUT gets evaluation.json and a sheet of samples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.contract import Quality, ShotSpec
from actors.families import ltx
from pipelines.house.captions import prompt
from pipelines.house.judge import (
    LOOKED_AT,
    QUESTIONS,
    Judge,
    answers,
    confusions,
    drawn_clips,
    look,
    shares,
    train_judge,
)
from pipelines.house.scenes import NUM_FRAMES, Scene, held_out_scenes

WEIGHTS = Path(__file__).parent / "weights"
GOALS = {"subject": 0.80, "hue": 0.90, "place": 0.90, "motion": 0.70}  # of a model trained on two cores
JUDGE_GOAL = 0.97
_TRAIN_CLIPS, _FRESH_CLIPS, _EPOCHS = 4000, 500, 7
_SHEET = (6, 8)  # columns, rows
log = logging.getLogger(__name__)


def spec_of(scene: Scene, *, seed: int, steps: int, guidance: float) -> ShotSpec:
    return ShotSpec(
        prompt=prompt(scene),
        num_frames=NUM_FRAMES,
        fps=Fraction(12),
        width_px=512,
        height_px=512,
        num_steps=steps,
        guidance_scale=guidance,
        seed=seed,
        quality=Quality.STANDARD,
    )


@torch.inference_mode()
def sample(
    family: ltx.LtxFamily, scenes: list[Scene], *, steps: int, guidance: float, batch: int = 16
) -> tuple[Tensor, Tensor]:
    """(clips as the judge sees them, the middle frames as (N, 3, 128, 128)); the seed of a scene is its number."""
    seen, middles = [], []
    for at in range(0, len(scenes), batch):
        specs = [
            spec_of(scene, seed=at + i, steps=steps, guidance=guidance)
            for i, scene in enumerate(scenes[at : at + batch])
        ]
        states = [family.start(spec, given) for spec, given in zip(specs, family.encode(specs), strict=True)]
        for _ in range(steps):
            family.step(states)
        for state in states:
            # The frames that `decode` delivers, of which only those that the judge looks at are painted.
            maps, places, hues = family.vae.decode_maps(family.latents(state))
            pictures = family.vae.paint(maps[0, list(LOOKED_AT)], int(places[0]), int(hues[0]))
            seen.append(look(pictures))
            middles.append(F.interpolate(pictures[len(LOOKED_AT) // 2, None], size=(128, 128), mode="area")[0])
    return torch.stack(seen), torch.stack(middles)


def _judge(out: Path, vae: Path, *, workers: int) -> Judge:
    """Trained, or the one that lies in `out` since the last time, if nothing that it was made from has changed."""
    made_from = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), *vae.iterdir()]):
        made_from.update(path.read_bytes())
    path = out / f"judge-{made_from.hexdigest()[:16]}.safetensors"
    judge = Judge()
    if path.exists():
        judge.load_state_dict(load_file(path))
        return judge.eval()
    judge = train_judge(*drawn_clips(vae, _TRAIN_CLIPS, seed=101, workers=workers), epochs=_EPOCHS, seed=3)
    save_file(judge.state_dict(), path)
    return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path("house-eval"))
    parser.add_argument("--num", type=int, default=224)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    family = ltx.load(args.weights, device="cpu", dtype="float32", num_threads=args.threads)
    vae = args.weights / "vae"
    judge = _judge(args.out, vae, workers=args.threads)
    fresh, fresh_truth = drawn_clips(vae, _FRESH_CLIPS, seed=102, through_codec=0.0, workers=args.threads)
    own = shares(judge.verdicts(fresh), fresh_truth)
    print(f"The judge on {_FRESH_CLIPS} fresh drawn clips (97 % or better in each to be worth hearing):")
    print("  " + "  ".join(f"{name} {share:.1%}" for name, share in own.items()), flush=True)
    judge_s = time.monotonic() - began

    scenes = held_out_scenes(args.num, seed=7)
    seen, middles = sample(family, scenes, steps=args.steps, guidance=args.guidance)
    truth = torch.stack([answers(scene) for scene in scenes])
    verdicts = judge.verdicts(seen)
    found = shares(verdicts, truth)
    print(
        f"The model on {args.num} combinations never seen in training, {args.steps} steps, guidance {args.guidance:g}:"
    )
    for name in QUESTIONS:
        mistakes = ", ".join(
            f"{true} as {said} x{times}" for true, said, times in confusions(verdicts, truth, name)[:4]
        )
        mark = "met" if found[name] >= GOALS[name] else "MISSED"
        print(f"  {name:8} {found[name]:6.1%}  goal {GOALS[name]:.0%} {mark}   {mistakes}")
    result = {
        "judge": own,
        "model": found,
        "goals": GOALS,
        "num": args.num,
        "steps": args.steps,
        "guidance": args.guidance,
        "weights": family.weights,
        "judge_s": round(judge_s, 1),
        "wall_s": round(time.monotonic() - began, 1),
    }
    (args.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    columns, rows = _SHEET
    tiles = middles[: columns * rows]
    sheet = torch.cat([torch.cat(list(row), dim=2) for row in torch.split(tiles, columns)], dim=1)
    Image.fromarray(sheet.permute(1, 2, 0).mul(255).byte().numpy()).save(args.out / "samples.png")
    print(f"{result['wall_s']:.0f} s; see {args.out / 'evaluation.json'} and {args.out / 'samples.png'}")
    if min(own.values()) < JUDGE_GOAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
