"""Pictures before they are coded: uint8 RGB, full range, `frames_THWC` (frames, height, width, 3).

`content_sha256` is the hash of the frames that were asked for: raw RGB, size and frame rate. Equal pictures have equal
content, whatever an encoder, a muxer or a signature made of them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cluster.errors import DamagedAsset, InvalidInput

Frames = np.ndarray[Any, np.dtype[np.uint8]]
PICTURES = ("PNG", "JPEG", "WEBP")
MAX_PICTURE_PIXELS = 24_000_000
"""Of a picture that somebody sends: 72 MB once it is decoded."""


class FrameHash:
    """`content_sha256` of frames that come in chunks; how they are cut into chunks does not matter."""

    def __init__(self, *, fps: Fraction, width_px: int, height_px: int) -> None:
        self._digest = hashlib.sha256(f"frames 1 rgb24 {width_px}x{height_px} {fps}\n".encode())

    def update(self, frames_THWC: Frames) -> None:
        self._digest.update(np.ascontiguousarray(frames_THWC).data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def content_sha256(chunks: Iterable[Frames], *, fps: Fraction) -> str:
    """The hash of the frames that were asked for (see the top of this module). Raises InvalidInput for no frames."""
    digest: FrameHash | None = None
    for frames_THWC in chunks:
        _, height_px, width_px, _ = checked(frames_THWC).shape
        digest = digest or FrameHash(fps=fps, width_px=width_px, height_px=height_px)
        digest.update(frames_THWC)
    if digest is None:
        raise InvalidInput("a clip has no frames", field="frames")
    return digest.hexdigest()


def poster(frame_HWC: Frames) -> bytes:
    """PNG of one frame."""
    buffer = io.BytesIO()
    Image.fromarray(frame_HWC).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def checked(frames_THWC: Frames) -> Frames:
    """`frames_THWC`, or InvalidInput."""
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise InvalidInput(
            f"frames are {frames_THWC.dtype} {frames_THWC.shape}, expected uint8 (frames, height, width, 3)",
            field="frames",
        )
    return frames_THWC


def yuv420p(frame_HWC: Frames) -> Frames:
    """BT.709 limited range, as PyAV lays the planes out: uint8 (height * 3 / 2, width).

    Coefficients are 16-bit fixed point of ITU-R BT.709-6 section 3; those of each chroma sum to 0, so greys stay grey.
    Chroma is filtered 1-2-1 across and averaged down, which sites it left of each pair of luma samples.
    """
    height_px, width_px, _ = frame_HWC.shape
    red, green, blue = np.moveaxis(frame_HWC.astype(np.int32), 2, 0)
    luma = (11966 * red + 40254 * green + 4064 * blue + (16 << 16) + 32768) >> 16

    pairs = frame_HWC[0::2].astype(np.int32) + frame_HWC[1::2]
    padded = np.concatenate([pairs[:, :1], pairs], axis=1)
    eighths = padded[:, 0:-1:2] + 2 * padded[:, 1::2] + padded[:, 2::2]
    red, green, blue = np.moveaxis(eighths, 2, 0)
    bias = (128 << 19) + (1 << 18)
    cb = (-6596 * red - 22189 * green + 28785 * blue + bias) >> 19
    cr = (28785 * red - 26145 * green - 2640 * blue + bias) >> 19
    planes = [plane.astype(np.uint8).ravel() for plane in (luma, cb, cr)]
    layout: Frames = np.concatenate(planes).reshape(height_px * 3 // 2, width_px)
    return layout


def fitted(data: bytes, *, width_px: int, height_px: int, field: str) -> bytes:
    """Somebody's picture as a PNG of this size: turned as its camera says, scaled to cover it, cut to its middle.

    Nothing else that came with it is kept. Raises InvalidInput for what is no PNG, JPEG or WebP, cannot be decoded
    whole, or unfolds to more than MAX_PICTURE_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=PICTURES)
        if opened.width * opened.height > MAX_PICTURE_PIXELS:
            raise InvalidInput(
                f"the picture has {opened.width} x {opened.height} pixels",
                field=field,
                remedy=f"use at most {MAX_PICTURE_PIXELS:,}",
            )
        turned = ImageOps.exif_transpose(opened)
        whole = _on_white(turned) if turned.has_transparency_data else turned.convert("RGB")
    except InvalidInput:
        raise
    except Exception as error:  # decoders of foreign bytes raise what they like
        raise InvalidInput(
            f"the picture cannot be read: {type(error).__name__}", field=field, remedy="send a PNG, JPEG or WebP"
        ) from error
    out = io.BytesIO()
    ImageOps.fit(whole, (width_px, height_px), Image.Resampling.LANCZOS).save(out, format="PNG")
    return out.getvalue()


def read_picture(path: Path) -> Frames:
    """A picture of our own, uint8 (height_px, width_px, 3). Raises DamagedAsset."""
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedAsset(f"{path.name} is no picture: {error}") from error


def _on_white(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    whole = Image.new("RGBA", layer.size, "white")
    whole.alpha_composite(layer)
    return whole.convert("RGB")
