"""The codec of the house model: frames as stacks of coloured papers, papers as few numbers per patch, and back.

Shapes: B batch, T frames, R roles of paper, C latent channels, F H W the latent grid, P position features.
Maps are (B, T, R, map_px, map_px): how much of each paper covers each point, in [0, 1].

What a frame shows is split in two: the *maps* are the shape, the *codes* say of which place and of which hue the papers
are (the colour; one of each a clip). Maps are projected on the principal components of their patches; codes ride along
as three numbers each, a corner of a cube. Decoding snaps both: at each point of the large picture the paper with the
most cover wins, with a soft step of one pixel, and its colour comes from a palette. So what is left of blur or noise
in a latent vanishes instead of showing. How the papers are lit is the business of `paper_light`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from actors.families.codecs.paper_light import Palette, paint, recognise
from actors.families.codecs.refiner import Refiner

CODE_CHANNELS = 6  # place, then hue: a corner of a cube each
_CORNERS = [[1.0 if i >> bit & 1 else -1.0 for bit in range(3)] for i in range(8)]
_CHUNK_FRAMES = 4
_TIME_FEATURES = 2


class PaperCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Stands where diffusers' LTX pipeline has its VAE, and has the attributes that the pipeline reads."""

    decode_dtype = torch.float32  # maps are few; half precision would show at edges
    config: Any

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        roles: list[str],
        role_weights: list[float],
        place_papers: list[list[list[int]]],
        hue_papers: list[list[list[int]]],
        map_px: int = 64,
        out_px: int = 512,
        patch_frames: int = 24,
        patch_px: int = 8,
        num_components: int = 378,
        refine_width: int = 0,
        position_channels: int = 16,
        scaling_factor: float = 1.0,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.spatial_compression_ratio = patch_px * out_px // map_px
        self.temporal_compression_ratio = patch_frames
        self.latent_channels = num_components + CODE_CHANNELS
        patch_size = (len(roles) - 1) * patch_frames * patch_px * patch_px  # the first role is what the others leave
        # Orthonormal columns, as bytes with a scale each: half the size of float16 for half a percent of noise.
        self.register_buffer("basis_bytes", torch.zeros(patch_size, num_components, dtype=torch.int8))
        self.register_buffer("basis_scale", torch.ones(num_components))
        self.register_buffer("center", torch.zeros(patch_size))
        self.register_buffer("latents_mean", torch.zeros(self.latent_channels))
        self.register_buffer("latents_std", torch.ones(self.latent_channels))
        self.refiner = Refiner(len(roles), refine_width) if refine_width else None

    @cached_property
    def basis(self) -> Tensor:
        """The principal components, float32 (patch, num_components)."""
        basis: Tensor = self.basis_bytes.float() * self.basis_scale.float()
        return basis

    def set_basis(self, basis: Tensor) -> None:
        scale = basis.abs().amax(0) / 127
        self.basis_bytes.copy_((basis / scale).round().to(torch.int8))
        self.basis_scale.copy_(scale)
        self.__dict__.pop("basis", None)

    @cached_property
    def palettes(self) -> list[list[Palette]]:
        return [[Palette.of(place, hue) for hue in self.config.hue_papers] for place in self.config.place_papers]

    def _weights(self) -> Tensor:
        return torch.tensor(self.config.role_weights[1:]).view(1, 1, -1, 1, 1)

    def to_patches(self, maps: Tensor) -> Tensor:
        """Maps -> (B, F, H, W, patch), weighted by role, without the first role."""
        c = self.config
        x = maps[:, :, 1:] * self._weights()
        n = c.map_px // c.patch_px
        x = x.reshape(len(maps), -1, c.patch_frames, len(c.roles) - 1, n, c.patch_px, n, c.patch_px)
        return x.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4)

    def from_patches(self, patches: Tensor) -> Tensor:
        """The inverse of `to_patches`, with the first role filled in."""
        c = self.config
        b, f, n, m, _ = patches.shape
        x = patches.view(b, f, n, m, len(c.roles) - 1, c.patch_frames, c.patch_px, c.patch_px)
        x = x.permute(0, 1, 5, 4, 2, 6, 3, 7).reshape(b, f * c.patch_frames, -1, n * c.patch_px, m * c.patch_px)
        x = x / self._weights()
        return torch.cat([1 - x.sum(2, keepdim=True), x], dim=2)

    def encode_maps(self, maps: Tensor, places: Tensor, hues: Tensor) -> Tensor:
        """Maps with their places and hues (B,), as indices -> latents (B, C, F, H, W), not normalised."""
        z = (self.to_patches(maps) - self.center) @ self.basis
        corners = torch.tensor(_CORNERS)
        codes = torch.cat([corners[places], corners[hues]], dim=1)
        codes = codes[:, None, None, None].expand(*z.shape[:4], CODE_CHANNELS)
        return torch.cat([z, codes], dim=4).permute(0, 4, 1, 2, 3)

    def decode_linear(self, latents: Tensor) -> Tensor:
        """Latents (B, C, F, H, W), not normalised -> maps, as the principal components alone say."""
        z = latents[:, :-CODE_CHANNELS].permute(0, 2, 3, 4, 1)
        return self.from_patches(z @ self.basis.T + self.center)

    def decode_maps(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, C, F, H, W), not normalised -> maps, places (B,), hues (B,)."""
        codes = latents[:, -CODE_CHANNELS:].mean(dim=(2, 3, 4))
        corners = torch.tensor(_CORNERS)
        places = (codes[:, :3] @ corners[: len(self.config.place_papers)].T).argmax(1)
        hues = (codes[:, 3:] @ corners[: len(self.config.hue_papers)].T).argmax(1)
        maps = self.decode_linear(latents)
        if self.refiner is not None:
            maps = self.refiner(maps)
        return maps, places, hues

    def paint(self, maps: Tensor, place: int, hue: int, *, px: int = 0) -> Tensor:
        """Maps (T, R, map_px, map_px) of one clip -> pictures (T, 3, px, px) in [0, 1]; px is out_px unless told."""
        return paint(maps, self.palettes[place][hue], px or self.config.out_px)

    def encode(self, frames: Tensor) -> Tensor:
        """Pictures (B, 3, T, px, px) in [-1, 1] -> latents (B, C, F, H, W), not normalised."""
        found = [recognise(clip.permute(1, 0, 2, 3) / 2 + 0.5, self.palettes, self.config.map_px) for clip in frames]
        maps, places, hues = zip(*found, strict=True)
        return self.encode_maps(torch.stack(maps), torch.tensor(places), torch.tensor(hues))

    def decode_frames(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents of one clip (1, C, F, H, W), not normalised -> chunks of pictures (t, 3, out_px, out_px)."""
        with torch.inference_mode():
            maps, places, hues = self.decode_maps(latents.float())
        for at in range(0, maps.shape[1], _CHUNK_FRAMES):
            with torch.inference_mode():
                chunk = self.paint(maps[0, at : at + _CHUNK_FRAMES], int(places[0]), int(hues[0]))
            yield chunk

    def decode(
        self, latents: Tensor, timestep: Tensor | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, F, H, W), not normalised -> pictures (B, 3, T, out_px, out_px) in [-1, 1]."""
        clips = [torch.cat(list(self.decode_frames(z[None]))) for z in latents]
        sample = torch.stack(clips).permute(0, 2, 1, 3, 4) * 2 - 1
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def position_features(self, num_frames: int, height: int, width: int) -> Tensor:
        """Where each token of the grid lies, as cosines: float32 (F * H * W, P).

        Rotary embeddings tell a transformer only how far tokens lie apart; with pure noise as content it has no other
        way to know which one is the corner.
        """
        side = (self.config.position_channels - _TIME_FEATURES) // 2

        def cosines(size: int, count: int) -> Tensor:
            at = (torch.arange(size, dtype=torch.float32) + 0.5) / size
            return torch.cos(torch.pi * at[:, None] * torch.arange(1, count + 1))

        grid = (num_frames, height, width)
        parts = [
            cosines(num_frames, _TIME_FEATURES)[:, None, None].expand(*grid, _TIME_FEATURES),
            cosines(height, side)[None, :, None].expand(*grid, side),
            cosines(width, side)[None, None, :].expand(*grid, side),
        ]
        return torch.cat(parts, dim=-1).flatten(0, 2)
