"""A farm that is elsewhere, with the methods of a private one: the job is its own, the files end up here.

from serve.distant import RemoteFarm

with RemoteFarm.of(settings) as farm:
    film = farm.render("A red boat crosses the sea at night", shots=4, seed=7, out="film")
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx

from actors.contract import Json
from cluster.clock import SystemClock
from cluster.errors import DamagedAsset, FarmError, RateLimited, StoreFull, Unavailable
from cluster.settings import Settings
from pipelines.delivery import check_out_dir, deliver
from pipelines.recipes.film import DEFAULT_SEED
from serve.finished import RESULTS, Finished, why_not
from serve.followed import Followed
from serve.remote import Remote
from serve.remote_films import film_named
from serve.sse import frames
from serve.watch import OnUpdate, Update

SILENT_S = 45.0
"""A stream says at least every fifteen seconds that it is there."""
BACK_S = 2.0
AWAY_S = 300.0
"""How long a farm may be away before whoever waits for a job is told. The job goes on."""


class RemoteFarm:
    """Errors are those of a private farm, and Unavailable while the farm does not answer."""

    def __init__(self, remote: Remote, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._remote, self._sleep = remote, sleep

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The farm at FARM_URL. Raises InvalidSettings."""
        return cls(Remote.of(settings))

    @property
    def url(self) -> str:
        return self._remote.url

    def __enter__(self) -> Self:
        self._remote.__enter__()
        return self

    def __exit__(self, *ending: Any) -> None:
        self._remote.__exit__(*ending)

    def render(
        self,
        logline: str = "",
        *,
        shots: int = 4,
        seconds: float = 2.0,
        seed: int | None = None,
        quality: str = "standard",
        model: str = "house-video",
        writer: str = "house-writer",
        script: Mapping[str, Any] | None = None,
        takes: int = 1,
        review: bool = False,
        seeds: Mapping[str, int] | None = None,
        fresh: bool = False,
        film: str = "",
        out: Path | str = "film",
        on_update: OnUpdate | None = None,
    ) -> Finished:
        """A film from a sentence, or from a script; or `film`, which is there: one that was stopped or lost goes on."""
        if film:
            began_us = SystemClock().now_us()
            check_out_dir(Path(out))
            found = self._goes_on(film_named(self._remote, film))
            return self._see_through(found, found["title"] or found["logline"], Path(out), on_update, began_us)
        asked = {
            "logline": logline, "shots": shots, "seconds": seconds, "quality": quality, "model": model,
            "writer": writer, "seed": DEFAULT_SEED if seed is None and script is None else seed, "script": script,
            "takes": takes, "review": review, "seeds": dict(seeds or {}) or None, "fresh": fresh or None,
        }  # fmt: skip
        return self._run("films", asked, logline, Path(out), on_update)

    def clip(
        self,
        prompt: str,
        *,
        seconds: float = 2.0,
        seed: int = 7,
        quality: str = "standard",
        model: str = "house-video",
        size: tuple[int, int] | None = None,
        out: Path | str = "clip",
        on_update: OnUpdate | None = None,
    ) -> Finished:
        """One shot from a prompt."""
        asked = {"prompt": prompt, "seconds": seconds, "seed": seed, "quality": quality, "model": model}
        return self._run("videos", asked | _size(size), prompt, Path(out), on_update)

    def image(
        self,
        prompt: str,
        *,
        seed: int = 7,
        quality: str = "standard",
        model: str = "house-video",
        size: tuple[int, int] | None = None,
        out: Path | str = "image",
        on_update: OnUpdate | None = None,
    ) -> Finished:
        """One still from a prompt: a storyboard frame."""
        asked = {"prompt": prompt, "seed": seed, "quality": quality, "model": model}
        return self._run("images/generations", asked | _size(size), prompt, Path(out), on_update)

    def _goes_on(self, film: Json) -> Json:
        """A film that ended without being finished is filmed again by its own script, if it came to one."""
        path = f"/v1/films/{film['id']}/script"
        lost = film["status"] in ("failed", "cancelled") and film["scenes"]
        return self._remote.put(path, self._remote.get(path)) if lost else film

    def _run(self, path: str, asked: Mapping[str, Any], title: str, out: Path, on_update: OnUpdate | None) -> Finished:
        began_us = SystemClock().now_us()
        check_out_dir(out)
        body = {name: value for name, value in asked.items() if value is not None} | {"tier": "interactive"}
        made = self._remote.submit(f"/v1/{path}", body, name=uuid4().hex, wanted="respond-async")
        return self._see_through(made, title, out, on_update, began_us)

    def _see_through(self, made: Json, title: str, out: Path, on_update: OnUpdate | None, began_us: int) -> Finished:
        """To its end, and that of the revisions which follow it, if somebody changes the film meanwhile."""
        job_id = self._job_of(made)
        try:
            told = self._follow(job_id, on_update)
            while (newest := self._job_of(made, now=True)) != job_id:
                job_id = newest
                told = self._follow(job_id, on_update)
        except Unavailable:
            raise  # the farm goes on with it
        except BaseException:
            with contextlib.suppress(FarmError):
                self._remote.post(_cancel_path(made, job_id))
            raise
        last = told.update
        if not told.said["files"]:  # a film is whole without a take that is not in it
            raise why_not(last, told.failures)
        files = self._deliver(job_id, told.said["files"], out)
        seconds = (SystemClock().now_us() - began_us) / 1e6
        before_s = max(0, last.job.created_us - began_us) / 1e6
        marks_s = {name: min(at_s + before_s, seconds) for name, at_s in told.said["marks_s"].items()}
        return Finished(
            job_id=job_id,
            out=out,
            path=out / RESULTS[last.job.recipe][1],
            files=files,
            title=last.title or title,
            cost_usd=last.cost_usd,
            seconds=seconds,
            marks_s={k: round(v, 2) for k, v in {**marks_s, "delivered": seconds}.items()},
        )

    def _follow(self, job_id: str, on_update: OnUpdate | None) -> Followed:
        told = Followed()
        with contextlib.closing(self._updates(job_id, told)) as updates:
            for update in updates:
                if on_update is not None:
                    on_update(update)
        return told

    def _job_of(self, made: Json, *, now: bool = False) -> str:
        """The job behind what was made; of a film, which is a chain of them, the newest, as it is `now` if need be."""
        if made.get("object") == "film":
            if now or not made["revisions"]:
                made = self._remote.get(f"/v1/films/{made['id']}")
            return str(made["revisions"][-1]["job"])
        return str(made.get("job") or "job_" + str(made["id"]).partition("_")[2])

    def _updates(self, job_id: str, told: Followed) -> Generator[Update]:
        """Until the job is over. A stream that breaks is opened again, where it broke."""
        heard_s = time.monotonic()
        while not told.over():
            try:
                mark = {"Last-Event-ID": str(told.seen)}
                with self._remote.opened(f"/v1/jobs/{job_id}/events", wait_s=SILENT_S, headers=mark) as response:
                    if response.status_code == 204:  # it ended, and we have heard all of it
                        return
                    for frame in frames(response.iter_lines()):
                        heard_s = time.monotonic()
                        yield told.take(frame)
                        if told.over():
                            return
            except (Unavailable, RateLimited) as error:
                if time.monotonic() - heard_s > AWAY_S:
                    raise Unavailable(
                        f"the farm at {self.url} has been away for {AWAY_S:.0f} s",
                        remedy=f"the job goes on there: `farm info {job_id}`",
                    ) from error
            self._sleep(BACK_S)

    def _deliver(self, job_id: str, files: list[dict[str, Any]], out: Path) -> tuple[Path, ...]:
        with tempfile.TemporaryDirectory(prefix="reelfarm-") as scratch:
            local: dict[str, Path | bytes] = {}
            for file in files:
                local[file["name"]] = path = Path(scratch) / Path(file["name"]).name
                url = f"/v1/jobs/{job_id}/files/{quote(file['name'])}"
                fetched(self._remote, url, path, file, sleep=self._sleep)
            return deliver(local, out)


def fetched(
    remote: Remote, url: str, path: Path, file: Mapping[str, Any], *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Into the file `path`. What a broken connection leaves out is asked for again, from there. Raises DamagedAsset."""
    heard_s, have = time.monotonic(), 0
    path.write_bytes(b"")
    while have < file["size_bytes"]:
        try:
            with remote.opened(url, wait_s=SILENT_S, headers={"Range": f"bytes={have}-"}) as response:
                _append(response, path)
            break
        except (Unavailable, RateLimited):
            if time.monotonic() - heard_s > AWAY_S:
                raise
            sleep(BACK_S)
        have = path.stat().st_size
    with path.open("rb") as here:
        if hashlib.file_digest(here, "sha256").hexdigest() != file["sha256"]:
            raise DamagedAsset(f"{path.name} came damaged from {remote.url}", remedy="run the same command again")


def _append(response: httpx.Response, path: Path) -> None:
    """Raises StoreFull."""
    try:
        with path.open("ab" if response.status_code == 206 else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
    except OSError as error:
        raise StoreFull(
            f"{path.parent} cannot be written: {error.strerror}", remedy="make room, or set TMPDIR"
        ) from error


def _cancel_path(made: Mapping[str, Any], job_id: str) -> str:
    """As who asked for it: an image is answered with its job."""
    surface = {"film": "films", "video": "videos"}.get(made.get("object", ""))
    return f"/v1/{surface}/{made['id']}/cancel" if surface else f"/v1/images/{job_id.replace('job_', 'image_')}/cancel"


def _size(size: tuple[int, int] | None) -> Json:
    return {"size": f"{size[0]}x{size[1]}"} if size else {}
