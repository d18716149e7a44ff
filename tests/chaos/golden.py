"""A job of the shape of a film, on an engine of milliseconds: what it makes depends on what was asked, nothing else.

script -> expand -> four takes with checkpoints -> conform -> publish. It has its troubles planted, so that every point
of the farm is passed: one take fails its quality check and is drawn again with another seed, one is interrupted after
its checkpoint, one takes its worker down with it. `expected` says what it must make, without any farm.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from actors.contract import Bench, Engine, Json, Made, MadeFile
from cluster.errors import DamagedCheckpoint, Interrupted, InvalidSpec, QualityCheckFailed
from cluster.graph import TaskSpec, with_new_seed
from cluster.ledger.jobs import JobSpec

NUM_STEPS = 6
SAVE_EVERY = 2
TAKES = ("plain", "retaken", "interrupted", "deadly")
FIRST_SEEDS = 1_000_000
"""Seeds of a brief are below it, derived ones above: so a take knows whether it is drawn again."""


def job(seed: int = 7) -> JobSpec:
    return JobSpec(recipe="tests.golden", title=f"Golden film {seed}", spec={}, idempotency_key=f"golden {seed}")


def graph(seed: int = 7, *, nap_s: float = 0.0) -> list[TaskSpec]:
    """`nap_s` is how long each of the six steps of a take lasts."""
    return [
        _task("script", "script", params={"seed": seed, "nap_s": nap_s}),
        _task("expand", "expand", "script", expands=True, cacheable=False),
    ]


def doomed(kind: str, n: int = 0) -> TaskSpec:
    """A task that dies: of bad `input`, of a `bug`, or because it kills each worker that runs it (`poison`)."""
    return _task(f"{kind} {n}", "doom", params={"kind": kind, "n": n})


def expected(seed: int = 7) -> dict[str, str]:
    """Of each task that makes a file, its content."""
    made = {"script": _script(seed)}
    for n, take in enumerate(TAKES):
        spec = _spec(take, seed + n)
        if take == "retaken":
            spec = (with_new_seed({"spec": spec}) or {})["spec"]
        state = _begin(spec)
        for _ in range(NUM_STEPS):
            state = _step(state)
        made[take] = state
    made["conform"] = "\n".join(made[take] for take in TAKES)
    return made | {"publish": f"FILM\n{made['conform']}"}


def digest(content: Mapping[str, str]) -> str:
    """One hash over the hashes of the contents, by task."""
    hashes = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in content.items()}
    return digest_of_hashes(hashes)


def digest_of_hashes(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def digest_of_tasks(rows: list[Any]) -> str:
    """The same, of the tasks of a job in a ledger."""
    return digest_of_hashes({t["key"]: f["content_sha256"] for t in rows for f in t["files"] or ()})


class GoldenEngine:
    """Every step of the golden job, and the doomed."""

    def __init__(self) -> None:
        self._steps: dict[str, Callable[[Bench], Made]] = {
            "script": lambda bench: _file(bench, "script.json", _script(bench.order.params["seed"])),
            "expand": _expand,
            "take": _take,
            "conform": lambda bench: _file(bench, "cut.txt", "\n".join(_text(bench, t, "take.txt") for t in TAKES)),
            "publish": lambda bench: _file(bench, "film.txt", f"FILM\n{_text(bench, 'conform', 'cut.txt')}"),
            "doom": _doom,
        }

    def start(self) -> Json:
        return {"pid": os.getpid()}

    def run(self, bench: Bench) -> Made:
        return self._steps[bench.order.step](bench)

    def close(self) -> None:
        return


def make(*_: object) -> Engine:
    """The factory of a fleet's engine."""
    return GoldenEngine()


def _task(key: str, step: str, *needs: str, **more: Any) -> TaskSpec:
    return TaskSpec(key=key, step=step, role="finish", entry="tests:golden", needs=needs, **more)


def _script(seed: int) -> str:
    return json.dumps({take: seed + n for n, take in enumerate(TAKES)})


def _spec(take: str, seed: int) -> Json:
    return {"prompt": take, "seed": seed}


def _begin(spec: Json) -> str:
    return f"{spec['prompt']} {spec['seed']}"


def _step(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


def _expand(bench: Bench) -> Made:
    script = json.loads(_text(bench, "script", "script.json"))
    nap_s = bench.order.inputs[0].params["nap_s"]
    takes = [
        _task(take, "take", params={"spec": _spec(take, seed), "nap_s": nap_s}, weight=max(0.01, nap_s * NUM_STEPS))
        for take, seed in script.items()
    ]
    return Made(children=(*takes, _task("conform", "conform", *TAKES), _task("publish", "publish", "conform")))


def _take(bench: Bench) -> Made:
    order = bench.order
    spec = order.params["spec"]
    if order.key == "retaken" and spec["seed"] < FIRST_SEEDS:
        raise QualityCheckFailed("too dark")
    first, state = next(_saved(bench), (0, _begin(spec)))
    for n in range(first, NUM_STEPS):
        threading.Event().wait(order.params["nap_s"])
        state = _step(state)
        bench.progress("denoise", n + 1, NUM_STEPS)
        if (n + 1) % SAVE_EVERY == 0:
            bench.checkpoint(json.dumps({"of": _begin(spec), "done": n + 1, "state": state}).encode(), n + 1)
        if order.epoch == 1 and n == NUM_STEPS // 2:
            if order.key == "interrupted":
                raise Interrupted("drained")
            if order.key == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
    return _file(bench, "take.txt", state)


def _saved(bench: Bench) -> Iterator[tuple[int, str]]:
    """(steps done, state) of checkpoints of this very question."""
    for data in bench.resume():
        saved = json.loads(data)
        if saved["of"] == _begin(bench.order.params["spec"]):
            yield saved["done"], saved["state"]
        else:
            bench.refuse(DamagedCheckpoint("it is of another question"))


def _doom(bench: Bench) -> Made:
    match bench.order.params["kind"]:
        case "input":
            raise InvalidSpec("no such subject", field="prompt")
        case "poison":
            bench.progress("denoise", 1, NUM_STEPS)
            threading.Event().wait(1.5)  # until the dispatcher knows in which stage it dies
            os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a defect")


def _text(bench: Bench, task: str, name: str) -> str:
    return bench.fetch(task, name).read_text(encoding="utf-8")


def _file(bench: Bench, name: str, text: str) -> Made:
    path = bench.scratch / name
    path.write_text(text, encoding="utf-8")
    return Made(files=(MadeFile(name=name, path=path, media_type="text/plain"),))
