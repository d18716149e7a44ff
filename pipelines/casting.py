"""Which choices a shot leaves to the writer, and what its answer makes of the shot. No language model in here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.catalog import Model
from actors.vocabulary import Vocabulary, with_article
from pipelines.grounding import Beat, Grounding, lay_out
from pipelines.narration import verbs_of

LONG_SCENE = 4  # shots, then the film goes to another place
COMPANION_EVERY = 3  # a hero alone is met by another subject in the second of three shots
FREE_SCENE = 4
ORDER = ("subject", "place", "hue", "motion", "camera")  # in which the writer decides: who, where, then how
EXAMPLES = (
    (
        "Story: A snail wants to see the stars.\nShot 1: the snail",
        {"subject": "snail", "place": "garden", "hue": "brown", "motion": "crawls", "camera": "pans up"},
    ),
    (
        "Shot 2: the snail",
        {"subject": "snail", "place": "roof", "hue": "brown", "motion": "climbs", "camera": "tilts"},
    ),
)
FREE_EXAMPLE = (
    "Story: A snail wants to see the stars.\nShot 1:",
    "A small pink snail climbs a wet garden wall at night, seen close, under soft moonlight.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One decided shot, and the words to speak of it."""

    index: int
    fields: dict[str, str]
    sentence: str  # what it shows, without the camera
    told: str  # the same for the narrator, without the place if that has been told
    noun: str
    verbs: tuple[str, ...]
    where: str
    is_new: bool
    starts_scene: bool
    heading: str
    place: str


class Casting:
    """The film so far: who has been cast, where it is, and what may come next."""

    def __init__(self, grounding: Grounding, vocabulary: Vocabulary | None, num_shots: int) -> None:
        self.grounding, self.vocabulary, self.num_shots = grounding, vocabulary, num_shots
        self.beats = lay_out(grounding.beats, num_shots)
        self.pictures: list[Picture] = []
        self._hues: dict[str, str] = {}

    # -- before the writer is asked -------------------------------------------------------------------------------

    def options(self, index: int) -> dict[str, tuple[str, ...]]:
        """What shot `index` leaves open: two words or more of each kind. Empty for a model of free text."""
        allowed = self._allowed(index)
        kinds = sorted(allowed, key=lambda kind: ORDER.index(kind) if kind in ORDER else len(ORDER))
        return {kind: allowed[kind] for kind in kinds if len(allowed[kind]) > 1}

    def asked(self, index: int) -> str:
        """How a shot is named to the writer before it is decided."""
        if self.vocabulary is None:
            return ""
        allowed = self._allowed(index)
        if len(allowed["subject"]) > 1:
            return "who comes next?" if self.pictures else "who is the hero?"
        hue = f"{allowed['hue'][0]} " if len(allowed["hue"]) == 1 else ""
        does = f" {allowed['motion'][0]}" if len(allowed["motion"]) == 1 else ""
        return f"the {hue}{self._noun(allowed['subject'][0])}{does}"

    def examples(self, kinds: Sequence[str]) -> list[tuple[str, str]]:
        """A worked example with exactly the fields that are asked for."""
        if self.vocabulary is None:
            asked, prompt = FREE_EXAMPLE
            return [("user", asked), ("assistant", json.dumps(prompt))]
        turns: list[tuple[str, str]] = []
        for asked, fields in EXAMPLES:
            chosen = [fields[kind] for kind in kinds if kind in fields]
            turns += [("user", asked), ("assistant", json.dumps(chosen, separators=(",", ":")))]
        return turns

    def _allowed(self, index: int) -> dict[str, tuple[str, ...]]:
        if self.vocabulary is None:
            return {}
        beat = self.beats[index]
        subjects = self._subjects(index, beat)
        places = self._places(beat)
        motions = self._motions(index, beat, subjects, places)
        if not motions:  # every motion of this subject in this place was shown: go elsewhere
            places = tuple(word for word in self.vocabulary.words("place") if self._unused(subjects, (word,)))
            motions = self._unused(subjects, places[:1])
            places = places[:1]
        return {
            "subject": subjects,
            "hue": self._hue_options(beat, subjects),
            "place": places,
            "motion": motions,
            "camera": self._cameras(beat),
        }

    def _subjects(self, index: int, beat: Beat) -> tuple[str, ...]:
        assert self.vocabulary is not None
        named, cast = self.grounding.subjects, tuple(self._hues)
        everyone = self.vocabulary.words("subject")
        meets = index % COMPANION_EVERY == 1 and 1 < index + 1 < self.num_shots
        if beat.subject is not None:
            if beat.is_extra and len(named) > 1:
                return tuple(dict.fromkeys((beat.subject, named[0])))
            if beat.is_extra and self.num_shots > LONG_SCENE and meets:
                return tuple(word for word in cast if word != beat.subject) or _without(everyone, (beat.subject,))
            return (beat.subject,)
        if not cast:
            return named[:1] or everyone
        if meets:
            return cast[1:] or _without(everyone, cast)
        return cast[:1]

    def _places(self, beat: Beat) -> tuple[str, ...]:
        assert self.vocabulary is not None
        everywhere = self.vocabulary.words("place")
        if beat.place is not None:
            return (beat.place,)
        if not self.pictures:
            return everywhere
        here = self.pictures[-1].place
        run = 0
        for picture in reversed(self.pictures):
            if picture.place != here:
                break
            run += 1
        half = max(2, -(-self.num_shots // 2))
        limit = LONG_SCENE if self.grounding.places or self.num_shots > 6 else half
        if run < limit:
            return (here,)
        seen = {picture.place for picture in self.pictures} | set(self.grounding.places)
        return _without(everywhere, tuple(seen)) or _without(everywhere, (here,))

    def _motions(self, index: int, beat: Beat, subjects: tuple[str, ...], places: tuple[str, ...]) -> tuple[str, ...]:
        unused = self._unused(subjects, places)
        if beat.motion in unused:
            return (beat.motion,)
        shown = [picture.fields["motion"] for picture in self.pictures]
        later = {other.motion for other in self.beats[index + 1 :] if other.motion}
        fresh = [word for word in unused if word not in shown and word not in later]
        lately = [word for word in unused if word not in shown[-3:]]
        return tuple(fresh if len(fresh) > 1 else lately if len(lately) > 1 else unused)

    def _unused(self, subjects: tuple[str, ...], places: tuple[str, ...]) -> tuple[str, ...]:
        """Motions that none of the subjects has shown in any of the places."""
        assert self.vocabulary is not None
        seen = {
            picture.fields["motion"]
            for picture in self.pictures
            if picture.fields["subject"] in subjects and picture.place in places
        }
        return _without(self.vocabulary.words("motion"), tuple(seen))

    def _cameras(self, beat: Beat) -> tuple[str, ...]:
        assert self.vocabulary is not None
        if beat.camera is not None:
            return (beat.camera,)
        last = (self.pictures[-1].fields["camera"],) if self.pictures else ()
        return _without(self.vocabulary.words("camera"), last)

    def _hue_options(self, beat: Beat, subjects: tuple[str, ...]) -> tuple[str, ...]:
        """One hue for a subject that has one; a new subject gets one that nobody else wears."""
        assert self.vocabulary is not None
        hue = beat.hue or self._known_hue(subjects[0]) if len(subjects) == 1 else None
        if hue is not None:
            return (hue,)
        if all(self._known_hue(subject) for subject in subjects):
            return (str(self._known_hue(subjects[0])),)
        worn = {*self._hues.values(), *(beat.hue for beat in self.beats if beat.hue)}
        return _without(self.vocabulary.words("hue"), tuple(worn)) or self.vocabulary.words("hue")

    def _known_hue(self, subject: str) -> str | None:
        return self._hues.get(subject) or self.grounding.hue_of(subject)

    # -- after it has answered ------------------------------------------------------------------------------------

    def decide(self, index: int, answer: Mapping[str, str]) -> Picture:
        """Take the writer's choices for shot `index`; what an answer lacks is the first of what was allowed."""
        picture = self._free(index, answer) if self.vocabulary is None else self._drawn(index, answer, self.vocabulary)
        self.pictures.append(picture)
        return picture

    def _free(self, index: int, answer: Mapping[str, str]) -> Picture:
        sentence = answer["prompt"]
        starts = index % FREE_SCENE == 0
        return Picture(
            index=index, fields={"prompt": sentence}, sentence=sentence, told=sentence, noun="", verbs=(), where="",
            is_new=False, starts_scene=starts, heading=f"Scene {index // FREE_SCENE + 1}", place="",
        )  # fmt: skip

    def _drawn(self, index: int, answer: Mapping[str, str], vocabulary: Vocabulary) -> Picture:
        allowed = self._allowed(index)
        fields = {kind: answer.get(kind, allowed[kind][0]) for kind in vocabulary.kinds}
        subject = fields["subject"]
        is_new = subject not in self._hues
        if (hue := self._known_hue(subject)) is not None:
            fields["hue"] = hue
        self._hues[subject] = fields["hue"]
        motion, place = vocabulary.term("motion", fields["motion"]), vocabulary.term("place", fields["place"])
        noun = self._noun(subject)
        hue_said = self.grounding.names.get(("hue", fields["hue"]), fields["hue"])
        wears = is_new or self.grounding.hue_of(subject) is not None
        said = self.grounding.names.get(("motion", fields["motion"]))
        is_named = self.beats[index].motion == fields["motion"]
        verbs = tuple(verbs_of(motion, said if is_named else None))
        starts_scene = not self.pictures or self.pictures[-1].place != place.word
        return Picture(
            index=index,
            fields=fields,
            sentence=f"{with_article(f'{hue_said} {noun}')} {motion.phrase} {place.phrase}",
            told=f"{with_article(f'{hue_said} {noun}')} {verbs[0]}" + (f" {place.phrase}" if starts_scene else ""),
            noun=f"{hue_said} {noun}" if wears else noun,
            verbs=verbs,
            where=place.phrase,
            is_new=is_new,
            starts_scene=starts_scene,
            heading=place.phrase[:1].upper() + place.phrase[1:],
            place=place.word,
        )

    # -- what the film says of itself -----------------------------------------------------------------------------

    def prompt(self, picture: Picture, model: Model, logline: str) -> str:
        """The prompt of a shot; continuity is in it: the hue of the subject, or the story for free text."""
        if self.vocabulary is not None:
            return model.caption(picture.fields)
        return f"{picture.sentence} A scene of this story: {logline}"

    def continuity(self, logline: str) -> list[str]:
        if self.vocabulary is None:
            return [f"Every shot belongs to this story: {logline}"]
        cast = [f"The {self._noun(subject)} is {hue} in every shot." for subject, hue in self._hues.items()]
        places = dict.fromkeys(picture.where for picture in self.pictures)
        return [*cast, f"The film plays {' and '.join(places)}."]

    def notes(self) -> list[str]:
        if self.vocabulary is None:
            return []
        if not self.grounding.beats:
            return ["Nothing that the logline names can be drawn by the model; the writer chose freely."]
        shown = {(kind, word) for picture in self.pictures for kind, word in picture.fields.items()}
        missing = sorted(word for kind, word in self.grounding.atoms() if (kind, word) not in shown)
        return [f"Too few shots for all that the logline names; left out: {', '.join(missing)}."] if missing else []

    @property
    def bare_hero(self) -> set[str]:
        """The words of which alone no title may consist."""
        if not self.grounding.subjects:
            return set()
        hero = self.grounding.subjects[0]
        words = {hero, *self._noun(hero).split(), self._known_hue(hero) or ""}
        return words | {self.grounding.names.get(("hue", self._known_hue(hero) or ""), "")}

    def known_words(self, logline: str) -> set[str]:
        """Words that are surely words: of the vocabulary and of the logline."""
        texts = [logline.lower()]
        for kind in self.vocabulary.kinds if self.vocabulary else ():
            for term in self.vocabulary.terms[kind] if self.vocabulary else ():
                texts += [term.word, term.phrase, *term.synonyms]
        return set(re.findall(r"[a-z']+", " ".join(texts).lower())) | {"sky", "sun", "air", "earth", "world", "stars"}

    def _noun(self, subject: str) -> str:
        said = self.grounding.names.get(("subject", subject), subject)
        return said if re.fullmatch(r"[a-z]+( [a-z]+)*", said) else subject


def _without(words: tuple[str, ...], gone: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in gone)
