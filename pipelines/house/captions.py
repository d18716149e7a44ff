"""What a scene is called. The words stand in the catalog entry of the model; here they become sentences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import actors
from pipelines.house.scenes import Scene

ENTRY_PATH = Path(actors.__file__).parent / "models" / "house-video.yaml"
KINDS = ("subject", "hue", "motion", "place", "camera")

# {s} subject with article and hue, {m} motion, {p} place, {c} camera
_PATTERNS = (
    "{s} {m} {p}, {c}",
    "{s} {m} {p}. {c}",
    "{p} {s} {m}, {c}",
    "{c}: {s} {m} {p}",
    "paper theatre of {s} that {m} {p}, {c}",
)
_PATTERNS_WITHOUT_CAMERA = ("{s} {m} {p}", "{p} {s} {m}", "{s} that {m} {p}")
# words that say nothing about the picture; the text encoder learns to pass over them
_FILLERS = (
    "little",
    "cheerful",
    "lonely",
    "old",
    "brave",
    "slowly",
    "gently",
    "quietly",
    "once",
    "paper",
    "tiny",
    "happy",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    canonical: str
    phrase: str
    synonyms: tuple[str, ...]


@cache
def vocabulary() -> dict[str, dict[str, Word]]:
    """By kind and canonical word, as the catalog entry has them."""
    entry: dict[str, Any] = yaml.safe_load(ENTRY_PATH.read_text(encoding="utf-8"))
    return {
        kind: {
            name: Word(canonical=name, phrase=facts.get("phrase", name), synonyms=tuple(facts["synonyms"]))
            for name, facts in entry["vocabulary"][kind].items()
        }
        for kind in KINDS
    }


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def prompt(scene: Scene) -> str:
    """The canonical prompt of a scene, as the writer composes it."""
    words = vocabulary()
    motion, place = words["motion"][scene.motion].phrase, words["place"][scene.place].phrase
    camera = words["camera"][scene.camera].phrase
    return f"{_with_article(f'{scene.hue} {scene.subject}')} {motion} {place}, {camera}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many ways to say the same scene; half the time in canonical words alone."""
    words = vocabulary()

    def say(kind: str, name: str) -> str:
        word = words[kind][name]
        if rng.random() < 0.25:
            return str(rng.choice(word.synonyms))
        return word.phrase if rng.random() < 0.8 else word.canonical

    if rng.random() < 0.4:
        return prompt(scene)
    filler = f"{rng.choice(_FILLERS)} " if rng.random() < 0.25 else ""
    noun = f"{filler}{say('hue', scene.hue)} {say('subject', scene.subject)}"
    subject = f"the {noun}" if rng.random() < 0.25 else _with_article(noun)
    motion, place, camera = say("motion", scene.motion), say("place", scene.place), say("camera", scene.camera)
    silent = scene.camera == "still" and rng.random() < 0.5
    pattern = str(rng.choice(_PATTERNS_WITHOUT_CAMERA if silent else _PATTERNS))
    return pattern.format(s=subject, m=motion, p=place, c=camera)


@cache
def all_words() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted; the vocabulary of the tokenizer."""
    found = {"a", "an", "the", *",.:'", *_FILLERS}
    for pattern in (*_PATTERNS, *_PATTERNS_WITHOUT_CAMERA):
        found.update(word.strip(",.:") for word in pattern.split() if "{" not in word)
    for kind in vocabulary().values():
        for word in kind.values():
            for text in (word.canonical, word.phrase, *word.synonyms):
                found.update(text.replace("'", " ' ").split())
    return tuple(sorted(found))
