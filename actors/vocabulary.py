"""The words that a model can draw, and how a free sentence names them. Pure, torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
MAX_PHRASE_WORDS = 6
DETERMINERS = frozenset(["a", "an", "the", "one", "its", "his", "her", "their", "my", "our", "your", "of"])
PREPOSITIONS = frozenset(
    ["in", "on", "at", "over", "under", "among", "between", "by", "across", "through", "into", "above", "along", "near"]
)
VAGUE = frozenset({"deep", "heat", "still", "top"})  # alone they are rarely what the phrase means
IRREGULAR = {  # present -> past and participle; regular forms are derived
    "rise": "rose risen", "sink": "sank sunk", "spin": "spun", "swim": "swam swum", "fly": "flew flown",
    "grow": "grew grown", "fall": "fell fallen", "drive": "drove driven", "go": "went gone", "come": "came",
    "swing": "swung", "shrink": "shrank shrunk", "leap": "leapt", "run": "ran", "ride": "rode ridden",
    "leave": "left", "dive": "dove", "shake": "shook shaken", "blow": "blew blown", "slide": "slid",
}  # fmt: skip


Owners = tuple[tuple[str, str], ...]  # (kind, word)


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One drawable thing: its `word` (the enum value), its `phrase` in captions, and other names for it."""

    word: str
    phrase: str
    synonyms: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # names that only ground: no narrator and no model uses them


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """Where a text names a term: `text[start:end]`, at word `index`."""

    kind: str
    word: str
    text: str
    index: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Terms by kind (`subject`, `hue`, `motion`, `place`, `camera`), as the catalog entry has them."""

    terms: Mapping[str, tuple[Term, ...]]
    template: str  # of captions: `{kind}`, or `{a_kind_kind}` for words after an article
    _index: dict[tuple[str, ...], Owners] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index: dict[tuple[str, ...], dict[str, str]] = {}
        for kind, terms in self.terms.items():
            for term in terms:
                for name in _names(term, kind):
                    for form in _forms(name, kind):
                        index.setdefault(form, {}).setdefault(kind, term.word)
        object.__setattr__(self, "_index", {form: tuple(owners.items()) for form, owners in index.items()})

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.terms)

    def words(self, kind: str) -> tuple[str, ...]:
        return tuple(term.word for term in self.terms[kind])

    def term(self, kind: str, word: str) -> Term:
        """Raises KeyError if the word is not drawable."""
        for term in self.terms[kind]:
            if term.word == word:
                return term
        raise KeyError(f"no {kind} {word!r}")

    def mentions(self, text: str) -> list[Mention]:
        """Everything drawable that `text` names, in order, longest phrases first; plurals and verb forms count."""
        spans = [(match.group().lower().replace("’", "'"), match) for match in WORD.finditer(text)]
        words = [word for word, _ in spans]
        found: list[Mention] = []
        at = 0
        while at < len(words):
            step = 1
            for length in range(min(MAX_PHRASE_WORDS, len(words) - at), 0, -1):
                owners = self._index.get(tuple(words[at : at + length]), ())
                after = self._index.get(tuple(words[at + length : at + length + 1]), ())
                owner = _fitting(owners, words[at - 1] if at else "", after)
                if owner is not None:
                    start, end = spans[at][1].start(), spans[at + length - 1][1].end()
                    kind, word = owner
                    found.append(Mention(kind=kind, word=word, text=text[start:end], index=at, start=start, end=end))
                    step = length
                    break
            at += step
        return found

    def fields(self, text: str) -> dict[str, str] | None:
        """The first term of each kind that `text` names; None if it names nothing that can be drawn."""
        named: dict[str, str] = {}
        for mention in self.mentions(text):
            named.setdefault(mention.kind, mention.word)
        return named or None

    def sentence(self, fields: Mapping[str, str]) -> str:
        """The caption of a shot, in the words that the model was trained on."""
        phrases = {kind: self.term(kind, fields[kind]).phrase for kind in self.kinds}
        return PLACEHOLDER.sub(lambda match: _filled(match.group(1), phrases), self.template)

    def summary(self) -> dict[str, list[str]]:
        return {kind: list(self.words(kind)) for kind in self.kinds}

    @classmethod
    def from_yaml(cls, entry: Mapping[str, Any]) -> Vocabulary:
        """From a catalog entry's `template` and `vocabulary: {kind: {word: {phrase:, synonyms: [...], also: [...]}}}`.

        The model was trained on `synonyms` too, but not on `also`.
        Raises KeyError, TypeError, AttributeError.
        """
        terms = {
            kind: tuple(
                Term(
                    word=str(word),
                    phrase=str(facts.get("phrase", word)),
                    synonyms=_strings(facts.get("synonyms", ())),
                    also=_strings(facts.get("also", ())),
                )
                for word, facts in words.items()
            )
            for kind, words in entry["vocabulary"].items()
        }
        return cls(terms=terms, template=str(entry["template"]))


def with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


def _filled(placeholder: str, phrases: Mapping[str, str]) -> str:
    """`{motion}` is the phrase of that kind, `{a_hue_subject}` two of them after an article."""
    if placeholder in phrases:
        return phrases[placeholder]
    return with_article(" ".join(phrases[kind] for kind in placeholder.removeprefix("a_").split("_")))


def _strings(items: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(item) for item in items)


def _words(text: str) -> list[str]:
    return [match.group().lower().replace("’", "'") for match in WORD.finditer(text)]


def _names(term: Term, kind: str) -> Iterator[tuple[str, ...]]:
    """A term's names as words; a place also without its preposition, so that any other may stand before it."""
    for name in (term.word, term.phrase, *term.synonyms, *term.also):
        words = tuple(_words(name))
        if words and not (len(words) == 1 and words[0] in VAGUE):
            yield words
        if kind == "place":
            rest = words[1:] if words[:1] and words[0] in PREPOSITIONS else words
            rest = rest[1:] if rest[:1] and rest[0] in DETERMINERS else rest
            if rest and not (len(rest) == 1 and rest[0] in VAGUE):
                yield rest


def _fitting(owners: Owners, before: str, after: Owners) -> tuple[str, str] | None:
    """One meaning of a word that may have several: a deed never follows an article, a hue stands before a thing."""
    by_kind = dict(owners)
    if before in DETERMINERS:
        by_kind.pop("motion", None)
    if "hue" in by_kind and "motion" in by_kind:
        by_kind.pop("motion" if any(kind in {"subject", "hue"} for kind, _ in after) else "hue")
    if "motion" in by_kind and "subject" in by_kind:
        by_kind.pop("subject")
    return next(iter(by_kind.items()), None)


def _forms(words: tuple[str, ...], kind: str) -> Iterator[tuple[str, ...]]:
    if len(words) > MAX_PHRASE_WORDS:
        return
    yield words
    if kind == "motion":
        for form in sorted(_verb_forms(words[0])):
            yield (form, *words[1:])
    elif kind in {"subject", "place"}:
        for form in sorted(_noun_forms(words[-1])):
            yield (*words[:-1], form)


def _noun_forms(word: str) -> set[str]:
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return {word[:-1] + "ies", word + "'s"}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return {word + "es", word + "'s"}
    plurals = {word + "s", word + "'s"}
    return plurals | {word[:-1] + "ves", word[:-2] + "ves"} if word.endswith(("lf", "fe")) else plurals


def _verb_forms(word: str) -> set[str]:
    """Forms of a verb given in any regular present form: rocks -> rock, rocking, rocked."""
    stems = {word}
    if word.endswith("ies"):
        stems.add(word[:-3] + "y")
    if word.endswith("es"):
        stems.add(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        stems.add(word[:-1])
    if word.endswith("ing") and len(word) > 5:
        stems |= {word[:-3], word[:-3] + "e"}
        if word[-4:-3] == word[-5:-4]:
            stems.add(word[:-4])
    forms: set[str] = set(stems)
    for stem in stems:
        root = stem.removesuffix("e")
        double = stem + stem[-1] if re.fullmatch(r".*[^aeiou][aeiou][bdgklmnprt]", stem) else root
        forms |= {stem + "s", stem + "es", root + "ing", double + "ing", root + "ed", double + "ed"}
        if stem.endswith("y"):
            forms |= {stem[:-1] + "ies", stem[:-1] + "ied"}
        forms |= set(IRREGULAR.get(stem, "").split())
    return forms
