"""A judge that tells what a clip shows: subject, hue, place and motion. Trained on drawn clips only, never on samples.

Shapes: B clips, K looked-at frames, 64 x 64 pixels. It sees pictures, not latents: frames as delivered, made smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.families.codecs.paper import PaperCodec
from pipelines.house.draw import draw
from pipelines.house.papers import HUE_PAPERS, PLACE_PAPERS
from pipelines.house.scenes import MOTIONS, NUM_FRAMES, Scene, random_scene
from pipelines.house.shapes import SUBJECTS

log = logging.getLogger(__name__)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "hue": tuple(HUE_PAPERS),
    "place": tuple(PLACE_PAPERS),
    "motion": MOTIONS,
}
LOOKED_AT = tuple(round(i) for i in np.linspace(0, NUM_FRAMES - 1, 8))
_PX = 64
_PAINT_PX = 128
_PART = 250


def look(pictures: Tensor) -> Tensor:
    """Pictures (K, 3, px, px) in [0, 1] -> what the judge sees: float16 (K, 3, 64, 64)."""
    return F.interpolate(pictures, size=(_PX, _PX), mode="area").half()


def answers(scene: Scene) -> Tensor:
    """The truth about a scene, as indices in the order of QUESTIONS."""
    facts = {"subject": scene.subject, "hue": scene.hue, "place": scene.place, "motion": scene.motion}
    return torch.tensor([QUESTIONS[name].index(facts[name]) for name in QUESTIONS])


def drawn_clips(
    codec_dir: Path, num: int, *, seed: int, through_codec: float = 0.5, workers: int = 2
) -> tuple[Tensor, Tensor]:
    """Fresh drawn clips as the judge sees them, a share of them through the codec and back: (clips, answers).

    Drawn by `workers` processes in parts of _PART clips, each with a seed of its own: the same for any number of them.
    """
    jobs = [(codec_dir, min(_PART, num - at), [seed, at], through_codec) for at in range(0, num, _PART)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_drawn_part, jobs))
    return torch.from_numpy(np.concatenate([clips for clips, _ in parts])), torch.from_numpy(
        np.concatenate([truth for _, truth in parts])
    )


def _drawn_part(job: tuple[Path, int, list[int], float]) -> tuple[np.ndarray, np.ndarray]:
    codec_dir, num, seed, through_codec = job
    torch.set_num_threads(1)  # pictures this small gain nothing from more
    codec: PaperCodec = PaperCodec.from_pretrained(codec_dir)
    rng = np.random.default_rng(seed)
    seen, truth = [], []
    with torch.inference_mode():
        for _ in range(num):
            scene = random_scene(rng)
            maps = draw(scene)
            place, hue = list(PLACE_PAPERS).index(scene.place), list(HUE_PAPERS).index(scene.hue)
            if rng.random() < through_codec:
                latents = codec.encode_maps(maps[None], torch.tensor([place]), torch.tensor([hue]))
                maps = codec.decode_linear(latents)[0]
            seen.append(look(codec.paint(maps[list(LOOKED_AT)], place, hue, px=_PAINT_PX)))
            truth.append(answers(scene))
    return torch.stack(seen).numpy(), torch.stack(truth).numpy()


class Judge(nn.Module):
    """Convolutions over each frame, then a look at all frames together."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.eye = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(96, 96, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(96 * 16, width),
            nn.GELU(),
        )
        self.over_time = nn.Sequential(nn.Linear(width * len(LOOKED_AT), 256), nn.GELU())
        self.heads = nn.ModuleDict({name: nn.Linear(width + 256, len(words)) for name, words in QUESTIONS.items()})

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Clips (B, K, 3, 64, 64) -> logits of each question."""
        each = self.eye((clips.flatten(0, 1).float() - 0.5) * 4).unflatten(0, clips.shape[:2])
        features = torch.cat([each.mean(1), self.over_time(each.flatten(1))], dim=1)
        return {name: head(features) for name, head in self.heads.items()}

    def verdicts(self, clips: Tensor) -> Tensor:
        """The answers, as indices in the order of QUESTIONS: (B, questions)."""
        with torch.inference_mode():
            parts = [
                torch.stack([logits.argmax(1) for logits in self(part).values()], 1) for part in torch.split(clips, 64)
            ]
        return torch.cat(parts)


def train_judge(clips: Tensor, truth: Tensor, *, epochs: int, seed: int, batch: int = 32) -> Judge:
    torch.manual_seed(seed)
    judge = Judge()
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    steps = epochs * (len(clips) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.15)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(clips), generator=generator)
        for picks in torch.split(order[: len(clips) // batch * batch], batch):
            seen = clips[picks].float()
            shift = int(torch.randint(-2, 3, (1,), generator=generator))
            seen = torch.roll(seen, shift, dims=-1) + 0.04 * torch.randn(seen.shape, generator=generator)
            logits = judge(seen)
            loss = sum(
                (
                    F.cross_entropy(logits[name], truth[picks, i], label_smoothing=0.02)
                    for i, name in enumerate(QUESTIONS)
                ),
                start=torch.zeros(()),
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        log.info("Judge, epoch %d of %d: loss %.3f", epoch + 1, epochs, total / (len(clips) // batch))
    return judge.eval()


def shares(verdicts: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of right answers by question."""
    right = (verdicts == truth).float().mean(0)
    return {name: float(right[i]) for i, name in enumerate(QUESTIONS)}


def confusions(verdicts: Tensor, truth: Tensor, question: str) -> Sequence[tuple[str, str, int]]:
    """Which answers were mistaken for which, most frequent first: (truth, verdict, times)."""
    i, words = list(QUESTIONS).index(question), QUESTIONS[question]
    found: dict[tuple[str, str], int] = {}
    for said, true in zip(verdicts[:, i].tolist(), truth[:, i].tolist(), strict=True):
        if said != true:
            key = (words[true], words[said])
            found[key] = found.get(key, 0) + 1
    return sorted(((true, said, times) for (true, said), times in found.items()), key=lambda row: -row[2])
