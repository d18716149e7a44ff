"""Trains the codec's refiner: python -m pipelines.house.refine --weights DIR --out DIR [--minutes 17] [--resume]

The denoiser is frozen. Drawn clips are encoded, noised a little (most of the structure survives), predicted clean by
the denoiser, and decoded; the refiner learns to turn that into the maps that were drawn. So it mends both what the
linear codec cannot say and what this denoiser leaves ragged at the seams of its patches.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actors.families import ltx
from actors.families.codecs.paper import PaperCodec
from actors.families.codecs.refiner import Refiner
from pipelines.house.captions import caption
from pipelines.house.draw import draw
from pipelines.house.latents import codec_with_refiner, normalise
from pipelines.house.papers import HUE_PAPERS, PLACE_PAPERS, ROLES
from pipelines.house.scenes import training_scene

log = logging.getLogger(__name__)
_SEED = 41
_MAX_SIGMA = 0.6
_WINDOW_FRAMES = 12
_WORTH = {"body": 1.6, "mark": 1.8, "light": 1.8}  # of an error, by role; 0.75 for the backdrop


def predicted_maps(
    family: ltx.LtxFamily, codec: PaperCodec, rng: np.random.Generator, num: int
) -> tuple[Tensor, Tensor]:
    """(what the linear codec decodes of the prediction, what was drawn): (num, _WINDOW_FRAMES, R, px, px)."""
    scenes = [training_scene(rng) for _ in range(num)]
    drawn = torch.stack([draw(scene) for scene in scenes])
    places = torch.tensor([list(PLACE_PAPERS).index(scene.place) for scene in scenes])
    hues = torch.tensor([list(HUE_PAPERS).index(scene.hue) for scene in scenes])
    clean = normalise(codec, codec.encode_maps(drawn, places, hues))
    sigma = torch.from_numpy(rng.random(num, dtype=np.float32)) * _MAX_SIGMA
    level = sigma.view(-1, 1, 1, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    guess = family.predict((1 - level) * clean + level * noise, sigma, [caption(scene, rng) for scene in scenes])
    guess[: num // 4] = clean[: num // 4]  # the codec alone, too
    blurred = codec.decode_linear(guess * codec.latents_std.view(1, -1, 1, 1, 1))
    at = int(rng.integers(drawn.shape[1] - _WINDOW_FRAMES + 1))  # half a clip teaches as much as a whole one
    return blurred[:, at : at + _WINDOW_FRAMES], drawn[:, at : at + _WINDOW_FRAMES]


def train(
    refiner: Refiner, family: ltx.LtxFamily, codec: PaperCodec, *, minutes: float, batch: int, seed: int
) -> float:
    """Trains in place. Returns the last mean error."""
    rng = np.random.default_rng(seed)
    masters = {name: p.detach().clone() for name, p in refiner.named_parameters()}
    refiner.to(torch.bfloat16)
    optimiser = torch.optim.AdamW(list(masters.values()), lr=3e-3, betas=(0.9, 0.98), weight_decay=1e-3)
    worth = torch.tensor([_WORTH.get(role, 0.75) for role in ROLES]).view(1, 1, -1, 1, 1)
    params = dict(refiner.named_parameters())
    began = last_log = time.monotonic()
    errors: list[tuple[float, float]] = []
    step, mean = 0, 0.0
    while (share := (time.monotonic() - began) / 60 / minutes) < 1:
        with torch.no_grad():
            blurred, drawn = predicted_maps(family, codec, rng, batch)
        mended = refiner(blurred)
        loss = ((mended - drawn).abs() * worth).mean()
        loss.backward()
        for name, master in masters.items():
            grad = params[name].grad
            master.grad = None if grad is None else grad.float()
            params[name].grad = None
        nn.utils.clip_grad_norm_(list(masters.values()), 1.0)
        rate = 3e-3 * min(1.0, (step + 1) / 30, (1 - share) / 0.5)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        with torch.no_grad():
            for name, master in masters.items():
                params[name].copy_(master)
        step += 1
        errors.append((float(loss.detach()), float(((blurred - drawn).abs() * worth).mean())))
        if time.monotonic() - last_log > 20:
            mean, before = (sum(each) / len(errors) for each in zip(*errors, strict=True))
            log.info("step %d  clips %d  error %.4f  without the refiner %.4f", step, step * batch, mean, before)
            last_log, errors = time.monotonic(), []
    refiner.float()
    with torch.no_grad():
        for name, master in masters.items():
            dict(refiner.named_parameters())[name].copy_(master)
    return mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=17)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--seed", type=int, default=_SEED)
    parser.add_argument("--resume", action="store_true", help="go on from OUT")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    family = ltx.load(args.weights, device="cpu", dtype="bfloat16", num_threads=torch.get_num_threads())
    codec = family.vae
    if args.resume:
        refined = PaperCodec.from_pretrained(args.out)
    else:
        refined = codec_with_refiner(codec, args.width)
    assert refined.refiner is not None
    refined.refiner.train()
    train(refined.refiner, family, codec, minutes=args.minutes, batch=args.batch, seed=args.seed)
    refined.save_pretrained(args.out)


if __name__ == "__main__":
    main()
