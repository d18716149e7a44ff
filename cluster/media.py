"""Clips: H.264 in mp4 for browsers, from frames and back. Same frames, same bytes, on any number of cores.

Files are yuv420p, BT.709, limited range, tagged so. x264 runs in one thread and without macroblock trees, for
equal bytes; no wall clock is written.

Two hashes, two questions: `content_sha256` of a clip is of the frames that were asked for, before any coding (see
`cluster.frames`). `coded_sha256` of a file is of its coded pictures (each packet with its time), without the boxes
around them: it tells whether two files play the same, and it survives signing.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.error
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from cluster import disk
from cluster.errors import DamagedAsset, InvalidInput
from cluster.frames import FrameHash, Frames, checked, yuv420p
from cluster.frames import content_sha256 as content_sha256
from cluster.frames import poster as poster

MP4_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}
_X264_OPTIONS = {
    "crf": "16",
    "preset": "medium",
    "tune": "animation",  # flat papers and clean edges
    "profile": "high",
    "threads": "1",  # the output depends on their number
    "x264-params": "mbtree=0",  # its SIMD reads memory that nobody wrote: equal frames gave other bytes, 2 runs of 60
}
BITEXACT_FLAG = 1 << 23  # AV_CODEC_FLAG_BITEXACT


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFacts:
    """What a file says about itself. `fps` is a rational; `faststart`: it plays before it has been read to its end."""

    codec: str
    pix_fmt: str
    width_px: int
    height_px: int
    fps: Fraction
    num_frames: int
    duration_s: float
    faststart: bool
    has_sound: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    path: Path
    num_frames: int
    content_sha256: str


class ClipEncoder:
    """Frames to an mp4 file, chunk by chunk. `path` appears when `close` ends well, and never half-written.

    As a context manager: leaving the block closes, an exception in it aborts. Raises StoreFull, StoreUnavailable.
    """

    def __init__(self, path: Path, *, fps: Fraction, width_px: int, height_px: int) -> None:
        if width_px % 2 or height_px % 2 or min(width_px, height_px) < 16:
            raise InvalidInput(
                f"a clip of {width_px} x {height_px} cannot be coded", field="size", remedy="use even sizes from 16 up"
            )
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        self._fps, self._shape = Fraction(fps), (height_px, width_px, 3)
        self._hash = FrameHash(fps=self._fps, width_px=width_px, height_px=height_px)
        self._num_frames, self._open = 0, True
        with foreign_errors(path):
            self._container = av.open(str(self._part), "w", format="mp4", options=dict(MP4_OPTIONS))
            self._stream = self._container.add_stream("libx264", rate=self._fps, options=dict(_X264_OPTIONS))
        codec = self._stream.codec_context
        codec.width, codec.height, codec.pix_fmt = width_px, height_px, "yuv420p"
        codec.time_base = 1 / self._fps
        codec.gop_size = max(1, round(2 * self._fps))  # a key frame every two seconds, for seeking
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.flags |= BITEXACT_FLAG

    def push(self, frames_THWC: Frames) -> None:
        if checked(frames_THWC).shape[1:] != self._shape:
            raise InvalidInput(f"frames are {frames_THWC.shape[1:]}, the clip is {self._shape}", field="frames")
        self._hash.update(frames_THWC)
        for frame_HWC in frames_THWC:
            frame = av.VideoFrame.from_ndarray(yuv420p(frame_HWC), format="yuv420p")
            frame.pts, frame.time_base = self._num_frames, 1 / self._fps
            self._num_frames += 1
            with foreign_errors(self.path):
                self._container.mux(self._stream.encode(frame))

    def close(self) -> EncodedClip:
        """Flush and give the file its name. Raises InvalidInput if no frame was pushed."""
        if not self._num_frames:
            self.abort()
            raise InvalidInput("a clip has no frames", field="frames")
        self._open = False
        try:
            with foreign_errors(self.path):
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)
        return EncodedClip(path=self.path, num_frames=self._num_frames, content_sha256=self._hash.hexdigest())

    def abort(self) -> None:
        """Stop and leave nothing behind."""
        self._open = False
        try:
            self._container.close()
        except av.error.FFmpegError:
            pass  # a disk that is full says so once more
        finally:
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        elif self._open:
            self.close()


def encode_clip(path: Path, chunks: Iterable[Frames], *, fps: Fraction) -> EncodedClip:
    """All frames of `chunks` as an mp4 file."""
    encoder: ClipEncoder | None = None
    try:
        for frames_THWC in chunks:
            _, height_px, width_px, _ = checked(frames_THWC).shape
            encoder = encoder or ClipEncoder(path, fps=fps, width_px=width_px, height_px=height_px)
            encoder.push(frames_THWC)
    except BaseException:
        if encoder is not None:
            encoder.abort()
        raise
    if encoder is None:
        raise InvalidInput("a clip has no frames", field="frames")
    return encoder.close()


def probe(path: Path) -> ClipFacts:
    """Raises DamagedAsset if `path` is no clip."""
    with opened(path) as container:
        stream = container.streams.video[0]
        fps = stream.average_rate
        num_frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
        if not fps or not num_frames:
            raise DamagedAsset(f"{path.name} has no frames")
        return ClipFacts(
            codec=stream.codec_context.name,
            pix_fmt=stream.codec_context.pix_fmt or "",
            width_px=stream.codec_context.width,
            height_px=stream.codec_context.height,
            fps=Fraction(fps),
            num_frames=num_frames,
            duration_s=float(num_frames / Fraction(fps)),
            faststart=_moov_first(path),
            has_sound=bool(container.streams.audio),
        )


def read_frames(path: Path) -> Iterator[Frames]:
    """Frames in order, each uint8 (height, width, 3). Raises DamagedAsset."""
    with opened(path) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            tagged = Colorspace.ITU709 if int(frame.colorspace) in (1, 2) else int(frame.colorspace)  # 2 is untagged
            rgb: Frames = frame.reformat(
                format="rgb24",
                src_colorspace=tagged,
                src_color_range=int(frame.color_range) or ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
            ).to_ndarray()
            yield rgb


def coded_sha256(path: Path) -> str:
    """The hash of the coded pictures and sounds of a file (see the top of this module). Raises DamagedAsset."""
    digest = hashlib.sha256(b"coded 1\n")
    with opened(path) as container:
        for stream in container.streams:
            extra = stream.codec_context.extradata or b""
            digest.update(f"{stream.index} {stream.type} {stream.codec_context.name} {len(extra)}\n".encode() + extra)
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                at, lasts = packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base
                digest.update(f"{packet.stream_index} {at} {lasts} {packet.size}\n".encode() + bytes(packet))
    return digest.hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An input container with at least one picture stream. What cannot be read raises DamagedAsset."""
    try:
        container = av.open(str(path))
    except FileNotFoundError as error:
        raise DamagedAsset(f"{path.name} is not there") from error
    except av.error.FFmpegError as error:
        raise DamagedAsset(f"{path.name} is no clip: {error.strerror}") from error
    with container:
        if not container.streams.video:
            raise DamagedAsset(f"{path.name} has no pictures")
        try:
            yield container
        except av.error.FFmpegError as error:
            raise DamagedAsset(f"{path.name} is damaged: {error.strerror}") from error


@contextmanager
def foreign_errors(path: Path) -> Iterator[None]:
    """FFmpeg's errors while writing `path` become ours."""
    with disk.errors(path.parent):
        try:
            yield
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror) from error


def _moov_first(path: Path) -> bool:
    """Whether the index of an mp4 file stands before its pictures."""
    with path.open("rb") as reader:
        while len(header := reader.read(8)) == 8:
            size, kind = struct.unpack(">I4s", header)
            if kind in (b"moov", b"mdat"):
                return bool(kind == b"moov")
            if size == 1:
                size = struct.unpack(">Q", reader.read(8))[0] - 8
            if size < 8:
                return False
            reader.seek(size - 8, io.SEEK_CUR)
    return False
