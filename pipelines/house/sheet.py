"""A sheet of samples while the model trains: a row of scenes never trained on, three frames of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipelines.house.captions import prompt
from pipelines.house.papers import PLACE_PAPERS
from pipelines.house.scenes import MOTIONS, Scene, held_out_scenes
from pipelines.house.shapes import SUBJECTS
from pipelines.house.text import MAX_WORDS

if TYPE_CHECKING:
    from pipelines.house.train import Net, Trainer

_FRAMES = (2, 12, 22)
_TILE_PX = 160


def _varied_scenes() -> list[Scene]:
    """One per subject, every motion and every place at least once, all held out."""
    scenes = held_out_scenes(400, seed=2)
    chosen: list[Scene] = []
    for i, subject in enumerate(SUBJECTS):
        place, motion = list(PLACE_PAPERS)[i % len(PLACE_PAPERS)], MOTIONS[i % len(MOTIONS)]
        ranked = sorted(
            (scene for scene in scenes if scene.subject == subject),
            key=lambda scene: (scene.motion == motion) + (scene.place == place),
            reverse=True,
        )
        chosen.append(ranked[0])
    return chosen


def sample(net: Net, trainer: Trainer, prompts: list[str], *, num_steps: int, guidance: float, seed: int) -> Tensor:
    """Clean latents (B, C, F, H, W), normalised; Euler steps along the flow with classifier-free guidance."""
    words = trainer.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=MAX_WORDS, return_tensors="pt"
    ).input_ids
    words = torch.cat([words, trainer.empty_words().expand(len(prompts), -1)]).to(trainer.device)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts), *trainer.clips.latents[0].shape[1:])
    x = torch.randn(shape, generator=generator).to(trainer.device)
    u = torch.linspace(1, 0, num_steps + 1)
    sigmas = 2.0 * u / (1 + u)
    for now, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        level = torch.full((2 * len(prompts),), now, device=trainer.device)
        clean, free = net(torch.cat([x, x]), trainer.positions, level, words, trainer.rope).chunk(2)
        clean = free + guidance * (clean - free)
        x = clean + (x - clean) * (after / now)
    return x


def draw_sheet(net: Net, trainer: Trainer, path: Path) -> None:
    scenes = _varied_scenes()
    latents = sample(net, trainer, [prompt(scene) for scene in scenes], num_steps=12, guidance=2.0, seed=1).cpu()
    codec = trainer.codec
    raw = latents * codec.latents_std.view(1, -1, 1, 1, 1)
    maps, places, hues = codec.decode_maps(raw)
    tiles = []
    for i in range(len(scenes)):
        frames = codec.paint(maps[i, list(_FRAMES)], int(places[i]), int(hues[i]))
        frames = F.interpolate(frames, size=(_TILE_PX, _TILE_PX), mode="area")
        tiles.append(torch.cat(list(frames), dim=2))
    columns = [torch.cat(tiles[i::2], dim=1) for i in range(2)]
    picture = torch.cat(columns, dim=2).permute(1, 2, 0).mul(255).byte().numpy()
    Image.fromarray(picture).save(path)
