"""Finished files into the directory that a person named, each whole or not there, the manifest last."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster import disk
from cluster.errors import InvalidInput, NotFound, StoreFull

LAST = "manifest.json"


def check_out_dir(out_dir: Path) -> None:
    """Make `out_dir` and see that it can be written, before anything is paid for. Raises InvalidInput, StoreFull."""
    with _named(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir) as probe:
            probe.write(b"\0" * 4096)


def deliver(files: Mapping[str, Path | bytes], out_dir: Path) -> tuple[Path, ...]:
    """Put `files` (name -> path or bytes) into `out_dir`. A directory with a manifest holds a complete film.

    All are written under temporary names first, so a disk that is too small is noticed before an older film is touched.
    Raises InvalidInput naming --out, StoreFull.
    """
    for name in files:
        if name != Path(name).name or name.startswith("."):
            raise InvalidInput(f"{name!r} is not a plain file name", field="files")
    names = sorted(files, key=lambda name: (name == LAST, name))
    with _named(out_dir), ExitStack() as cleanup:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (out_dir / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a directory there")
        written = {name: _written(files[name], out_dir, name, cleanup) for name in names}
        (out_dir / LAST).unlink(missing_ok=True)  # of an older film: it does not describe what comes now
        for name in names:
            os.replace(written[name], out_dir / name)
        disk.flush_directory(out_dir)
    return tuple(out_dir / name for name in names)


def _written(source: Path | bytes, out_dir: Path, name: str, cleanup: ExitStack) -> Path:
    descriptor, path = tempfile.mkstemp(dir=out_dir, prefix=".", suffix=f".{name}.part")
    temporary = Path(path)
    cleanup.callback(temporary.unlink, missing_ok=True)
    with os.fdopen(descriptor, "wb") as writer:
        if isinstance(source, bytes):
            writer.write(source)
        else:
            if not source.is_file():
                raise NotFound(f"{name} has not been made")
            with source.open("rb") as reader:
                disk.copy(reader, writer)
        writer.flush()
        os.fchmod(writer.fileno(), 0o644)
        os.fsync(writer.fileno())
    return temporary


@contextmanager
def _named(out_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in disk.NO_SPACE:
            raise StoreFull(
                f"no space left for --out {out_dir}", field="--out", remedy="make room or choose another directory"
            ) from error
        raise InvalidInput(
            f"--out {out_dir} cannot be written: {error.strerror or error}",
            field="--out",
            remedy="choose a directory that you may write to",
        ) from error
