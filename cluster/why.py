"""Why a task does not run: every predicate that holds it back, until when, and what a person can do. Pure.

The predicates of workers are those of `cluster.fit`, which the dispatcher asks before a lease: the two cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.budgets import REASON, Budget, Need, granted
from cluster.errors import FailureClass
from cluster.failures import BUDGET
from cluster.fit import Asked, Place, blocked, unfit
from cluster.rates import usd
from cluster.states import DONE, State
from cluster.timing import Ahead, left_s, span

NAMED = 6
"""Inputs, or workers, of one kind that are named one by one."""
TICK_S = 1.0
"""A dispatcher looks at the ledger about so often."""


class Predicate(StrEnum):
    """What can hold a task back; `farm why --json` carries these words."""

    INPUT = "input"
    JOB_HELD = "job_held"
    JOB_CANCELED = "job_canceled"
    BUDGET = "budget"
    SUSPENDED = "suspended"
    BACKOFF = "backoff"
    REVIEW = "review"
    SAME_QUESTION = "same_question"
    NO_FARM = "no_farm"
    NO_WORKER = "no_worker"
    UNFIT = "unfit"
    BUSY = "busy"
    DISPATCH = "dispatch"  # nothing but the next look of the dispatcher


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A task as somebody else's wait sees it. `ran_s` is of its running attempt."""

    name: str  # JOB/KEY
    key: str
    step: str
    role: str
    state: State
    predicted_s: float
    reason: str | None = None
    worker_id: str | None = None
    ran_s: float = 0.0
    direct: bool = True  # an input of the task itself, not of one of its inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """A worker that has not left, and what it runs."""

    place: Place
    running: tuple[Work, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A task and all that may hold it back, as one transaction saw it."""

    task: Work
    asked: Asked
    job_id: str
    held: bool = False
    canceled: bool = False
    num_attempts: int = 0  # in this generation
    backoff_s: float | None = None  # until its end
    needs: tuple[Work, ...] = ()  # unmet inputs, and what these need in turn
    twin: Work | None = None
    here: tuple[Here, ...] = ()
    ahead: tuple[Work, ...] = ()  # ready tasks for the same workers that come first by tier and priority
    ratios: Mapping[str, float] = field(default_factory=dict)  # of `timing.learned`
    farm_runs: bool | None = None  # None: not to be seen from here
    budgets: tuple[Budget, ...] = ()  # above it
    need: Need | None = None  # what it asks of them
    now_us: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """One predicate. `eta_s` None: not known, or never by itself if `remedy` says what a person has to do."""

    what: Predicate
    text: str
    eta_s: float | None = None
    remedy: str | None = None


NO_FARM = Hold(
    what=Predicate.NO_FARM,
    text="no farm is at work on this ledger",
    remedy="give the command that submitted the job again",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """`said` is of the state alone. `eta_s`: until it starts or, of a running task, ends; None: see `holds`."""

    state: State
    said: str
    holds: tuple[Hold, ...] = ()
    eta_s: float | None = None
    remedy: str | None = None

    @property
    def waits_for_somebody(self) -> bool:
        return self.remedy is not None or any(hold.remedy for hold in self.holds)


def why(seen: Snapshot) -> Explanation:
    """What is the matter with a task."""
    task = seen.task
    ended = _ended(seen)
    if ended is not None:
        return ended
    if task.state is State.RUNNING:
        return _running(seen)
    holds = tuple(_holds(seen))
    etas = [hold.eta_s for hold in holds]
    known = [eta for eta in etas if eta is not None]
    eta_s = max(known, default=None) if len(known) == len(etas) else None
    words = {State.PENDING: "waits for its inputs", State.READY: "is ready", State.BACKOFF: "waits to be tried again"}
    return Explanation(state=task.state, said=words.get(task.state, f"is {task.state.value}"), holds=holds, eta_s=eta_s)


def _running(seen: Snapshot) -> Explanation:
    task, left_s = seen.task, _rest_s(seen.task, seen.ratios)
    said = f"attempt {seen.num_attempts} runs on {task.worker_id}, for {span(task.ran_s)} by now"
    if seen.farm_runs is False:
        said = f"attempt {seen.num_attempts} was running on {task.worker_id} when its farm was killed"
        return Explanation(state=task.state, said=said, holds=(NO_FARM,))
    if not left_s:
        return Explanation(state=task.state, said=f"{said}, longer than predicted")
    return Explanation(state=task.state, said=said, eta_s=left_s)


def _ended(seen: Snapshot) -> Explanation | None:
    task, name = seen.task, seen.task.name
    because = f": {task.reason}" if task.reason else ""
    match task.state:
        case State.SUCCEEDED:
            how = f"by attempt {seen.num_attempts}" if seen.num_attempts else "by an answer that was there already"
            return Explanation(state=task.state, said=f"has succeeded, {how}", eta_s=0.0)
        case State.EATEN:
            return Explanation(state=task.state, said=f"was accepted as done without output{because}", eta_s=0.0)
        case State.STALE:
            return Explanation(
                state=task.state,
                said=f"is done, but older than its inputs{because}",
                remedy=f"farm requeue {name}",
            )
        case State.CANCELED:
            return Explanation(state=task.state, said=f"was canceled{because}", remedy=f"farm requeue {name}")
        case State.NOT_COMPATIBLE:
            return Explanation(
                state=task.state,
                said=f"can run on no fleet of this farm{because}",
                remedy=f"add such a fleet, then farm requeue {name}",
            )
        case State.DEAD:
            failed = failures_text(seen.asked.failures)
            hopeless = FailureClass.INPUT.value in seen.asked.failures
            again = "mend the brief and submit it again" if hopeless else f"farm retry {name}"
            return Explanation(
                state=task.state,
                said=f"is dead{f' after {failed}' if failed else ''}{because}",
                remedy=f"{again}, or farm eat {name} to go on without it",
            )
    return None


def _holds(seen: Snapshot) -> Iterator[Hold]:
    task = seen.task
    if seen.canceled:
        yield Hold(what=Predicate.JOB_CANCELED, text="its job is canceled", remedy=f"farm requeue {task.name}")
    if seen.held:
        yield Hold(what=Predicate.JOB_HELD, text="its job is on hold", remedy=f"farm release {seen.job_id}")
    yield from _budgets(seen)
    if task.state is State.SUSPENDED and task.reason != REASON:
        because = f": {task.reason}" if task.reason else ""
        yield Hold(
            what=Predicate.SUSPENDED, text=f"the task itself is on hold{because}", remedy=f"farm release {task.name}"
        )
    if task.state is State.IN_REVIEW:
        yield Hold(what=Predicate.REVIEW, text="it waits for a person's verdict", remedy=_review(task))
        return
    yield from _inputs(seen)
    if task.state is State.BACKOFF:
        failed = failures_text(seen.asked.failures)
        because = f": {task.reason}" if task.reason else ""
        left = max(0.0, seen.backoff_s or 0.0)
        yield Hold(
            what=Predicate.BACKOFF,
            text=f"it is tried again in {span(left)}, after {failed or 'a failure'}{because}",
            eta_s=left + TICK_S,
        )
    if seen.twin is not None:
        twin = seen.twin
        yield Hold(
            what=Predicate.SAME_QUESTION,
            text=f"{twin.name} is answering the same question on {twin.worker_id}, for {span(twin.ran_s)}: "
            "this task takes its answer",
            eta_s=_rest_s(twin, seen.ratios),
        )
    yield from _workers(seen)


def _budgets(seen: Snapshot) -> Iterator[Hold]:
    """Each budget that has no room for it, by the rule of a lease."""
    for budget in seen.budgets:
        purse, spec = budget.purse(), budget.spec
        if seen.need is None or not (purse.blocks or granted([purse], seen.need) is purse):
            continue
        name, cap = f"{spec.scope} {spec.subject}".strip(), f"${usd(spec.cap_nano):.4f}"
        spent, reserved = (f"${usd(nano):.4f}" for nano in (budget.spent_nano, budget.reserved_nano))
        text = f"the budget of {name} has no room for it: {spent} of {cap} spent, {reserved} reserved by what runs"
        if purse.blocks:
            text = f"the budget of {name} lets nothing start ({budget.acting}): {spent} of {cap} spent"
        waits = purse.blocks or not budget.reserved_nano
        yield Hold(
            what=Predicate.BUDGET,
            text=text,
            eta_s=None if budget.until_us is None else max(0.0, (budget.until_us - seen.now_us) / 1e6),
            remedy=f"farm budget set {name} --cap USD" if waits else None,
        )


def _inputs(seen: Snapshot) -> Iterator[Hold]:
    """Each unmet input, in groups by state where there are many; then what is broken behind them."""
    direct = [need for need in seen.needs if need.direct]
    eta_s = _until_all_s(seen)
    for state in dict.fromkeys(need.state for need in direct):
        group = [need for need in direct if need.state is state]
        broken = _remedy_of(group[0]) is not None
        named = group if broken or len(group) <= NAMED else group[: NAMED - 1]
        for need in named:
            yield _input(need, seen.ratios, eta_s)
        if len(group) > len(named):
            yield Hold(
                what=Predicate.INPUT,
                text=f"it needs {len(group) - len(named)} more tasks that are {state.value}",
                eta_s=eta_s,
            )
    for need in seen.needs:
        if not need.direct and _remedy_of(need) is not None:
            yield _input(need, seen.ratios, None)


def _input(need: Work, ratios: Mapping[str, float], eta_s: float | None) -> Hold:
    remedy = _remedy_of(need)
    because = f": {need.reason}" if need.reason and need.state is not State.PENDING else ""
    whose = "it needs" if need.direct else "behind its inputs,"
    if need.state is State.RUNNING:
        what = f"runs on {need.worker_id} for {span(need.ran_s)}, {span(_rest_s(need, ratios))} left"
    else:
        what = f"is {need.state.value}{because}"
    text = f"{whose} {need.key}, which {what}" if need.direct else f"{whose} {need.key} {what}"
    return Hold(what=Predicate.INPUT, text=text, eta_s=None if remedy else eta_s, remedy=remedy)


def _remedy_of(need: Work) -> str | None:
    """What a person does about an input that will not be done by itself."""
    match need.state:
        case State.DEAD:
            return f"farm retry {need.name}, or farm eat {need.name} to go on without it"
        case State.CANCELED | State.STALE:
            return f"farm requeue {need.name}"
        case State.SUSPENDED:
            return f"farm release {need.name}"
        case State.NOT_COMPATIBLE:
            return f"add a fleet for it, then farm requeue {need.name}"
        case State.IN_REVIEW:
            return _review(need)
    return None


def _review(work: Work) -> str:
    return f"farm approve {work.name}, or farm reject {work.name} to have it drawn again"


def _until_all_s(seen: Snapshot) -> float | None:
    """Until all unmet inputs are done; None if some of them will not be by themselves."""
    if any(_remedy_of(need) for need in seen.needs):
        return None
    roles = Counter(here.place.role for here in seen.here)
    return left_s([_ahead(need, seen.ratios) for need in seen.needs], ratios=seen.ratios, workers=roles)


def _workers(seen: Snapshot) -> Iterator[Hold]:
    """Why none of the workers that are here takes it now."""
    waits_for_inputs = any(need.state not in DONE for need in seen.needs)
    if seen.farm_runs is False or (seen.farm_runs is None and not seen.here):
        yield NO_FARM
        return
    asked = seen.asked
    able = [here for here in seen.here if _could(asked, here.place)]
    if not able:
        what = f"{asked.role} worker" + (f" with {asked.model}" if asked.model else "")
        yield Hold(what=Predicate.NO_WORKER, text=f"no {what} is here; one that is loading is not counted")
        return
    fitting: list[Here] = []
    unfitting: list[str] = []
    for here in able:
        others = (other.place for other in able if other is not here)
        elsewhere = any(unfit(asked, other) is None and not blocked(asked, other) for other in others)
        reason = unfit(asked, here.place, elsewhere=elsewhere)
        if reason is None:
            fitting.append(here)
        else:
            unfitting.append(f"{here.place.worker_id}: {reason}")
    if not fitting:
        for text in unfitting[:NAMED]:
            yield Hold(what=Predicate.UNFIT, text=text)
        if len(unfitting) > NAMED:
            yield Hold(what=Predicate.UNFIT, text=f"and {len(unfitting) - NAMED} more workers for such reasons")
    elif not waits_for_inputs and seen.task.state in (State.READY, State.BACKOFF):
        yield from _queue(seen, fitting)


def _could(asked: Asked, place: Place) -> bool:
    """Whether the worker is of the right kind, whatever keeps it from the task now."""
    return asked.role == place.role and (asked.model is None or asked.model in place.models)


def _queue(seen: Snapshot, fitting: Sequence[Here]) -> Iterator[Hold]:
    busy = [here for here in fitting if here.running]
    if len(busy) < len(fitting) and not seen.ahead:
        capped = any(_budgets(seen))
        if seen.task.state is State.READY and seen.twin is None and not (seen.held or seen.canceled or capped):
            yield Hold(what=Predicate.DISPATCH, text="a free worker asks for it at any moment", eta_s=TICK_S)
        return
    running = [_ahead(work, seen.ratios) for here in busy for work in here.running]
    first = [_ahead(work, seen.ratios) for work in seen.ahead]
    role = seen.asked.role
    if seen.ahead:
        wait_s = left_s([*running, *first], ratios=seen.ratios, workers={role: len(fitting)})
    else:
        wait_s = min(max(_rest_s(work, seen.ratios) for work in here.running) for here in busy)
    many = len(fitting)
    if len(busy) < many:
        who = f"{many - len(busy)} of {many} workers that fit are free"
    elif many > 1:
        who = f"all {many} workers that fit are busy"
    else:
        who = f"the only worker that fits, {fitting[0].place.worker_id}, is busy"
    tasks = "1 task is" if len(seen.ahead) == 1 else f"{len(seen.ahead)} tasks are"
    yield Hold(what=Predicate.BUSY, text=f"{who}; {tasks} ahead of it in the queue", eta_s=wait_s)


def _ahead(work: Work, ratios: Mapping[str, float]) -> Ahead:
    whole_s = work.predicted_s * ratios.get(work.step, 1.0)
    fraction = min(1.0, work.ran_s / whole_s) if whole_s > 0 and work.state is State.RUNNING else 0.0
    return Ahead(step=work.step, role=work.role, predicted_s=work.predicted_s, fraction=fraction)


def _rest_s(work: Work, ratios: Mapping[str, float]) -> float:
    return max(0.0, work.predicted_s * ratios.get(work.step, 1.0) - work.ran_s)


def failures_text(failures: Mapping[str, int]) -> str:
    """ "2 infra failures of 20, 1 bug failure of 3"."""
    return ", ".join(
        f"{count} {name} failure{'' if count == 1 else 's'}{_of_budget(name)}"
        for name, count in sorted(failures.items())
    )


def _of_budget(name: str) -> str:
    known = {failure.value: budget for failure, budget in BUDGET.items()}
    budget = known.get(name)
    return f" of {budget}" if budget else ""
