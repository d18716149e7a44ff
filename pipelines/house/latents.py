"""Fits the codec to drawn clips, and draws the training set as latents, in shards, once.

Usage: python -m pipelines.house.latents --out DIR [--num 20480] [--shard 512] [--part 0/2]
The first call fits the codec (DIR/vae); each part draws its share of the shards that are not there yet.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from actors.families.codecs.paper import CODE_CHANNELS, PaperCodec
from pipelines.house.captions import caption, prompt
from pipelines.house.draw import MAP_PX, draw
from pipelines.house.papers import HUE_PAPERS, NUM_BACKDROP_ROLES, PLACE_PAPERS, ROLES
from pipelines.house.scenes import training_scene

log = logging.getLogger(__name__)
_ROLE_WEIGHTS = {"glow": 1.0, "body": 1.5, "mark": 1.6, "light": 1.6}  # the subject is small and matters most
_STD_POWER = 0.5  # half whitened: coarse shapes stand out of the noise first, fine ones are still heard
_CODE_AMPLITUDE = 0.5
_FIT_SEED, _TRAIN_SEED = 11, 23
CAPTIONS_PER_CLIP = 4


def _rgb(text: str) -> list[int]:
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def new_codec(num_components: int) -> PaperCodec:
    """A codec with the palette of this house; its basis is still empty."""
    codec: PaperCodec = PaperCodec(
        roles=list(ROLES),
        role_weights=[_ROLE_WEIGHTS.get(role, 0.8) for role in ROLES],
        place_papers=[
            [[*_rgb(papers[role][0]), *_rgb(papers[role][1])] for role in ROLES[:NUM_BACKDROP_ROLES]]
            for papers in PLACE_PAPERS.values()
        ],
        hue_papers=[[_rgb(paper) for paper in papers] for papers in HUE_PAPERS.values()],
        map_px=MAP_PX,
        num_components=num_components,
    )
    return codec


def codec_with_refiner(codec: PaperCodec, width: int) -> PaperCodec:
    """The same codec with an untrained refiner, which changes nothing yet."""
    refined: PaperCodec = PaperCodec.from_config({**codec.config, "refine_width": width})
    refined.load_state_dict(codec.state_dict(), strict=False)
    return refined


def fit(codec: PaperCodec, *, num_clips: int, seed: int = _FIT_SEED) -> float:
    """Fits the basis to the patches of drawn clips. Returns the share of their variance that it misses."""
    rng = np.random.default_rng(seed)
    num_components = codec.config.num_components
    patches = torch.cat([codec.to_patches(draw(training_scene(rng))[None]).flatten(0, 3) for _ in range(num_clips)])
    center = patches.mean(0)
    patches -= center
    torch.manual_seed(seed)
    _, singular, basis = torch.svd_lowrank(patches, q=num_components + 64, niter=3)
    codec.center.copy_(center)
    codec.set_basis(basis[:, :num_components])
    std = singular[:num_components] / len(patches) ** 0.5
    scale = std**_STD_POWER
    scale *= (std / scale).pow(2).mean().sqrt()  # unit variance on average
    codec.latents_std[:-CODE_CHANNELS] = scale
    codec.latents_std[-CODE_CHANNELS:] = 1 / _CODE_AMPLITUDE
    return float(1 - singular[:num_components].pow(2).sum() / patches.pow(2).sum())


def normalise(codec: PaperCodec, latents: Tensor) -> Tensor:
    """(B, C, F, H, W) as the denoiser sees them; what diffusers' LTX pipeline calls `_normalize_latents`."""
    shape = (1, -1, 1, 1, 1)
    normal: Tensor = (latents - codec.latents_mean.view(shape)) / codec.latents_std.view(shape)
    return normal * float(codec.config.scaling_factor)


def draw_shard(codec: PaperCodec, *, index: int, num_clips: int) -> tuple[dict[str, Tensor], list[list[str]]]:
    """A shard of training clips: {"latents": float16 (N, C, F, H, W)} and CAPTIONS_PER_CLIP captions of each."""
    rng = np.random.default_rng([_TRAIN_SEED, index])
    latents, captions = [], []
    places, hues = list(PLACE_PAPERS), list(HUE_PAPERS)
    for _ in range(num_clips):
        scene = training_scene(rng)
        place, hue = torch.tensor([places.index(scene.place)]), torch.tensor([hues.index(scene.hue)])
        z = codec.encode_maps(draw(scene)[None], place, hue)
        latents.append(normalise(codec, z)[0].half())
        captions.append([prompt(scene), *(caption(scene, rng) for _ in range(CAPTIONS_PER_CLIP - 1))])
    return {"latents": torch.stack(latents)}, captions


def shard_paths(out: Path, index: int) -> tuple[Path, Path]:
    return out / f"clips-{index:04d}.safetensors", out / f"clips-{index:04d}.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=20480)
    parser.add_argument("--shard", type=int, default=512)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--components", type=int, default=378)
    parser.add_argument("--fit-clips", type=int, default=800)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "vae").exists():
        codec = PaperCodec.from_pretrained(args.out / "vae")
    else:
        codec = new_codec(args.components)
        with torch.no_grad():
            missed = fit(codec, num_clips=args.fit_clips)
        log.info("The codec misses %.2f %% of the variance", 100 * missed)
        codec.save_pretrained(args.out / "vae")
    part, parts = (int(x) for x in args.part.split("/"))
    for index in range(part, args.num // args.shard, parts):
        latents_path, captions_path = shard_paths(args.out, index)
        if latents_path.exists():
            continue
        with torch.no_grad():
            tensors, captions = draw_shard(codec, index=index, num_clips=args.shard)
        captions_path.write_text("\n".join("\t".join(each) for each in captions) + "\n", encoding="utf-8")
        partial = latents_path.with_suffix(".partial")
        save_file(tensors, partial)
        partial.rename(latents_path)
        log.info("Drew shard %d", index)


if __name__ == "__main__":
    main()
