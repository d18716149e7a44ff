"""Scripts: grounding, narrowing, validation. The writer here babbles: it answers anything that the schema allows."""

from __future__ import annotations

import json
import random
import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as sre_parser  # type: ignore[import-not-found]
import string
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from actors.catalog import Catalog, Model
from actors.contract import Completion, Json
from cluster.errors import InvalidInput, QualityCheckFailed
from pipelines.grounding import Beat, ground, lay_out
from pipelines.narration import flaw_of, title_flaw
from pipelines.script import Scene, Script, Shot, check_logline
from pipelines.writing import write_script


@pytest.fixture(scope="module")
def house() -> Model:
    return Catalog.load().model("house-video")


class Babbler:
    """Answers at random within the schema, so that only the schema and the code hold the script together."""

    def __init__(self) -> None:
        self.schemas: list[Json] = []
        self._lock = threading.Lock()

    def __call__(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        schema: Json | None,
        seed: int,
        max_tokens: int,
        temperature: float,
        timeout_s: float,
        top_p: float = 1.0,
    ) -> Completion:
        assert schema is not None
        with self._lock:
            self.schemas.append(schema)
        text = json.dumps(_babble(schema, random.Random(seed)))
        return Completion(text=text, prompt_tokens=1, completion_tokens=1, finish_reason="stop")


def _babble(schema: Json, dice: random.Random) -> Any:
    if "enum" in schema:
        return dice.choice(schema["enum"])
    if schema["type"] == "array":
        return [_babble(item, dice) for item in schema["prefixItems"]]
    return "".join(_sample(sre_parser.parse(schema["pattern"]), dice))


def _sample(parsed: Any, dice: random.Random) -> list[str]:
    """A string that matches a parsed regular expression of the plain kind that the patterns use."""
    out: list[str] = []
    for kind, value in parsed:
        if kind is sre.LITERAL:
            out.append(chr(value))
        elif kind is sre.IN:
            out.append(dice.choice([c for c in string.ascii_letters + "'-" if _inside(c, value)]))
        elif kind is sre.MAX_REPEAT:
            low, high, inner = value
            for _ in range(dice.randint(low, min(int(high), low + 5))):
                out += _sample(inner, dice)
        elif kind is sre.SUBPATTERN:
            out += _sample(value[-1], dice)
        elif kind is sre.BRANCH:
            out += _sample(dice.choice(value[1]), dice)
    return out


def _inside(char: str, ranges: Any) -> bool:
    return any(v[0] <= ord(char) <= v[1] if k is sre.RANGE else ord(char) == v for k, v in ranges)


def _triples(script: Script) -> list[tuple[str, ...]]:
    return [tuple(shot.fields[kind] for kind in ("subject", "motion", "place")) for shot in script.shots]


@pytest.mark.parametrize("num_shots", [1, 2, 4, 7, 40])
@pytest.mark.parametrize(
    "logline",
    [
        "A red ship rocks on the ocean, then a rocket rises past the moon.",
        "A cat bounces.",
        "Grandmother's soup",
        "🚀🚀🚀",
        "قارب أحمر يبحر نحو القمر",
        "ball star boat fish bird tree house heart cloud rocket moon car cat balloon",
    ],
)
def test_no_two_shots_are_the_same_whatever_the_writer_answers(house: Model, logline: str, num_shots: int) -> None:
    writing = write_script(logline=logline, num_shots=num_shots, seed=3, model=house, complete=Babbler())
    script = writing.script
    script.validate_against(house)
    assert len(script.shots) == num_shots
    assert len(set(_triples(script))) == num_shots
    assert len({shot.narration for shot in script.shots}) == num_shots
    hues = {(shot.fields["subject"], shot.fields["hue"]) for shot in script.shots}
    assert len(hues) == len({subject for subject, _ in hues})


def test_a_script_is_about_its_logline(house: Model) -> None:
    logline = "A red ship rocks on the ocean, then a rocket rises past the moon in space."
    script = write_script(logline=logline, num_shots=4, seed=1, model=house, complete=Babbler()).script
    shown = {(kind, word) for shot in script.shots for kind, word in shot.fields.items()}
    assert ground(logline, house.vocabulary).atoms() <= shown
    first = script.shots[0].fields
    assert (first["subject"], first["hue"], first["motion"], first["place"]) == ("boat", "red", "sways", "sea")
    assert "ship rocks" in script.shots[0].narration
    assert "The ship is red in every shot." in script.continuity


def test_the_enums_never_offer_what_was_shown(house: Model) -> None:
    babbler = Babbler()
    write_script(logline="A cat.", num_shots=9, seed=1, model=house, complete=babbler)
    offered = [s["prefixItems"] for s in babbler.schemas if s["type"] == "array"]
    motions = [set(item["enum"]) for items in offered for item in items if "spins" in item["enum"] or len(items) > 1]
    assert len(motions) > 4
    assert len(set(map(frozenset, motions))) > 4


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(house: Model) -> None:
    def write(seed: int) -> str:
        return write_script(
            logline="A blue bird.", num_shots=6, seed=seed, model=house, complete=Babbler()
        ).script.to_json()

    assert write(5) == write(5)
    assert write(5) != write(6)


def test_a_logline_that_names_nothing_drawable_is_said_in_the_notes(house: Model) -> None:
    script = write_script(logline="🙂", num_shots=2, seed=1, model=house, complete=Babbler()).script
    assert "chose freely" in script.notes[0]


def test_things_left_out_for_want_of_shots_are_said_in_the_notes(house: Model) -> None:
    script = write_script(
        logline="A cat, a fish, a bird and a car", num_shots=2, seed=1, model=house, complete=Babbler()
    ).script
    assert "left out" in script.notes[0]


def test_a_model_of_free_text_gets_sentences_and_the_story_in_each_prompt() -> None:
    wan = Catalog.load().model("wan2.1-t2v-1.3b")
    script = write_script(logline="A quiet war.", num_shots=6, seed=1, model=wan, complete=Babbler()).script
    script.validate_against(wan)
    assert len(script.scenes) == 2
    assert all("A quiet war." in shot.prompt for shot in script.shots)
    assert len({shot.prompt for shot in script.shots}) == 6


def test_a_writer_that_is_always_cut_off_is_a_failure_of_quality(house: Model) -> None:
    def cut_off(*args: object, **kwargs: object) -> Completion:
        raise QualityCheckFailed("cut off")

    with pytest.raises(QualityCheckFailed):
        write_script(logline="A cat.", num_shots=2, seed=1, model=house, complete=cut_off)


@pytest.mark.parametrize(
    ("logline", "beats"),
    [
        ("A red ship sinks", [Beat(subject="boat", hue="red", motion="sinks")]),
        ("A ship, red as fire", [Beat(subject="boat", hue="red")]),
        (
            "A cat jumps, then spins in space",
            [Beat(subject="cat", motion="bounces", place="space"), Beat(subject="cat", motion="spins", place="space")],
        ),
        (
            "A green fish and a bird in the woods",
            [Beat(subject="fish", hue="green", place="forest"), Beat(subject="bird", place="forest")],
        ),
        ("Everything turns blue", [Beat(motion="spins", hue="blue")]),
        ("Nothing to see", []),
    ],
)
def test_a_logline_becomes_beats_in_its_own_order(house: Model, logline: str, beats: list[Beat]) -> None:
    assert list(ground(logline, house.vocabulary).beats) == beats


@pytest.mark.parametrize("num_shots", range(1, 9))
def test_beats_are_laid_out_over_exactly_the_shots_asked_for(num_shots: int) -> None:
    beats = [Beat(subject=word) for word in ("cat", "fish", "bird")]
    laid = lay_out(beats, num_shots)
    assert len(laid) == num_shots
    told = [beat.subject for beat in laid if not beat.is_extra]
    assert told == [word for word in ("cat", "fish", "bird") if word in told]
    assert len(told) == min(3, num_shots)


@pytest.mark.parametrize(
    ("logline", "said"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param(" \n\t ", "empty", id="blank"),
        pytest.param("x" * 10_000, "10,000 characters", id="10 kB"),
        pytest.param("a cat\0", "control character", id="nul"),
        pytest.param("a \x1b[31mcat", "control character", id="escape"),
        pytest.param("a \ud800 cat", "control character", id="surrogate"),
    ],
)
def test_a_bad_logline_is_refused_with_its_field(house: Model, logline: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        write_script(logline=logline, num_shots=4, seed=1, model=house, complete=Babbler())
    assert caught.value.field == "logline"
    assert caught.value.remedy


@pytest.mark.parametrize("num_shots", [0, -1, 41])
def test_a_number_of_shots_out_of_range_is_refused(house: Model, num_shots: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        write_script(logline="A cat.", num_shots=num_shots, seed=1, model=house, complete=Babbler())
    assert caught.value.field == "shots"


def test_lines_of_a_logline_are_joined() -> None:
    assert check_logline("  A cat\n\tsleeps. ") == "A cat sleeps."


def _script(house: Model) -> Script:
    fields = {"subject": "boat", "hue": "red", "motion": "rises", "place": "sea", "camera": "still"}
    shots = tuple(
        Shot(id=f"sh0{n}0", fields={**fields, "motion": m}, prompt=house.caption({**fields, "motion": m}), narration=m)
        for n, m in enumerate(("rises", "sinks"), 1)
    )
    scene = Scene(heading="Sea", place="sea", shots=shots)
    return Script(title="Red Tide", logline="A ship", model=house.id, seed=1, scenes=(scene,))


def test_a_script_survives_its_json(house: Model) -> None:
    script = _script(house)
    assert Script.from_json(script.to_json()) == script
    assert Script.from_json(script.to_json()).to_json() == script.to_json()
    script.validate_against(house)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        pytest.param(
            lambda d: d["scenes"][0]["shots"][1].update(narration=""), "scenes[0].shots[1].narration", id="empty"
        ),
        pytest.param(
            lambda d: d["scenes"][0]["shots"][1].update(narration=3), "scenes[0].shots[1].narration", id="type"
        ),
        pytest.param(lambda d: d["scenes"][0]["shots"][0].pop("prompt"), "scenes[0].shots[0].prompt", id="missing"),
        pytest.param(lambda d: d["scenes"][0].update(mood="x"), "scenes[0].mood", id="unknown"),
        pytest.param(lambda d: d.update(scenes=[]), "scenes", id="no scenes"),
        pytest.param(lambda d: d.update(seed=-1), "seed", id="seed"),
        pytest.param(
            lambda d: d["scenes"][0]["shots"][1]["fields"].update(subject="cactus"),
            "scenes[0].shots[1].fields.subject",
            id="not drawable",
        ),
        pytest.param(
            lambda d: d["scenes"][0]["shots"][1].update(prompt="a cat"), "scenes[0].shots[1].prompt", id="other prompt"
        ),
        pytest.param(lambda d: d["scenes"][0]["shots"][1].update(id="sh010"), "scenes[0].shots[1].id", id="twice"),
        pytest.param(lambda d: d.update(model="wan"), "model", id="model"),
    ],
)
def test_an_edited_script_is_refused_by_the_path_of_the_field(house: Model, change: Any, path: str) -> None:
    data = json.loads(_script(house).to_json())
    change(data)
    with pytest.raises(InvalidInput) as caught:
        Script.from_json(json.dumps(data)).validate_against(house)
    assert caught.value.field == path


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "3"])
def test_what_is_no_script_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Script.from_json(text)


@pytest.mark.parametrize(
    ("line", "flaw"),
    [
        ("Then the cat rises past the sleeping hills.", None),
        ("Then the cat rises past the.", "breaks off"),
        ("Then the cat rises rises past hills.", "stutters"),
        ("Then the cat rises like a cat.", "meets itself"),
        ("Then the cat rises past themoon.", "none"),
        ("Then the cat spins until every window begins to glow.", "copies"),
        ("Soon the fish rises past the old sleepy town hall.", "repeats another"),
        ("And hills rises past hills, over hills now.", "repeats itself"),
    ],
)
def test_narrations_with_a_flaw_are_found_out(line: str, flaw: str | None) -> None:
    found = flaw_of(
        line,
        noun="red cat",
        others=["One day the fish rises past the old sleepy town."],
        examples=["Then the lamp spins until every window begins to glow."],
        known={"moon", "cat"},
    )
    assert (found is None) if flaw is None else flaw in str(found)


@pytest.mark.parametrize(
    ("title", "is_fit"),
    [("The Last Red Ship", True), ("The Red Ship", False), ("The Rocket", False), ("Song of the Ice", False)],
)
def test_a_title_is_more_than_its_hero(title: str, is_fit: bool) -> None:
    assert (title_flaw(title, bare={"red", "ship"}, examples={"Song of the Ice"}) is None) == is_fit


def test_the_sampler_of_this_file_obeys_its_patterns() -> None:
    pattern = r"^(The |A )?[A-Z][a-z]+( (of|in) [a-z]+){1,2}\.$"
    for seed in range(50):
        assert re.fullmatch(pattern, _babble({"type": "string", "pattern": pattern}, random.Random(seed)))
