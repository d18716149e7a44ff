"""`python -m pipelines.writer_eval`: twenty loglines through the real writer: are the scripts valid, to the point?"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.catalog import Catalog, Model
from actors.contract import Complete
from actors.weights import weights_dir
from actors.writer import Writer
from pipelines.grounding import ground
from pipelines.script import Script
from pipelines.writing import write_script

LOGLINES = (  # the first five are also in `make test`; the last three name nothing that can be drawn
    "A red ship rocks on the ocean, then a rocket rises past the moon.",
    "A kitten chases a golden ball through the woods.",
    "A shy fish wants to fly like a bird.",
    "The last cab of the night waits in the town for a star.",
    "Grandmother's soup",
    "A blue whale and a tiny boat become friends under the sea.",
    "A pink balloon escapes over the rooftops and comes home at dusk.",
    "In the desert, a lonely cactus dreams of a green tree and a rain cloud.",
    "An astronaut's rocket spins through the galaxy and lands on a purple planet.",
    "A white bird carries a love letter over the snowy mountains.",
    "The little house on the hill is afraid of the storm, until the moon rises.",
    "Two cars race across the dunes at sunset.",
    "A heart falls out of a tree and rolls into the city.",
    "An orange goldfish grows too big for its lagoon.",
    "A robin and a crow quarrel over a cherry tree in autumn.",
    "A hot air balloon drifts above the meadow while a cat sleeps.",
    "A yellow taxi, a red house and a blue boat wake up in the harbour.",
    "Nobody remembers who was the first to laugh.",
    "A baker forgets the salt, and the whole kingdom argues about it.",
    "Time stops for everyone but the clockmaker's daughter.",
)
NUM_SHOTS = 4
GOAL_NAMED = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one script is like. `named` and `shown` count the drawable things of its logline."""

    logline: str
    script: Script | None
    error: str
    named: int
    shown: int
    is_distinct: bool
    seconds: float
    tokens: int

    @property
    def passes(self) -> bool:
        return self.script is not None and self.is_distinct and title_is_words(self.script.title)


def judge(logline: str, *, model: Model, complete: Complete, seed: int, num_shots: int = NUM_SHOTS) -> Verdict:
    """Write a script and look at it; an error is a verdict, too."""
    atoms = ground(logline, model.vocabulary).atoms()
    began = time.monotonic()
    try:
        writing = write_script(logline=logline, num_shots=num_shots, seed=seed, model=model, complete=complete)
        writing.script.validate_against(model)
        Script.from_json(writing.script.to_json()).validate_against(model)
    except Exception as error:  # every failure is counted, whatever it is
        return Verdict(
            logline=logline, script=None, error=f"{type(error).__name__}: {error}", named=len(atoms), shown=0,
            is_distinct=False, seconds=time.monotonic() - began, tokens=0,
        )  # fmt: skip
    script = writing.script
    shown = {(kind, word) for shot in script.shots for kind, word in shot.fields.items()}
    pictures = {(shot.fields["subject"], shot.fields["motion"], shot.fields["place"]) for shot in script.shots}
    narrations = {shot.narration for shot in script.shots}
    return Verdict(
        logline=logline,
        script=script,
        error="",
        named=len(atoms),
        shown=len(atoms & shown),
        is_distinct=len(pictures) == len(narrations) == len(script.shots) == num_shots,
        seconds=time.monotonic() - began,
        tokens=writing.completion_tokens,
    )


def title_is_words(title: str) -> bool:
    """Two to five words of letters, each of two or more or `A`."""
    words = title.split()
    return 2 <= len(words) <= 5 and all(word.isalpha() and (len(word) > 1 or word in {"A", "a"}) for word in words)


def table(verdicts: Sequence[Verdict], *, texts: bool) -> str:
    """The verdicts as lines for a person."""
    lines = []
    for verdict in verdicts:
        title = verdict.script.title if verdict.script else verdict.error
        mark = "ok  " if verdict.passes else "FAIL"
        shown = f"{verdict.shown}/{verdict.named}"
        lines.append(
            f"{mark} {shown:>6} {verdict.seconds:6.1f} s {verdict.tokens:5d} tok  {title}  <- {verdict.logline}"
        )
        if texts and verdict.script:
            lines += [f"        {shot.prompt}\n          {shot.narration}" for shot in verdict.script.shots]
            lines += [f"        note: {note}" for note in verdict.script.notes]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writer", default="house-writer")
    parser.add_argument("--model", default="house-video")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--home", type=Path, default=Path.home() / ".reelfarm", help="where converted weights lie")
    parser.add_argument("--texts", action="store_true", help="print every shot and narration")
    arguments = parser.parse_args()
    catalog = Catalog.load()
    entry, model = catalog.model(arguments.writer, role="writer"), catalog.model(arguments.model, role="render")
    writer = Writer(weights_dir(entry, arguments.home), **entry.engine)
    facts = writer.start()
    print(f"engine up in {facts['load_s']:.1f} s", flush=True)
    verdicts = []
    try:
        for logline in LOGLINES:
            verdicts.append(judge(logline, model=model, complete=writer.complete, seed=arguments.seed))
            print(table(verdicts[-1:], texts=arguments.texts), flush=True)
    finally:
        writer.close()
    named, shown = sum(v.named for v in verdicts), sum(v.shown for v in verdicts)
    seconds, tokens = sum(v.seconds for v in verdicts), sum(v.tokens for v in verdicts)
    summary = {
        "scripts": len(verdicts),
        "valid": sum(v.script is not None for v in verdicts),
        "distinct": sum(v.is_distinct for v in verdicts),
        "titles_in_words": sum(bool(v.script) and title_is_words(v.script.title) for v in verdicts if v.script),
        "named_things_shown": round(shown / named, 3),
        "seconds_per_script": round(seconds / len(verdicts), 2),
        "tokens_per_s": round(tokens / seconds, 1),
    }
    print(json.dumps(summary))
    return 0 if all(v.passes for v in verdicts) and shown >= GOAL_NAMED * named else 1


if __name__ == "__main__":
    sys.exit(main())
