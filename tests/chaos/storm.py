"""The live campaign: a real farm on Ray and PostgreSQL, and a storm of faults whose schedule a seed replays.

    python -m tests.chaos.storm [--seed N] [--scale 1.0]

Golden jobs on an engine of milliseconds, clips of the house model, and tasks that are doomed by planted faults. Workers
are killed and stopped, the dispatcher is killed, PostgreSQL loses its power, the store errs at every tenth call and is
away for a minute, reports come twice or late, the budget of all this is spent and raised again. At the end the checker
reads the log, and every content is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.catalog import Catalog
from actors.contract import Quality
from cluster import faults
from cluster.accelerators import Fleet
from cluster.budgets import Action as AtThreshold
from cluster.budgets import BudgetSpec, Scope, Threshold
from cluster.errors import FailureClass, FarmError, OverBudget, Unavailable
from cluster.faults import Action, Chance
from cluster.graph import TaskSpec
from cluster.ledger.jobs import JobSpec
from cluster.ledger.ledger import Ledger
from cluster.ledger.replay import Injected
from cluster.rates import NANO
from cluster.runtime import private_ray
from cluster.settings import Settings
from cluster.states import State
from pipelines.recipes import clip
from tests import embedded_postgresql
from tests.chaos import golden
from tests.chaos.verdict import Work, print_verdict, tell

TIMES = {"heartbeat_s": 0.5, "lease_s": 2.5, "lease_wait_s": 2.0, "checkpoint_s": 1.0}
STORE_POINTS = ("store.put_blob", "store.put_once", "store.get", "store.fetch", "store.verify")
GAP_S = 4.5
COMMITS_PER_FAULT = 1.5
OUTAGE_S = 60.0
PATIENCE_S = 1_080.0
AMPLE_NANO = 1_000 * NANO
"""A cap that nothing of this comes near."""
DOOMED = {"input": (3, FailureClass.INPUT, 1), "bug": (3, FailureClass.BUG, 3), "poison": (2, FailureClass.POISON, 3)}
"""Planted deaths: how many tasks, and which failures each of them has before it is dead."""
CODE_DIR = Path(__file__).parents[2]


def plan_of_chances(seed: int) -> list[Chance]:
    """Every tenth call of the store errs; every tenth report comes twice, half of those later than the next one."""
    store = [Chance(point=p, action=Action.BEFORE, probability=0.1, seed=seed + n) for n, p in enumerate(STORE_POINTS)]
    twice = Chance(point="worker.report", action=Action.TWICE, probability=0.05, seed=seed + 100)
    late = Chance(point="worker.report", action=Action.ECHO, probability=0.05, seed=seed + 101, seconds=1.0)
    return [*store, twice, late]


def schedule(seed: int, scale: float) -> list[str]:
    """What happens, one after the other, at a distance of GAP_S or so."""
    counts = {"kill": 60, "stop": 10, "dispatcher": 10, "database": 10, "budget": 5}
    kinds = [kind for kind, count in counts.items() for _ in range(max(1, round(count * scale)))]
    random.Random(seed).shuffle(kinds)
    kinds.insert(len(kinds) // 2, "outage")
    return kinds


@dataclass
class Storm:
    home: Path
    database: embedded_postgresql.Server
    seed: int
    scale: float
    done: Counter[str] = field(default_factory=Counter)
    hit: list[tuple[int, str]] = field(default_factory=list)  # (when, worker) of kills and stops
    _threads: list[threading.Thread] = field(default_factory=list)
    _jobs: dict[str, int] = field(default_factory=dict)  # golden job: seed
    _clips: list[str] = field(default_factory=list)
    _doomed: list[str] = field(default_factory=list)
    _injected: list[Injected] = field(default_factory=list)

    def run(self) -> int:
        from actors.fleet import Fleets

        plan = plan_of_chances(self.seed)
        self.settings = Settings(
            home=self.home,
            ledger_url=self.database.url,
            faults=faults.dumps(plan),
            **TIMES,  # type: ignore[arg-type]
        )
        self.dice = random.Random(self.seed)
        self.ledger = Ledger(self.settings.ledger)
        self.fleets = Fleets(self.settings)
        self.fleets.start()
        self.fleets.want(Fleet(name="quick", role="finish", num_workers=4, engine="tests.chaos.golden:make"))
        self.fleets.want(Fleet(name="house", role="render", model="house-video"))
        self._cap(AMPLE_NANO)
        began_s = time.monotonic()
        self._ends_s = began_s + PATIENCE_S
        self._submit_all()
        kinds = schedule(self.seed, self.scale)
        for n, kind in enumerate(kinds):
            self._until(began_s + (n + self.dice.random()) * GAP_S)
            self._until_committed(n * COMMITS_PER_FAULT)
            self._keep_busy(len(kinds) - n)
            self._strike(kind)
            if n % 10 == 9:
                self._say(f"{n + 1} of {len(kinds)} faults", began_s)
        for thread in self._threads:
            thread.join()
        while (still := self._open()) and time.monotonic() < self._ends_s:
            time.sleep(1.0)
        if still:
            self._say(f"{len(still)} jobs did not end: {still[:5]}", began_s)
        self.fleets.stop()
        self._wait_until_gone()
        work = Work(films=self._jobs, clips=self._clips, doomed=self._doomed, injected=self._injected)
        return print_verdict(
            self.ledger,
            work,
            self.hit,
            notes={
                "seed": self.seed,
                "faults": ", ".join(f"{n} x {kind}" for kind, n in sorted(self.done.items())),
                **_counted(plan, faults.struck_by_chance(self.settings.faults_dir)),
                "took": f"{time.monotonic() - began_s:.0f} s",
            },
        )

    # Work

    def _submit_all(self) -> None:
        for n in range(max(1, round(35 * self.scale))):
            self._submit_golden(1_000 + 10 * n)
        doomed: list[TaskSpec] = []
        for kind, (count, _, _) in DOOMED.items():
            doomed += [golden.doomed(kind, n) for n in range(count)]
        job_id = self._insist(JobSpec(recipe="tests.doomed", title="Doomed", spec={}, idempotency_key="doomed"), doomed)
        self._doomed.append(job_id)
        for row in self.ledger.tasks(job_id):
            _, failure, times = DOOMED[row["params"]["kind"]]
            self._injected += [Injected(task_id=row["id"], failure=failure)] * times
        catalog = Catalog.load(None)
        for n in range(max(1, round(20 * self.scale))):
            brief = clip.Brief(prompt="a red boat on the sea", seed=n, quality=Quality.DRAFT)
            spec = JobSpec(recipe="pipelines.recipes.clip", title=f"Clip {n}", spec={}, idempotency_key=f"clip {n}")
            self._clips.append(self._insist(spec, clip.plan(brief, catalog)))

    def _submit_golden(self, seed: int) -> None:
        job_id = self._insist(golden.job(seed), golden.graph(seed, nap_s=0.9))
        self._jobs[job_id] = seed

    def _insist(self, spec: JobSpec, graph: list[TaskSpec]) -> str:
        while True:
            try:
                return self.ledger.submit(spec, graph)[0]
            except (Unavailable, OverBudget):
                time.sleep(0.2)

    def _keep_busy(self, num_left: int) -> None:
        """While faults are left there is work for them to hit."""
        if num_left > 3 and len(set(self._open()) & set(self._jobs)) < 4:
            self._submit_golden(max(self._jobs.values()) + 10)

    def _open(self) -> list[str]:
        try:
            mine = {*self._jobs, *self._clips, *self._doomed}
            return [job.id for job in self.ledger.jobs(limit=1_000) if job.id in mine and not job.over]
        except FarmError:
            return ["the ledger does not answer"]

    # Faults

    def _strike(self, kind: str) -> None:
        {
            "kill": self._kill,
            "stop": self._stop,
            "dispatcher": self._kill_dispatcher,
            "database": lambda: self._beside(self._crash_database, self.dice.uniform(0.5, 3.0)),
            "budget": lambda: self._beside(self._spend_the_budget, self.dice.uniform(1.0, 3.0)),
            "outage": lambda: self._beside(self._take_the_store_away, OUTAGE_S if self.scale >= 1 else 10.0),
        }[kind]()
        self.done[kind] += 1

    def _kill(self) -> None:
        worker, pid = self._victim()
        self.hit.append((self.ledger.clock.now_us(), worker))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _stop(self) -> None:
        """Longer than its lease; then it goes on as if nothing had been."""
        worker, pid = self._victim()
        self.hit.append((self.ledger.clock.now_us(), worker))
        self._beside(self._hold, pid)

    def _hold(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(2.2 * self.settings.lease_s)
            os.kill(pid, signal.SIGCONT)

    def _victim(self) -> tuple[str, int]:
        """A worker that runs something which no other death has hit: three would make it poison."""
        while True:
            try:
                pids = {w["id"]: w["facts"]["pid"] for w in self.ledger.open_workers()}
                busy = [r for r in self.ledger.running() if r.worker_id in pids]
            except FarmError:
                busy = []
            innocent = [r for r in busy if not r.failures.get(FailureClass.POISON.value) and r.step != "doom"]
            innocent = [r for r in innocent if not r.model or self.dice.random() < 0.3]  # the house model loads slowly
            if innocent:
                chosen = self.dice.choice(sorted(innocent, key=lambda r: str(r.worker_id)))
                return chosen.worker_id, pids[chosen.worker_id]
            time.sleep(0.05)

    def _kill_dispatcher(self) -> None:
        import ray

        with contextlib.suppress(ValueError):  # it is just coming back from the kill before
            ray.kill(ray.get_actor("dispatcher", namespace="reelfarm"), no_restart=False)

    def _crash_database(self, seconds: float) -> None:
        self.database.crash()
        time.sleep(seconds)
        self.database.start()

    def _spend_the_budget(self, seconds: float) -> None:
        """All that runs stops at its next step, and goes on once there is money again."""
        self._cap(0)
        time.sleep(seconds)
        self._cap(AMPLE_NANO)

    def _cap(self, cap_nano: int) -> None:
        hold = Threshold(at=1.0, action=AtThreshold.HOLD)
        spec = BudgetSpec(tenant="studio", scope=Scope.TENANT, cap_nano=cap_nano, thresholds=(hold,))
        while True:
            try:
                self.ledger.set_budget(spec)
                return
            except Unavailable:
                time.sleep(0.2)

    def _take_the_store_away(self, seconds: float) -> None:
        """A file stands in its place, so that nobody can begin a new one there."""
        there, away = self.settings.store_dir, self.settings.store_dir.with_name("store-away")
        there.rename(away)
        while not there.is_file():
            shutil.rmtree(there, ignore_errors=True)  # folders that a write in that very moment began to make
            with contextlib.suppress(OSError):
                there.touch(exist_ok=False)
        time.sleep(seconds)
        there.unlink()
        away.rename(there)

    def _beside(self, work: Any, *args: Any) -> None:
        for thread in [t for t in self._threads if t.name == work.__name__]:
            thread.join()  # one of a kind at a time
        thread = threading.Thread(target=work, args=args, name=work.__name__)
        thread.start()
        self._threads.append(thread)

    def _until_committed(self, count: int) -> None:
        """On a machine that is slower than the storm, the storm waits: so it is as hard there as anywhere."""
        while self._num_committed() < count and time.monotonic() < self._ends_s:
            time.sleep(0.2)

    def _num_committed(self) -> int:
        try:
            return sum(job.counts.get(State.SUCCEEDED, 0) for job in self.ledger.jobs(limit=1_000))
        except FarmError:
            return 0

    @staticmethod
    def _until(at_s: float) -> None:
        time.sleep(max(0.0, at_s - time.monotonic()))

    def _say(self, what: str, began_s: float) -> None:
        broken = [error.line() for error in self.fleets.broken.values()]
        ended = f"; no worker of some fleet starts: {broken[0]}" if broken else ""
        tell(f"{time.monotonic() - began_s:5.0f} s  {what}, {len(self._open())} jobs open{ended}")

    # The end

    def _wait_until_gone(self) -> None:
        ends_s = time.monotonic() + 60
        while time.monotonic() < ends_s:
            with contextlib.suppress(FarmError):
                if not self.ledger.open_workers():
                    return
            time.sleep(0.3)


def _counted(plan: list[Chance], struck: dict[int, int]) -> dict[str, int]:
    of_store = sum(n for place, n in struck.items() if plan[place].point in STORE_POINTS)
    return {"errors of the store": of_store, "reports twice or late": sum(struck.values()) - of_store}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="replays a schedule of faults")
    parser.add_argument("--scale", type=float, default=1.0, help="a part of the campaign, to try it")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(10_000) if asked.seed is None else asked.seed
    print(f"A storm of seed {seed}; again: make chaos SEED={seed}", flush=True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="farm-storm-", dir=memory))
    folder.chmod(0o755)  # as root, PostgreSQL runs as a user of its own
    try:
        home = folder / "home"
        home.mkdir()
        with (
            (folder / "ray-says").open("w") as aside,
            contextlib.redirect_stdout(aside),  # a paragraph of Ray's for each worker that is killed
            embedded_postgresql.running(folder) as database,
            private_ray(gpus=0, code_dir=CODE_DIR),
        ):
            return Storm(home, database, seed, asked.scale).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
