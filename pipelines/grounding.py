"""What a logline names of the things that a model can draw, laid out over the shots of a film. Pure.

A logline becomes *beats* in the order of its words: each has one subject, perhaps its hue, what it does, and where.
Beats are then fitted to the number of shots, so that what was named appears, in that order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from actors.vocabulary import Mention, Vocabulary

HUE_REACH = 3  # words between a hue and the subject that it belongs to


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """One thing that the logline tells. What is None, the writer decides."""

    subject: str | None = None
    hue: str | None = None
    motion: str | None = None
    place: str | None = None
    camera: str | None = None
    is_extra: bool = False  # not told by the logline, but added to fill the film

    def atoms(self) -> frozenset[tuple[str, str]]:
        named = [(kind, getattr(self, kind)) for kind in ("subject", "hue", "motion", "place", "camera")]
        return frozenset((kind, word) for kind, word in named if word is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grounding:
    """The beats of a logline, and how it says their words itself: `names[("subject", "boat")] == "ship"`."""

    beats: tuple[Beat, ...]
    names: dict[tuple[str, str], str]

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(beat.subject for beat in self.beats if beat.subject))

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(beat.place for beat in self.beats if beat.place))

    def hue_of(self, subject: str) -> str | None:
        return next((beat.hue for beat in self.beats if beat.subject == subject and beat.hue), None)

    def atoms(self) -> frozenset[tuple[str, str]]:
        return frozenset[tuple[str, str]]().union(*(beat.atoms() for beat in self.beats))


def ground(logline: str, vocabulary: Vocabulary | None) -> Grounding:
    """The beats of a logline, none if the model takes free text or nothing in it can be drawn."""
    if vocabulary is None:
        return Grounding(beats=(), names={})
    mentions = vocabulary.mentions(logline)
    names: dict[tuple[str, str], str] = {}
    for mention in mentions:
        term = vocabulary.term(mention.kind, mention.word)
        said = mention.text.lower()
        if said in (term.word, *term.synonyms):
            names.setdefault((mention.kind, mention.word), said)
    return Grounding(beats=tuple(_settled(list(_beats(mentions)))), names=names)


def lay_out(beats: Sequence[Beat], num_shots: int) -> list[Beat]:
    """Exactly `num_shots` beats in the logline's order; those added keep only the subject of the beat they follow."""
    fitted = list(beats) or [Beat()]
    while len(fitted) > num_shots:
        fitted = _shorter(fitted)
    starts = [math.ceil(index * num_shots / len(fitted)) for index in range(len(fitted))]
    laid: list[Beat] = []
    for index, beat in enumerate(fitted):
        end = starts[index + 1] if index + 1 < len(fitted) else num_shots
        laid += [beat, *([Beat(subject=beat.subject, is_extra=True)] * (end - starts[index] - 1))]
    return laid


def _beats(mentions: Sequence[Mention]) -> Iterator[Beat]:
    beat = Beat()
    waiting: Mention | None = None  # a hue whose subject has not come yet
    for mention in mentions:
        kind, word = mention.kind, mention.word
        if kind == "hue":
            waiting = mention
        elif kind == "subject":
            if beat.subject is not None:
                yield beat
                beat = Beat()
            near = waiting is not None and mention.index - waiting.index <= HUE_REACH
            beat = replace(beat, subject=word, hue=waiting.word if waiting is not None and near else beat.hue)
            waiting = None if near else waiting
        elif getattr(beat, kind) in (None, word):
            beat = _with(beat, kind, word)
        else:
            yield beat
            beat = _with(Beat(subject=beat.subject), kind, word)
        if waiting is not None and kind != "hue" and beat.subject is not None and beat.hue is None:
            beat, waiting = replace(beat, hue=waiting.word), None
    if waiting is not None and beat.hue is None:
        beat = replace(beat, hue=waiting.word)
    if beat != Beat():
        yield beat


def _settled(beats: list[Beat]) -> Iterator[Beat]:
    """A subject keeps the hue it was first given; the first place holds from the start."""
    hues: dict[str | None, str] = {}
    for beat in beats:
        if beat.hue is not None:
            hues.setdefault(beat.subject, beat.hue)
    first_place = next((beat.place for beat in beats if beat.place), None)
    for index, beat in enumerate(beats):
        place = first_place if index == 0 else beat.place
        yield replace(beat, hue=hues.get(beat.subject), place=place)


def _shorter(beats: list[Beat]) -> list[Beat]:
    """One beat less: two neighbours that agree become one, else the beat goes that loses the fewest things."""
    for index, (one, two) in enumerate(pairwise(beats)):
        pairs = [(getattr(one, kind), getattr(two, kind)) for kind in ("subject", "hue", "motion", "place", "camera")]
        if all(a is None or b is None or a == b for a, b in pairs):
            subject, hue, motion, place, camera = (a or b for a, b in pairs)
            merged = Beat(subject=subject, hue=hue, motion=motion, place=place, camera=camera)
            return [*beats[:index], merged, *beats[index + 2 :]]

    def loss(index: int) -> tuple[int, int]:
        others = frozenset[tuple[str, str]]().union(*(b.atoms() for b in [*beats[:index], *beats[index + 1 :]]))
        return len(beats[index].atoms() - others), -index

    gone = min(range(len(beats)), key=loss)
    lost, kept = beats[gone], [*beats[:gone], *beats[gone + 1 :]]
    for kind in ("motion", "place", "camera"):  # what it did or where it was may go to another
        word = getattr(lost, kind)
        if word is not None and all(getattr(beat, kind) != word for beat in kept):
            free = next((i for i in range(len(kept) - 1, -1, -1) if getattr(kept[i], kind) is None), None)
            if free is not None:
                kept[free] = _with(kept[free], kind, word)
    return kept


def _with(beat: Beat, kind: str, word: str) -> Beat:
    changed: dict[str, Any] = {kind: word}
    return replace(beat, **changed)
