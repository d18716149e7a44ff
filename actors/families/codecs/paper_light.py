"""How a stack of papers looks under the light of the stage, and how papers are told apart in a picture.

Roles of paper are numbered from back to front; the backdrop comes first, the subject's papers last. Pictures are
float32 in [0, 1], maps as in `paper`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 22.0  # of the step between two papers: about one pixel at 512
SHADOW = 0.38
SHADOW_GRID_PX = 128  # shadows are soft: they are made at this size
RIM_PX = 4  # at 512
RIM_COLOUR = (1.0, 0.985, 0.95)
LIP_PX = 3  # the lit upper edge of a paper, at 512
LIP_LIGHT = 0.10
_LOOK_EVERY = 6
_SHADES = (1.0, 0.85, 0.7)  # how dark a paper may look in a shadow when it is looked up


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """The colours of one place and one hue: (R, 3) at the top of the frame and at its bottom, backdrop first."""

    top: Tensor
    bottom: Tensor
    num_backdrop: int

    @classmethod
    def of(cls, place: list[list[int]], hue: list[list[int]]) -> Palette:
        """`place`: per backdrop role six bytes, colour at the top and at the bottom; `hue`: per role three bytes."""
        back = torch.tensor(place, dtype=torch.float32).view(-1, 2, 3) / 255
        front = torch.tensor(hue, dtype=torch.float32).view(-1, 1, 3).expand(-1, 2, 3) / 255
        both = torch.cat([back, front])
        return cls(top=both[:, 0], bottom=both[:, 1], num_backdrop=len(back))

    def colours(self, px: int) -> Tensor:
        """The colour of each role in each row: (R, 3, px, 1)."""
        slope = torch.linspace(0, 1, px).view(1, 1, px, 1)
        return self.top.view(-1, 3, 1, 1) * (1 - slope) + self.bottom.view(-1, 3, 1, 1) * slope


def paint(maps: Tensor, palette: Palette, px: int) -> Tensor:
    """Maps (T, R, map_px, map_px) of one clip -> pictures (T, 3, px, px); px is a multiple of SHADOW_GRID_PX."""
    num_back = palette.num_backdrop
    fine = F.interpolate(maps.float(), size=(px, px), mode="bicubic")
    cover = torch.softmax(fine * SHARPNESS, dim=1)
    shadow = _shadows(cover, num_back, px)
    colours = palette.colours(px)
    picture = torch.zeros(len(maps), 3, px, px)
    for role in range(cover.shape[1]):
        light = cover[:, role : role + 1]
        if role < num_back:
            light = light * (1 - SHADOW * shadow[:, role : role + 1])
        picture += light * colours[role]
    subject = cover[:, num_back:].sum(1, keepdim=True)
    rim = _rim(subject, px)
    picture = picture * (1 - rim) + rim * torch.tensor(RIM_COLOUR).view(1, 3, 1, 1)
    picture = picture + LIP_LIGHT * _lips(cover[:, :num_back], subject + rim, px)
    return (picture * grain(px)).clamp(0, 1)


def _shadows(cover: Tensor, num_back: int, px: int) -> Tensor:
    """The soft shadow on each backdrop role of all that lies nearer: (T, num_back, px, px)."""
    nearer = F.avg_pool2d(cover, px // SHADOW_GRID_PX).flip(1).cumsum(1).flip(1)[:, 1 : num_back + 1]
    shadow = F.pad(nearer, (2, 0, 3, 0), mode="replicate")[..., :SHADOW_GRID_PX, :SHADOW_GRID_PX]
    for _ in range(2):
        shadow = F.avg_pool2d(F.pad(shadow, (2, 2, 2, 2), mode="replicate"), (5, 1), stride=1)
        shadow = F.avg_pool2d(shadow, (1, 5), stride=1)  # in two passes: less than half the time of one
    return F.interpolate(shadow, size=(px, px), mode="bilinear")


def _rim(subject: Tensor, px: int) -> Tensor:
    """A subject is cut with a rim of white paper around it: (T, 1, px, px)."""
    half = max(1, px * RIM_PX // 512)
    wide = F.max_pool2d(subject, (2 * half + 1, 1), stride=1, padding=(half, 0))
    wide = F.max_pool2d(wide, (1, 2 * half + 1), stride=1, padding=(0, half))
    return F.avg_pool2d(wide - subject, 3, stride=1, padding=1) * (1 - subject)


def _lips(backdrop: Tensor, front: Tensor, px: int) -> Tensor:
    """Papers of the backdrop catch light on their upper edges: (T, 1, px, px)."""
    lip = max(1, px * LIP_PX // 512)
    depth = (backdrop * torch.arange(backdrop.shape[1]).view(1, -1, 1, 1)).sum(1, keepdim=True) * (1 - front)
    edge = (depth - F.pad(depth, (0, 0, lip, 0), mode="replicate")[..., :px, :]).clamp(0, 1)
    return edge * (1 - F.pad(front, (0, 0, lip, 0))[..., :px, :])


def grain(px: int) -> Tensor:
    """The fibre of the paper and the fall of the stage light: factors around 1, (px, px), always the same."""
    generator = torch.Generator().manual_seed(7)
    fibre = torch.zeros(1, 1, px, px)
    for step, strength in ((1, 0.012), (2, 0.012), (8, 0.008)):
        noise = torch.randn(1, 1, px // step, px // step, generator=generator)
        fibre += strength * F.interpolate(noise, size=(px, px), mode="bilinear")
    axis = torch.linspace(-1, 1, px)
    far_out = (axis[:, None] ** 2 + axis[None, :] ** 2) / 2
    return (1 + fibre[0, 0]) * (1.03 - 0.14 * far_out**1.5)


def recognise(pictures: Tensor, palettes: list[list[Palette]], map_px: int) -> tuple[Tensor, int, int]:
    """Pictures (T, 3, px, px) of one clip -> (maps (T, R, map_px, map_px), place, hue); `palettes[place][hue]`.

    Every point takes the role whose colour, lit or in shadow, is nearest; the place is the one that explains most
    points, the hue the one that explains the rest. Points of the rim have no role and are left to their neighbours.
    """
    px = 4 * map_px
    flat = F.interpolate(pictures, size=(px, px), mode="area") / grain(px)
    num_back = palettes[0][0].num_backdrop
    few = flat[::_LOOK_EVERY]  # enough to tell place and hue, which hold for the whole clip
    place = int(torch.stack([_misfit(few, row[0], 0, num_back).clamp(max=0.1).mean() for row in palettes]).argmin())
    strange = _misfit(few, palettes[place][0], 0, num_back) > 0.06
    fits = [_misfit(few, palette, num_back, len(palette.top))[strange].clamp(max=0.2) for palette in palettes[place]]
    hue = int(torch.stack([fit.mean() for fit in fits]).argmin())
    palette = palettes[place][hue]
    distances = torch.stack([_misfit(flat, palette, role, role + 1) for role in range(len(palette.top))], dim=1)
    to_rim = (flat - torch.tensor(RIM_COLOUR).view(1, 3, 1, 1)).abs().amax(1)
    role = distances.argmin(1)
    known = (to_rim > 0.05) | (role < num_back) | (distances.amin(1) < 0.02)
    one_hot = F.one_hot(role, len(palette.top)).permute(0, 3, 1, 2).float() * known[:, None]
    cover = F.avg_pool2d(one_hot, 4)
    return cover / cover.sum(1, keepdim=True).clamp(min=1e-3), place, hue


def _misfit(pictures: Tensor, palette: Palette, first: int, last: int) -> Tensor:
    """How far each point is from the nearest of the roles, in the worst channel: (T, px, px)."""
    colours = palette.colours(pictures.shape[-1])[first:last]
    distances = [
        (pictures - colour * shade).abs().amax(1)
        for colour in colours
        for shade in (_SHADES if last <= palette.num_backdrop else _SHADES[:1])
    ]
    return torch.stack(distances).amin(0)
