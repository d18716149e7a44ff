"""A film that is changed: another script, or another take circled. What has not changed is not made again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from actors.catalog import Catalog
from actors.contract import Json
from cluster.assets import canonical_json
from cluster.errors import Forbidden, IllegalMove, InvalidInput, NotFound, NotReady
from cluster.graph import TaskSpec
from cluster.ledger import films
from cluster.ledger.films import Change, Film
from cluster.ledger.jobs import JobSpec
from cluster.ledger.ledger import Ledger
from cluster.ledger.outcomes import Sight
from cluster.states import OPEN, JobState, Move, State
from pipelines.recipes import film as recipe
from pipelines.script import Script
from serve import naming

RECIPE = "pipelines.recipes.film"
TRIES = 5
DRAWN = frozenset({State.SUCCEEDED, State.IN_REVIEW})
"""States of a take that can be looked at."""
Task = Mapping[str, Any]


class Foretold(Protocol):
    """What a job keeps of its estimate: `Foresight.of_graph`, by a look that may be of now or of a moment ago."""

    def __call__(self, graph: Sequence[TaskSpec], *, tier: str, to_come: Sequence[TaskSpec]) -> Json: ...


def brief_of(film: Film) -> recipe.Brief:
    return recipe.Brief.from_json(film.now.job.spec)


def script_of(film: Film) -> Script | None:
    """As it came with the film, or as it was written; None before that."""
    expansions = ((task["result"] or {}).get("script") for task in film.now.tasks if task["expands"])
    document = film.now.job.spec.get("script") or next((one for one in expansions if one), None)
    return None if document is None else Script.from_json(canonical_json(document))


def takes_of(film: Film) -> dict[str, Task]:
    """Its tasks that draw takes, by their keys."""
    return {task["key"]: task for task in film.now.tasks if task["step"] == "render"}


def circled(film: Film, shot: str) -> str:
    """The key of the take that goes into the film."""
    return recipe.take_key(shot, film.now.job.spec.get("circled", {}).get(shot, 1))


def take_id(film_id: str, key: str) -> str:
    """Of the take in whatever revision of the film is the newest."""
    return f"{film_id.replace('film_', 'take_')}.{key}"


def film_and_key(text: str) -> tuple[str, str]:
    """What is no id of a take becomes that of none, which is looked for all the same."""
    match = re.fullmatch(r"take_([0-9a-hjkmnp-tv-z]{26})\.([a-z0-9-]{1,32}\.t[1-9][0-9]?)", text)
    return (f"film_{match[1]}", match[2]) if match else ("film_none", "none")


def place_of(ledger: Ledger, text: str) -> tuple[str, str]:
    """(the id of its film, the key of the take). Raises NotFound, InvalidInput."""
    film_id, key = film_and_key(text.strip().lower())
    if film_id != "film_none":
        return film_id, key
    head, slash, key = text.partition("/")
    if slash and head.startswith("film_"):
        return head, key
    where = naming.job_or_task(ledger, Sight(), text)
    if where.task is None or not recipe.take_of(where.task):
        raise InvalidInput(f"{text} is no take", field="TAKE", remedy="name one as in JOB/sh010.t2")
    return film_named(ledger, where.job), where.task


def film_named(ledger: Ledger, text: str) -> str:
    """By its id, or by a job that it is or was made by. Raises NotFound, InvalidInput."""
    if text.startswith("film_"):
        return ledger.view(lambda c: films.read(c, text)).id
    job_id = naming.job(ledger, Sight(), text)
    found = ledger.view(lambda c: films.of_job(c, job_id))
    if found is None:
        raise NotFound(f"{job_id} makes no film", field="FILM", remedy="`farm ls` lists jobs; render it once more")
    return found


class Editor:
    """Changes one film. `read` is asked for it again if somebody else was quicker, `foretold` for the estimate of what
    a change makes anew. Without `may_draw` a change that has takes drawn is Forbidden."""

    def __init__(
        self,
        ledger: Ledger,
        catalog: Catalog,
        read: Callable[[], Film],
        foretold: Foretold,
        *,
        most_in_flight_s: float | None = None,
        only_show: str | None = None,
        key: str | None = None,
        may_draw: bool = True,
    ) -> None:
        self._ledger, self._catalog, self._read, self._foretold = ledger, catalog, read, foretold
        self._may_draw = may_draw
        self._limits: dict[str, Any] = {"most_in_flight_s": most_in_flight_s, "only_show": only_show, "key": key}

    def rewrite(self, script: Script) -> bool:
        """Films another script; False if it is the one that is being filmed. Raises InvalidInput, RateLimited."""
        return self._revise(lambda film: script, "script")

    def circle(self, key: str, *, approved: bool = False) -> bool:
        """Puts another take into the film, and approves what it shows. Raises IllegalMove before there is a script, and
        for a film that was canceled."""

        def same(film: Film) -> Script:
            _check_wanted(film)
            script = script_of(film)
            if script is None or key not in takes_of(film):
                raise IllegalMove("the film has no such take now", field="take_id", remedy="look at it again")
            return script

        return self._revise(same, f"circled {key}", circle=key, approved=approved)

    def approve(self, key: str) -> None:
        """Accepts a take that is drawn, for its shot, and circles it. Again is fine. Raises IllegalMove, NotReady."""
        film, task = self._take(key)
        _check_wanted(film)
        if not brief_of(film).review:
            raise IllegalMove("its film asks for no review", field="take_id", remedy="circle the take instead")
        if task["state"] not in DRAWN:
            raise not_drawn(task)
        if circled(film, recipe.shot_of(key)) != key:
            self.circle(key, approved=True)
        elif task["state"] == State.IN_REVIEW:
            self._ledger.move_task(task["id"], Move.APPROVE, reason="approved by a person")

    def reject(self, key: str) -> State:
        """Has a take that is in review drawn again with another seed; the third time it is dead. Raises IllegalMove."""
        _, task = self._take(key)
        if task["state"] != State.IN_REVIEW:
            raise IllegalMove(
                f"the take is {task['state']}, not in review",
                field="take_id",
                remedy="circle another take, or change its shot in the script",
            )
        return self._ledger.move_task(task["id"], Move.REJECT, reason="rejected by a person")

    def _take(self, key: str) -> tuple[Film, Task]:
        film = self._read()
        task = takes_of(film).get(key)
        if task is None:
            raise NotFound("no such take", field="take_id", remedy="look at its film")
        return film, task

    def again(self) -> bool:
        """Goes on with a film that ended without being finished; False if it goes on, or is finished."""
        film = self._read()
        script = script_of(film)
        if not _lost(film):
            return False
        if script is None:
            return self._submit(film, brief_of(film), "again")
        return self._revise(lambda _: script, "again")

    def _revise(
        self, script: Callable[[Film], Script], reason: str, *, circle: str | None = None, approved: bool = False
    ) -> bool:
        for attempt in range(TRIES):
            film = self._read()
            brief, old = brief_of(film), script_of(film)
            model = self._catalog.model(brief.model, role="render", field="model")
            now = {key: task["params"]["spec"] for key, task in takes_of(film).items()}
            new = recipe.revised(brief, now, script(film), model, circle=circle)
            if old is not None and not _lost(film) and new == recipe.revised(brief, now, old, model):
                return False
            approves = takes_of(film)[circle]["id"] if circle is not None and approved else None
            try:
                return self._submit(film, new, reason, approves)
            except IllegalMove:
                if attempt == TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _submit(self, film: Film, brief: recipe.Brief, reason: str, approves: str | None = None) -> bool:
        job = film.now.job
        asked = JobSpec(recipe=RECIPE, version=recipe.VERSION, title=job.title, spec=brief.to_json())
        spec, graph = films.same_job(job, asked), recipe.plan(brief, self._catalog)
        new = self._ledger.view(lambda c: films.unanswered(c, spec, graph))
        waiting = {key for key, task in takes_of(film).items() if task["state"] in OPEN}
        if not self._may_draw and any(task.step == "render" and task.key not in waiting for task in new):
            raise Forbidden("this API key may not have takes drawn", remedy="use a key with the scope generate")
        to_come = recipe.to_come(brief, self._catalog, graph)
        self._ledger.revise_film(
            Change(
                film_id=film.id,
                of_job=job.id,
                reason=reason,
                spec=spec,
                graph=graph,
                approved=approves,
                estimate=self._foretold(new, tier=spec.tier, to_come=to_come),
                **self._limits,
            )
        )
        return True


def not_drawn(task: Task) -> NotReady:
    return NotReady(f"the take is {task['state']}", field="take_id", remedy="wait until it is drawn")


def _check_wanted(film: Film) -> None:
    if film.now.job.state is JobState.CANCELED:
        remedy = f"put its script again to go on, or `farm render --film {film.id}`"
        raise IllegalMove("the film was canceled", field="take_id", remedy=remedy)


def _lost(film: Film) -> bool:
    return film.now.job.state in (JobState.CANCELED, JobState.FAILED)
