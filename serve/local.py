"""The composition root of a one-shot run: a private farm on this machine that ends with its process.

from serve.local import Farm

with Farm() as farm:
    film = farm.render("A red boat crosses the sea at night", shots=4, seed=7, out="film")
    print(film.path, film.cost_usd)
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from actors.catalog import Catalog
from actors.contract import Quality
from cluster import farm_lock
from cluster import settings as settings_module
from cluster.errors import FarmError, InvalidInput, StoreFull, Unavailable
from cluster.graph import TaskSpec
from cluster.ledger import films
from cluster.ledger.jobs import JobSpec, Terms
from cluster.ledger.ledger import Ledger
from cluster.logs import say
from cluster.rates import usd
from cluster.runtime import private_ray
from cluster.settings import Settings
from cluster.states import ENDED, JobState, State
from cluster.store.opening import open_store
from cluster.timing import Ahead
from pipelines.delivery import check_out_dir, deliver
from pipelines.recipes import clip as clip_recipe
from pipelines.recipes import film as film_recipe
from pipelines.recipes import image as image_recipe
from serve.crew import fleet_of
from serve.finished import RESULTS, Finished, files_of, marks, why_not
from serve.foresight import Foresight
from serve.revision import RECIPE, Editor, film_named
from serve.watch import OnUpdate, Update, Watch

log = logging.getLogger(__name__)
CODE_DIR = Path(__file__).resolve().parent.parent


class Farm:
    """A private farm: Ray, a dispatcher, and workers that are spawned when a job wants them and stay warm.

    `gpus` is what Ray shall count as accelerators (None: what it finds). Errors are of `cluster.errors`. One farm at a
    time works on a FARM_HOME: a second one calls `on_wait` with the pid of the first, waits until that has ended, and
    calls `on_go`.
    """

    def __init__(self, *, home: Path | str | None = None, gpus: int | None = None) -> None:
        self._began_s = time.monotonic()
        given = settings_module.load()
        self.settings: Settings = given.model_copy(update={"home": Path(home).expanduser()}) if home else given
        self.gpus = accelerators_here() if gpus is None else gpus
        if self.gpus < 0:
            raise InvalidInput(f"--gpus must be 0 or more, got {self.gpus}", field="gpus")
        self.on_wait: Callable[[int | None], None] = _log_that_it_waits
        self.on_go: Callable[[], None] = lambda: None
        self._stack = contextlib.ExitStack()
        self._waited = False
        self._ray_s = 0.0

    def __enter__(self) -> Farm:
        with self._stack:
            self._open()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self) -> None:
        home = self.settings.home
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"cannot make the farm's directory {home}: {error.strerror}", field="FARM_HOME",
                remedy="set FARM_HOME to a directory that you may write",
            ) from error  # fmt: skip
        self._stack.enter_context(farm_lock.held(home, on_wait=self._wait))
        if self._waited:
            self._began_s = time.monotonic()
            self.on_go()
        self.catalog = Catalog.load(home / "models.d")
        self.ledger = Ledger(self.settings.ledger)
        self._stack.callback(self.ledger.close)
        self.store = open_store(self.settings)
        self.store.capabilities()  # one on S3 that cannot be used is found out now, not by the first task
        self._stack.enter_context(private_ray(gpus=self.gpus, code_dir=CODE_DIR))
        from actors.fleet import Fleets

        self.fleets = Fleets(self.settings)
        self._stack.callback(self.fleets.stop)
        self.fleets.start()
        self._ray_s = time.monotonic() - self._began_s

    def _wait(self, pid: int | None) -> None:
        self._waited = True
        self.on_wait(pid)

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
        """A film from a sentence, or from a script; or `film`, its id, as it stands now, if it is here already.

        `seeds` are of takes by their keys; `fresh` takes nothing from an earlier answer. With `review` it waits until
        a person has approved a take of each shot (`farm approve`, from elsewhere). Raises UserMistake for bad input
        before anything runs.
        """
        if film:
            return self._go_on(film, Path(out), on_update)
        brief = film_recipe.Brief(
            logline=logline,
            num_shots=shots,
            seconds=seconds,
            seed=seed,
            quality=_quality(quality),
            model=model,
            writer=writer,
            script=script,
            num_takes=takes,
            review=review,
            seeds=seeds or {},
            fresh=fresh,
        )
        graph = film_recipe.plan(brief, self.catalog)
        return self._run(
            "pipelines.recipes.film", film_recipe.VERSION, logline, brief.to_json(), graph, Path(out), on_update,
            expected=lambda: film_recipe.expected(brief),
        )  # fmt: skip

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
        brief = clip_recipe.Brief(
            prompt=prompt, seconds=seconds, seed=seed, quality=_quality(quality), model=model, size=size
        )
        graph = clip_recipe.plan(brief, self.catalog)
        return self._run(
            "pipelines.recipes.clip", clip_recipe.VERSION, prompt, brief.to_json(), graph, Path(out), on_update
        )

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
        brief = image_recipe.Brief(prompt=prompt, seed=seed, quality=_quality(quality), model=model, size=size)
        graph = image_recipe.plan(brief, self.catalog)
        return self._run(
            "pipelines.recipes.image", image_recipe.VERSION, prompt, brief.to_json(), graph, Path(out), on_update
        )

    def _run(
        self,
        recipe: str,
        version: int,
        title: str,
        spec: dict[str, Any],
        graph: list[TaskSpec],
        out: Path,
        on_update: OnUpdate | None,
        expected: Callable[[], list[Ahead]] = list,
    ) -> Finished:
        began_s, began_us = time.monotonic(), self.ledger.clock.now_us()
        check_out_dir(out)
        job = JobSpec(
            recipe=recipe, version=version, title=title[:200], spec=spec, tier="interactive",
            tenant=self.settings.tenant, show=self.settings.show,
        )  # fmt: skip
        to_come = (
            film_recipe.to_come(film_recipe.Brief.from_json(spec), self.catalog, graph) if recipe == RECIPE else ()
        )
        seen = Foresight.of_ledger(self.ledger, self.settings)
        terms = Terms(estimate=seen.of_graph(graph, tier=job.tier, to_come=to_come))
        film_id = self.ledger.submit_film(job, graph, terms)[0] if recipe == RECIPE else None
        job_id = self.ledger.submit(job, graph, terms)[0] if film_id is None else self._newest(film_id)
        return self._see_through(film_id, job_id, title, out, on_update, expected, began_s, began_us)

    def _go_on(self, text: str, out: Path, on_update: OnUpdate | None) -> Finished:
        began_s, began_us = time.monotonic(), self.ledger.clock.now_us()
        check_out_dir(out)
        film_id = film_named(self.ledger, text)
        foretold = Foresight.of_ledger(self.ledger, self.settings).of_graph
        Editor(self.ledger, self.catalog, lambda: self.ledger.view(lambda c: films.read(c, film_id)), foretold).again()
        job = self.ledger.job(self._newest(film_id))
        brief = film_recipe.Brief.from_json(job.spec)
        return self._see_through(
            film_id,
            job.id,
            job.title,
            out,
            on_update,
            lambda: film_recipe.expected(brief),
            began_s,
            began_us,
        )

    def _newest(self, film_id: str) -> str:
        return self.ledger.view(lambda c: films.newest(c, film_id))

    def _see_through(
        self,
        film_id: str | None,
        job_id: str,
        title: str,
        out: Path,
        on_update: OnUpdate | None,
        expected: Callable[[], list[Ahead]],
        began_s: float,
        began_us: int,
    ) -> Finished:
        """To its end, and that of the revisions which follow it, if somebody changes the film meanwhile."""
        try:
            last = self._watch(job_id, on_update, expected)
            while film_id is not None and (newest := self._newest(film_id)) != job_id:
                job_id = newest
                last = self._watch(job_id, on_update, expected)
        except BaseException:
            with contextlib.suppress(FarmError):
                self.fleets.desk.cancel(job_id)
            raise
        result_key = RESULTS[last.job.recipe][0]
        made = any(task.key == result_key and task.state is State.SUCCEEDED for task in last.tasks)
        if last.state is not JobState.SUCCEEDED and not made:  # a film is whole without a take that is not in it
            raise self._why(last)
        files = self._deliver(last, out)
        finished_s = time.monotonic()
        marks_s = marks(self.ledger, job_id, began_us)
        if began_s - self._began_s < self._ray_s + 1.0:  # the first job of this farm also waited for Ray
            marks_s = {"ray": self._ray_s, **{k: v + began_s - self._began_s for k, v in marks_s.items()}}
            began_s = self._began_s
        seconds = finished_s - began_s
        return Finished(
            job_id=job_id,
            out=out,
            path=out / RESULTS[last.job.recipe][1],
            files=files,
            title=last.title or title,
            cost_usd=usd(self.ledger.spent(job_id=job_id).nano),
            seconds=seconds,
            marks_s={k: round(v, 2) for k, v in {**marks_s, "delivered": seconds}.items()},
        )

    def _watch(self, job_id: str, on_update: OnUpdate | None, expected: Callable[[], list[Ahead]]) -> Update:
        desk, fleets = self.fleets.desk, self.fleets
        watch = Watch(self.ledger, job_id, progress=desk.progress, num_workers=fleets.num_workers, expected=expected)
        poked = False
        last: Update | None = None
        for update in watch:
            last = update
            if not update.job.over:
                self._want_workers(job_id)
                if not poked:
                    desk.poke()
                    poked = True
            if on_update is not None:
                on_update(update)
            for broken in fleets.broken.values():
                raise broken
            for event in update.events:
                if event.data.get("code") == StoreFull.code:
                    raise StoreFull(str(event.data.get("message")))
        assert last is not None
        return last

    def _why(self, last: Update) -> FarmError:
        failures: dict[str, set[str | None]] = {}
        for attempt in self.ledger.attempts(last.job.id):
            failures.setdefault(attempt["task_id"], set()).add(attempt["failure"])
        return why_not(last, failures)

    def _want_workers(self, job_id: str) -> None:
        """Spawns the fleets that the open tasks need, and, while a script is written, the one that will draw it."""
        wanted: dict[tuple[str, str | None], None] = {}
        for task in self.ledger.tasks(job_id):
            if State(task["state"]) not in ENDED:
                wanted[task["role"], task["model"]] = None
                if task["step"] == "script":
                    wanted["render", task["params"]["model"]] = None
                    wanted["finish", None] = None
        for role, model in wanted:
            if not self.fleets.have(role, model):
                self.fleets.want(fleet_of(role, model, gpus=self.gpus, settings=self.settings))

    def _deliver(self, last: Update, out: Path) -> tuple[Path, ...]:
        with tempfile.TemporaryDirectory(prefix="reelfarm-") as scratch:
            local: dict[str, Path | bytes] = {}
            for file in files_of(last.job.recipe, self.ledger.tasks(last.job.id)):
                local[file["name"]] = path = Path(scratch) / file["name"]
                self.store.fetch(file["key"], path)
            return deliver(local, out)


def waiting_line(pid: int | None) -> str:
    """For a person whose command waits for another one."""
    who = f" (pid {pid})" if pid else ""
    return f"another film is being rendered on this farm{who}: waiting for it to end"


def _log_that_it_waits(pid: int | None) -> None:
    say(log, "Another farm is at work here.", action="farm.waiting", level=logging.WARNING, pid=pid)


def _quality(name: str) -> Quality:
    try:
        return Quality(name)
    except ValueError:
        allowed = ", ".join(q.value for q in Quality)
        raise InvalidInput(f"no quality {name!r}", field="quality", remedy=f"use one of {allowed}") from None


def accelerators_here() -> int:
    """NVIDIA accelerators of this machine, without importing torch."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
