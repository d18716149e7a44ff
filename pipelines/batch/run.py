"""A batch from its file to its results: every line is checked, submitted under its own key, waited for and fetched.

Whatever is killed on the way, the same call goes on from there: a line that the farm has heard of is the same video for
ever, and a clip that is here is not sent again.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from actors.contract import Json
from cluster.errors import Canceled, InvalidInput, JobFailed
from pipelines.batch import prompts, results
from pipelines.batch.farm import Farm, Refusal, Seen
from pipelines.batch.progress import Counts, Display
from pipelines.batch.prompts import Flaw, Line
from pipelines.batch.results import Folder, Result

MAX_POLL_S = 60.0
POLLS_PER_S = 20.0
"""Of all lines together."""
NAMED = 20
"""Bad lines that are named one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    input: Path
    output: Path
    show: str = ""  # "": the usual one of the key
    name: str = ""  # the same file under another name is work of its own
    skip_bad: bool = False
    download: bool = True
    concurrency: int = 8  # requests at once, of each kind

    def __post_init__(self) -> None:
        for option, text in (("--show", self.show), ("--name", self.name)):
            if not re.fullmatch(r"[\x20-\x7e]{0,64}", text):
                raise InvalidInput(f"{option} has to be at most 64 characters of ASCII", field=option)


def run(batch: Batch, *, url: str, secret: str, display: Display) -> list[Result]:
    """The results, which are in the directory too, in the order of the lines.

    Raises InvalidInput for bad lines (nothing was submitted then), Unauthenticated, Forbidden, Unavailable, StoreFull,
    and Canceled for a KeyboardInterrupt, with what goes on and how to come back.
    """
    lines, flaws = prompts.read(batch.input, show=batch.show, batch=batch.name)
    folder = Folder(batch.output)
    work = _Work(batch, url, secret, display, folder)
    try:
        return asyncio.run(work.through(lines, flaws))
    except KeyboardInterrupt:
        raise Canceled(work.kept) from None
    except ExceptionGroup as group:
        raise _first(group) from group


def check_all_made(found: Sequence[Result], where: Path) -> None:
    """Raises JobFailed with how many lines were not made, by error. Lines that were skipped as bad do not count."""
    failed = [result for result in found if not result.made and result.status != results.BAD]
    if failed:
        codes = Counter(str((result.error or {}).get("code")) for result in failed)
        named = ", ".join(f"{count} x {code}" for code, count in codes.most_common())
        raise JobFailed(f"{len(failed)} of {len(found)} lines were not made ({named}); {where} says which and why")


class _Work:
    def __init__(self, batch: Batch, url: str, secret: str, display: Display, folder: Folder) -> None:
        self._batch, self._url, self._display, self._folder = batch, url, display, folder
        self._farm = Farm(url, secret, show=batch.show, on_wait=lambda trouble: self._waits(trouble))
        self._submits, self._asks = asyncio.Semaphore(batch.concurrency), asyncio.Semaphore(batch.concurrency)
        self._pace = _Pace(POLLS_PER_S)
        self._at: dict[str, str] = {}  # the status of each line, by key
        self._num: Counter[str] = Counter()
        self._results: list[Result] = []
        self._trouble = ""

    async def through(self, lines: Sequence[Line], flaws: Sequence[Flaw]) -> list[Result]:
        done = await asyncio.to_thread(self._folder.done, lines, downloaded=self._batch.download)
        known = self._folder.submitted(self._url)
        async with self._farm:
            new = [line for line in lines if line.key not in done and line.key not in known]
            bad = sorted([*flaws, *await self._checked(new)], key=lambda flaw: flaw.number)
            self._refuse(bad)
            self._results = [*done.values(), *map(results.of_flaw, bad)]
            numbers = {flaw.number for flaw in bad}
            left = [line for line in lines if line.key not in done and line.number not in numbers]
            if done:
                self._display.say(f"{len(done)} lines were made before")
            async with asyncio.TaskGroup() as group:
                for line in left:
                    self._moved(line, "")
                for line in left:
                    group.create_task(self._follow(line, known.get(line.key)))
        await asyncio.to_thread(self._folder.write, self._results)
        return sorted(self._results, key=lambda result: result.line)

    @property
    def kept(self) -> str:
        counts = self._counts()
        if not counts.total:
            return "stopped; nothing was submitted"
        return f"stopped waiting: {counts}; what was submitted goes on, and the same command again waits for it"

    async def _checked(self, lines: Sequence[Line]) -> list[Flaw]:
        """By asking for an estimate of each: the farm refuses it as it would refuse the video."""
        if not lines:
            return []
        self._display.say(f"checking {len(lines)} lines")

        async def check(line: Line) -> Flaw | tuple[float, Decimal]:
            async with self._asks:
                found = await self._farm.estimate(line.body)
            if isinstance(found, Refusal):
                return Flaw(number=line.number, id=line.id, field=found.field, message=found.message, code=found.code)
            return float(found["accelerator_seconds"]["p50"]), Decimal(found["cost"]["p50"])

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(check(line)) for line in lines]
        found = [task.result() for task in tasks]
        good = [one for one in found if not isinstance(one, Flaw)]
        seconds, dollars = sum(held_s for held_s, _ in good), sum(cost for _, cost in good)
        self._display.say(f"{len(good)} new lines: about {seconds:,.0f} accelerator-seconds, ${dollars:.4f}")
        return [one for one in found if isinstance(one, Flaw)]

    def _refuse(self, bad: Sequence[Flaw]) -> None:
        """Raises InvalidInput, unless bad lines are to be skipped."""
        for flaw in bad[:NAMED]:
            self._display.say(str(flaw))
        if len(bad) > NAMED:
            self._display.say(f"and {len(bad) - NAMED} bad lines more")
        if bad and not self._batch.skip_bad:
            raise InvalidInput(
                f"{len(bad)} lines of {self._batch.input} are bad, nothing was submitted; the first is {bad[0]}",
                field="--input",
                remedy="mend them, or leave them out with --skip-bad",
            )

    async def _follow(self, line: Line, video_id: str | None) -> None:
        """One line to its end."""
        seen = await self._begun(line, video_id)
        looks = 0
        while isinstance(seen, Seen) and not seen.over:
            video_id = str(seen.video["id"])
            self._moved(line, str(seen.video["status"]))
            await asyncio.sleep(pause_s(seen, looks))
            await self._pace.turn()
            async with self._asks:
                seen = await self._farm.video(video_id)
            looks += 1
        result = await self._ended(line, seen, video_id)
        self._results.append(result)
        if not result.made:
            error = result.error or {}
            self._display.say(f"{line.name} was not made: {error.get('code')}: {error.get('message')}")
        self._moved(line, "made" if result.made else "failed")

    async def _begun(self, line: Line, video_id: str | None) -> Seen | Refusal:
        if video_id is not None:
            async with self._asks:
                return await self._farm.video(video_id)
        async with self._submits:  # held while the farm has no room: so many wait for it, not all of them
            seen = await self._farm.submit(line.body, line.key)
        if isinstance(seen, Seen):
            self._folder.note(self._url, line, seen.video["id"])
        return seen

    async def _ended(self, line: Line, seen: Seen | Refusal, video_id: str | None) -> Result:
        if isinstance(seen, Refusal):
            status = results.REFUSED if video_id is None else results.GONE
            return results.of_refusal(line, seen, status=status, video_id=video_id)
        video = seen.video
        if video["status"] != results.COMPLETED:
            return results.of_video(line, video, None, path=None)
        path = self._folder.clip_of(line, video["id"]) if self._batch.download else None
        async with self._asks:
            if path is None:
                got = await self._farm.content(video["id"])
            else:
                got = await self._farm.download(video["id"], path, _sha256_of_clip(video))
        return results.of_video(line, video, got, path=str(path.relative_to(self._folder.path)) if path else None)

    def _moved(self, line: Line, status: str) -> None:
        if line.key in self._at:
            self._num[self._at[line.key]] -= 1
        self._at[line.key] = status
        self._num[status] += 1
        if status:
            self._display.count(self._counts())

    def _counts(self) -> Counts:
        num = self._num
        return Counts(
            total=len(self._at),
            made=num["made"],
            failed=num["failed"],
            running=num["in_progress"],
            queued=num["queued"],
        )

    def _waits(self, trouble: str) -> None:
        """The same trouble is said once until there is another."""
        if trouble != self._trouble:
            self._trouble = trouble
            self._display.say(f"waiting for the farm: {trouble}")


class _Pace:
    """At most so many turns a second, for whoever asks first."""

    def __init__(self, per_second: float) -> None:
        self._each_s, self._next_s = 1 / per_second, 0.0

    async def turn(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._next_s = max(now_s, self._next_s + self._each_s)
        await asyncio.sleep(self._next_s - now_s)


def pause_s(seen: Seen, looks: int) -> float:
    """Until it is worth asking again: half of what is left, else longer each time; never sooner than the farm says."""
    eta_s = seen.video.get("eta_seconds")
    likely_s = seen.again_s * 1.5 ** min(looks, 20) if eta_s is None else eta_s / 2
    return min(MAX_POLL_S, max(seen.again_s, likely_s)) * random.uniform(0.9, 1.1)


def _sha256_of_clip(video: Json) -> str | None:
    """As the farm says; None from a farm that does not."""
    return next((file["sha256"] for file in video.get("assets", ()) if file["name"] == "clip.mp4"), None)


def _first(group: ExceptionGroup[Exception]) -> Exception:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, ExceptionGroup) else inner
