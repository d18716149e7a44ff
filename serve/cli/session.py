"""One rendering command from the checks to the last line: a farm of its own or another one, a display, a result."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cluster.clock import SystemClock
from cluster.errors import InvalidInput, Unavailable
from serve.cli.board import Board
from serve.cli.ending import Ending
from serve.cli.terminal import Terminal, take_over

if TYPE_CHECKING:  # imported late: help and mistakes answer at once
    from actors.catalog import Catalog
    from cluster.settings import Settings
    from serve.distant import RemoteFarm
    from serve.finished import Finished
    from serve.local import Farm
    from serve.up import Up
    from serve.watch import Update


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a command asks for. `check` raises UserMistake; `run` renders on a farm that is up."""

    headline: str
    facts: str
    out: Path
    gpus: int | None
    as_json: bool
    check: Callable[[Catalog], object]
    run: Callable[[Farm | RemoteFarm, Callable[[Update], None]], Finished]


class Show(Protocol):
    """A display: started before the farm, closed when the job is over and the farm is down."""

    def start(self) -> None: ...

    def waits(self, line: str, pid: int | None) -> None:
        """Another farm is at work here; `goes_on` when it has ended."""

    def goes_on(self) -> None: ...

    def update(self, update: Update) -> None: ...

    def finished(self, finished: Finished) -> None: ...

    def failed(self, error: BaseException) -> None: ...

    def close(self) -> None: ...


class Session:
    """Runs one Work. `terminal` is there once the farm's own noise has been sent elsewhere."""

    def __init__(self, work: Work, ending: Ending) -> None:
        self._work, self._ending = work, ending
        self._clock = SystemClock()
        self._board = Board(headline=work.headline, facts=work.facts, began_us=self._clock.now_us())
        self.terminal: Terminal | None = None

    @property
    def kept(self) -> str:
        """What somebody who stopped it is told."""
        return self._board.what_is_kept()

    def perform(self) -> int:
        """The exit code. Raises UserMistake before anything is started, else what the farm raises."""
        settings = self._check()
        self._ending.adopt()
        self.terminal = terminal = take_over(settings.home / "logs")
        show = _show(terminal, self._board, self._clock, self._work.as_json)
        self._ending.on_stop = lambda: setattr(self._board, "stopping", True)
        self._ending.at_once = lambda: _last_words(terminal)
        try:
            show.start()
            finished = self._run(self._farm(settings, show), show)
            return 1 if finished.verdict is not None and not finished.verdict.equal else 0
        except BaseException as error:
            with contextlib.suppress(OSError):
                show.failed(error)
            raise
        finally:
            show.close()

    def _farm(self, settings: Settings, show: Show) -> Farm | RemoteFarm:
        """The farm at FARM_URL, else the one that stands on this FARM_HOME, else one of our own."""
        if self._board.asks is not None:
            from serve.distant import RemoteFarm
            from serve.remote import Remote

            if settings.url:
                return RemoteFarm(Remote.of(settings))
            found = _standing(settings, show)
            if found is not None:
                return RemoteFarm(Remote(found.url, found.key))
            self._board.asks = None
            show.goes_on()
        from serve.local import Farm, waiting_line

        farm = Farm(gpus=self._work.gpus)
        farm.on_wait = lambda pid: show.waits(waiting_line(pid), pid)
        farm.on_go = show.goes_on
        return farm

    def _run(self, farm: Farm | RemoteFarm, show: Show) -> Finished:
        try:
            with farm:
                self._ending.watch()  # Ray has put its own handler over ours
                finished = self._work.run(farm, show.update)
                self._ending.settled = True
                show.finished(finished)
                return finished
        except SystemExit as error:  # Ray's answer to a SIGTERM while it starts
            self._ending.signum = self._ending.signum or signal.SIGTERM
            raise KeyboardInterrupt from error

    def _check(self) -> Settings:
        """Of a farm that is elsewhere only that farm knows what it can draw."""
        from cluster import settings as settings_module
        from pipelines.delivery import check_out_dir
        from serve import up

        settings = settings_module.load()
        standing = None if settings.url else up.here(settings)
        if settings.url or standing is not None:
            self._board.asks = settings.url or f"{settings.home} (pid {standing.pid if standing else 0})"
        if self._board.asks and self._work.gpus is not None:
            raise InvalidInput(
                f"the farm at {self._board.asks} has its own accelerators", field="--gpus", remedy="leave it out"
            )
        if not settings.url:
            from actors.catalog import Catalog

            self._work.check(Catalog.load(settings.home / "models.d"))
        else:
            settings.secret()
        check_out_dir(self._work.out)
        return settings


def _standing(settings: Settings, show: Show) -> Up | None:
    """The farm that stands here, once it is ready; None if it ends. Raises Unavailable if it cannot get up."""
    from serve import up

    told = ""
    while (found := up.here(settings)) is not None and not found.ready and found.phase != "ending":
        if found.failed:
            raise Unavailable(found.failed, remedy=f"its log is {settings.home / 'logs' / 'farm.log'}")
        if found.phase != told:
            told = found.phase
            show.waits(f"the farm here gets up: {told}", found.pid)
        time.sleep(up.LOOK_S)
    return found if found is not None and found.ready else None


def _show(terminal: Terminal, board: Board, clock: SystemClock, as_json: bool) -> Show:
    from rich.console import Console

    from serve.cli.lines import JsonShow, LineShow
    from serve.cli.show import LiveShow

    if as_json:
        return JsonShow(terminal.out, board, clock)
    console = Console(file=terminal.out, highlight=False, emoji=False, markup=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveShow(console, board, clock)
    return LineShow(terminal.out, board, clock)


def _last_words(terminal: Terminal | None) -> None:
    if terminal is not None:
        if terminal.out.isatty():
            print("\x1b[?25h", end="", file=terminal.out, flush=True)  # the cursor that the live display hid
        print("farm: ended at once; what was finished is kept", file=terminal.err, flush=True)
