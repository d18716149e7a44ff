"""What a batch leaves in its directory: results.jsonl when all is over, submitted.jsonl from the first line on, clips/.

Both files are what a later run goes on from. A line of them that cannot be read counts as not written: the farm is
asked again, and answers with the same video.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.contract import Json
from cluster import disk
from cluster.errors import InvalidInput
from pipelines.batch.farm import Content, Refusal
from pipelines.batch.prompts import Flaw, Line

COMPLETED, REFUSED, GONE, BAD = "completed", "refused", "gone", "bad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How a line ended. `status` is the video's own, or refused (never a video), gone (deleted), bad (never sent)."""

    line: int
    id: str | None
    key: str | None
    status: str
    video_id: str | None = None
    model: str | None = None
    seed: int | None = None
    seconds: float | None = None  # of the clip
    accelerator_seconds: float | None = None
    cost_usd: str | None = None
    error: Json | None = None  # code, message, param
    files: tuple[Json, ...] = ()

    @property
    def made(self) -> bool:
        return self.status == COMPLETED and self.error is None


def of_video(line: Line, video: Json, got: Content | Refusal | None, *, path: str | None) -> Result:
    """`got` is its clip, at `path` if it was downloaded; None for a video that has none."""
    usage, error = video.get("usage") or {}, video.get("error")
    if error is not None:
        error = {"code": error.get("code"), "message": error.get("message"), "param": None}
    elif isinstance(got, Refusal):
        error = _error(got)
    elif video["status"] != COMPLETED:
        error = {"code": video["status"], "message": f"the video was {video['status']}", "param": None}
    files: tuple[Json, ...] = ()
    if isinstance(got, Content):
        files = ({"name": "clip.mp4", "path": path, "url": f"/v1/videos/{video['id']}/content", **asdict(got)},)
    return Result(
        line=line.number,
        id=line.id,
        key=line.key,
        status=video["status"],
        video_id=video["id"],
        model=video.get("model"),
        seed=video.get("seed"),
        seconds=usage.get("duration_seconds"),
        accelerator_seconds=usage.get("accelerator_seconds"),
        cost_usd=(video.get("cost") or {}).get("amount"),
        error=error,
        files=files,
    )


def of_refusal(line: Line, refusal: Refusal, *, status: str, video_id: str | None = None) -> Result:
    return Result(
        line=line.number, id=line.id, key=line.key, status=status, video_id=video_id, error=_error(refusal)
    )  # fmt: skip


def of_flaw(flaw: Flaw) -> Result:
    error = {"code": flaw.code, "message": flaw.message, "param": flaw.field}
    return Result(line=flaw.number, id=flaw.id, key=None, status=BAD, error=error)


def _error(refusal: Refusal) -> Json:
    return {"code": refusal.code, "message": refusal.message, "param": refusal.field}


class Folder:
    """The directory of a batch."""

    def __init__(self, path: Path) -> None:
        """Makes it, and sees that it can be written before anything is paid for. Raises InvalidInput."""
        self.path, self.clips = path, path / "clips"
        self.results, self._submitted = path / "results.jsonl", path / "submitted.jsonl"
        try:
            self.clips.mkdir(parents=True, exist_ok=True)
            self._submitted.open("ab").close()
        except OSError as error:
            raise InvalidInput(
                f"--output {path} cannot be written: {error.strerror}",
                field="--output",
                remedy="choose a directory that you may write to",
            ) from error

    def clip_of(self, line: Line, video_id: str) -> Path:
        return self.clips / f"{line.id or video_id}.mp4"

    def submitted(self, farm_url: str) -> dict[str, str]:
        """Ids of the videos of this farm, by the keys of their lines."""
        found = {}
        for row in _rows(self._submitted):
            if row.get("farm") == farm_url and isinstance(row.get("key"), str) and isinstance(row.get("video_id"), str):
                found[row["key"]] = row["video_id"]
        return found

    def note(self, farm_url: str, line: Line, video_id: str) -> None:
        """Before anything else is done with the video: a run that dies later goes on from here."""
        row = json.dumps({"key": line.key, "video_id": video_id, "farm": farm_url})
        with disk.errors(self.path), self._submitted.open("ab") as file:
            file.write(f"{row}\n".encode())

    def done(self, lines: Iterable[Line], *, downloaded: bool) -> dict[str, Result]:
        """What an earlier run has finished, by key, if the clips are there still, byte for byte."""
        rows = {row["key"]: row for row in _rows(self.results) if isinstance(row.get("key"), str)}
        found = {}
        for line in lines:
            row = rows.get(line.key)
            result = None if row is None else _result(row, line)
            if result is not None and result.made and (not downloaded or self._has(result.files)):
                found[line.key] = result
        return found

    def _has(self, files: Iterable[Mapping[str, Any]]) -> bool:
        try:
            return all(disk.sha256_of(self.path / file["path"]) == file["sha256"] for file in files)
        except (OSError, KeyError, TypeError):
            return False

    def write(self, results: Iterable[Result]) -> None:
        """All of them, in the order of the input, in one piece. Raises StoreFull, StoreUnavailable."""
        ordered = sorted(results, key=lambda result: result.line)
        text = "".join(json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in ordered)
        with disk.errors(self.path), disk.whole_file(self.results) as part:
            part.write_text(text, encoding="utf-8")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for raw in content.split(b"\n"):
        try:
            row = json.loads(raw)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _result(row: dict[str, Any], line: Line) -> Result | None:
    """Of an earlier run; the line may stand somewhere else in the file by now."""
    try:
        return Result(**{**row, "line": line.number, "files": tuple(row["files"])})
    except (TypeError, KeyError):
        return None
