"""Estimates against what clips took: a private farm of the house model, one clip after the other.

    python -m tests.bench.estimates DIR [NUM_CLIPS]     renders, and goes on where DIR/log.jsonl ends
    python -m tests.bench.estimates DIR --report        reads that log again, with the estimator as it is now

Before each clip it is estimated as `farm estimate` does, by what the farm has learned so far; afterwards the seconds of
its attempt are held against that. Clips are of four shapes, mixed. The error is |estimate - actual| / actual.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.forecast import Before, Crew, Kind, forecast
from cluster.timing import Paces, Sample

SHAPES = ((24, 8), (24, 16), (24, 24), (1, 16))  # frames, denoise steps
KNOWN = 20
WORDS = {
    "subject": ("red boat", "blue fish", "green car", "white bird", "yellow star"),
    "motion": ("drifts right", "rises", "sways", "spins"),
    "place": ("over the sea at night", "in a desert at sunset", "in outer space"),
}
NOBODY = Crew(
    role="render", model="house-video", accelerator="cpu", num_accelerators=0, price_class="on-demand",
    rate_card="", nano_per_hour=0, num_workers=1,
)  # fmt: skip


def order(num_clips: int) -> list[tuple[int, int]]:
    """The shapes, equally many of each, in an order that is the same every time."""
    shapes = [SHAPES[n % len(SHAPES)] for n in range(num_clips)]
    random.Random(5).shuffle(shapes)
    return shapes


def seconds(paces: Paces, line: Sample) -> tuple[float, float, int]:
    """(p50, p95, samples) of the seconds of one such clip."""
    kind = Kind(step=line.step, role="render", model=line.model, shape=line.shape, predicted_s=line.predicted_s)
    found = forecast([kind], paces=paces, crews=[NOBODY], unknown=NOBODY, before=Before())
    return found.elapsed_s.p50, found.elapsed_s.p95, found.steps[0].pace.num_samples


def render(folder: Path, num_clips: int) -> None:
    from cluster.ledger import history
    from cluster.ledger.jobs import JobSpec
    from cluster.states import AttemptState, JobState
    from cluster.timing import shape_of
    from pipelines.recipes.film import take_task
    from serve.crew import fleet_of
    from serve.local import Farm

    log = folder / "log.jsonl"
    num_done = len(read(log))
    with Farm(home=folder / "home", gpus=0) as farm:
        model = farm.catalog.model("house-video", role="render")
        farm.fleets.want(fleet_of("render", "house-video", gpus=0, settings=farm.settings))
        for n, (frames, steps) in enumerate(order(num_clips)):
            if n < num_done:
                continue
            rng = random.Random(n)
            subject, motion, place = (rng.choice(WORDS[of]) for of in ("subject", "motion", "place"))
            prompt = f"a {subject} {motion} {place}"
            spec = replace(model.spec(prompt=prompt, seconds=2.0, seed=n, still=frames == 1), num_steps=steps)
            task = take_task("clip", spec, model)
            shape = shape_of(task.params["spec"])
            asked = Sample(step=task.step, model=task.model, shape=shape, predicted_s=task.weight, actual_s=0.0)
            p50, p95, num_samples = seconds(Paces(farm.ledger.view(history.samples)), asked)
            job, _ = farm.ledger.submit(JobSpec(recipe="bench", title=prompt, spec={"n": n}), [task])
            farm.fleets.desk.poke()
            while not farm.ledger.job(job).over:
                for broken in farm.fleets.broken.values():
                    raise broken
                time.sleep(0.2)
            assert farm.ledger.job(job).state is JobState.SUCCEEDED
            attempt = next(a for a in farm.ledger.attempts(job) if a["state"] == AttemptState.SUCCEEDED.value)
            line = {
                "n": n, "frames": frames, "steps": steps, "shape": shape, "predicted_s": task.weight,
                "p50": p50, "p95": p95, "samples": num_samples, "load": os.getloadavg()[0],
                "actual_s": (attempt["ended_us"] - attempt["started_us"]) / 1e6, "stages": attempt["facts"]["seconds"],
            }  # fmt: skip
            with log.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def again(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same clips, as the estimator of today would have said."""
    samples: list[Sample] = []
    told = []
    for line in lines:
        names = ("shape", "predicted_s", "actual_s")
        one = Sample(step="render", model="house-video", **{name: line[name] for name in names})
        p50, p95, num_samples = seconds(Paces(reversed(samples)), one)
        told.append({**line, "p50": p50, "p95": p95, "samples": num_samples})
        samples.append(one)
    return told


def errors(lines: Iterable[dict[str, Any]]) -> list[float]:
    return sorted(abs(line["p50"] - line["actual_s"]) / line["actual_s"] for line in lines)


def table(lines: Sequence[dict[str, Any]]) -> str:
    seen: Counter[str] = Counter()
    known = []
    for line in lines:
        if seen[line["shape"]] >= KNOWN:
            known.append(line)
        seen[line["shape"]] += 1
    rows = {"all": lines, f"{KNOWN} of its shape known": known}
    rows |= {f"{frames} frames, {steps} steps": [x for x in lines if (x["frames"], x["steps"]) == (frames, steps)]
             for frames, steps in SHAPES}  # fmt: skip
    text = [f"{'':26}{'clips':>7}{'median s':>10}{'median err':>12}{'p90 err':>9}{'below p95':>11}"]
    for name, some in rows.items():
        if some:
            wrong = errors(some)
            p50_s = sorted(x["actual_s"] for x in some)[len(some) // 2]
            below = sum(x["actual_s"] <= x["p95"] for x in some) / len(some)
            median, p90 = wrong[len(wrong) // 2], wrong[min(len(wrong) - 1, int(0.9 * len(wrong)))]
            text.append(f"{name:26}{len(some):>7}{p50_s:>10.1f}{median:>12.0%}{p90:>9.0%}{below:>11.0%}")
    return "\n".join(text)


def main(arguments: list[str]) -> None:
    folder, rest = Path(arguments[0]).resolve(), arguments[1:]
    folder.mkdir(parents=True, exist_ok=True)
    if rest != ["--report"]:
        render(folder, int(rest[0]) if rest else 100)
    lines = read(folder / "log.jsonl")
    print("as it was estimated\n" + table(lines))
    print("\nas the estimator of this version would have said\n" + table(again(lines)))


if __name__ == "__main__":
    main(sys.argv[1:])
