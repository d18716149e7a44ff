"""A small network that mends paper maps after linear decoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Refiner(nn.Module):
    """Convolutions over space and time, at half the resolution; adds its correction to its input.

    Trained on what the denoiser predicts, with the drawn maps as the answer: it mends both what the linear codec blurs
    and what the denoiser leaves ragged at the seams of its patches. Untrained it changes nothing.
    """

    def __init__(self, num_roles: int, width: int, num_blocks: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4 * num_roles, width, 3, padding=1)
        self.space = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(num_blocks))
        self.time = nn.ModuleList(nn.Conv2d(width, width, (3, 1), padding=(1, 0)) for _ in range(num_blocks))
        self.leave = nn.Conv2d(width, 4 * num_roles, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        if self.leave.bias is not None:
            nn.init.zeros_(self.leave.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, T, R, px, px) -> the same shape."""
        num_clips, num_frames = maps.shape[:2]
        x = F.pixel_unshuffle(maps.flatten(0, 1), 2).contiguous(memory_format=torch.channels_last)
        x = self.enter(x.to(self.enter.weight.dtype))
        for space, time in zip(self.space, self.time, strict=True):
            y = F.silu(space(F.silu(x)))
            y = y.view(num_clips, num_frames, *x.shape[1:]).transpose(1, 2).flatten(3)  # (B, C, T, pixels)
            y = time(y).view(num_clips, -1, num_frames, *x.shape[2:]).transpose(1, 2).flatten(0, 1)
            x = x + y
        correction: Tensor = F.pixel_shuffle(self.leave(F.silu(x)), 2)
        return maps + correction.view(maps.shape).to(maps.dtype)
