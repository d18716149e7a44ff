"""Sentences and titles as patterns that a small writer is held to, and what makes an answer unfit. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

from actors.vocabulary import Term

# How a sentence may end. Left to itself a 135M model loses the thread after the verb, so each shape gives it a few
# function words to hold on to; the nouns are its own. Shots after the first of a scene take turns.
_THING = "(the|a|an|its|every)( [a-z]+){1,6}"
SHAPES = (
    f"(past|toward|beside|under|above|across) {_THING}",
    f"to (find|see|meet|greet|follow|look for|listen to|play with|wake) {_THING}",
    f"(like|with) {_THING}",
)
LAST_SHAPE = f"and (finds|sees|meets|dreams of|remembers|sings to|smiles at|waits for|says goodnight to) {_THING}"
FUNCTION_WORDS = ("the", "them", "they", "with", "that", "and", "through")
TITLE_LINKS = "of|and|in|at|to|for|under|beyond|above|with"
TITLE_PATTERN = rf"^(The |A |An )?[A-Z][a-z]+((( {TITLE_LINKS.replace('|', '| ')})( the| a)?)? [A-Z][a-z]+){{1,2}}$"
FREE_PATTERN = r"^[A-Z][a-z']+( [a-z']+,?){5,14}\.$"

OPENINGS = ("One day,", "One night,", "One morning,", "Once")
MIDDLES = (
    ("Then", "Now"),
    ("Soon", "Suddenly"),
    ("All at once", "Before long"),
    ("Slowly", "Quietly"),
    ("And", "Again"),
)
ENDINGS = ("At last", "In the end")

UNFINISHED = frozenset(
    re.findall(
        r"[a-z']+",
        """a an the and or but to of in on at by for with from as like who whom what which that then its
        his her their our my your is are was were be been being has have had into onto over under
        toward through across past beside while until above beneath among it's so if because very one
        where when they he she we you i will would could can not no""",
    )
)  # no sentence ends on these


def narration_pattern(*, position: int, num_shots: int, noun: str, verbs: Sequence[str], is_new: bool) -> str:
    """The sentence of one shot: an opening for its place in the film, its subject, what it does, and a free end.

    `is_new` if the subject has not been seen before.
    """
    shape = LAST_SHAPE if position == num_shots - 1 else SHAPES[position % len(SHAPES)]
    return rf"^{_head(position, num_shots, noun, verbs, is_new)} {shape}\.$"


def plain_pattern(*, position: int, num_shots: int, noun: str, verbs: Sequence[str], is_new: bool, where: str) -> str:
    """The same, ending with the place of the shot: for the first of a scene, and for a writer that failed too often.

    Left to say a place in its own words, the house writer broke words in the first sentence of three films in five.
    """
    return rf"^{_head(position, num_shots, noun, verbs, is_new)} {re.escape(where).replace(chr(92) + ' ', ' ')}\.$"


def verbs_of(term: Term, said: str | None) -> list[str]:
    """How a narrator may put a motion: as the logline said it if that is a verb of the third person, else the term's
    own names, without the side of the picture."""
    if said is not None and re.fullmatch(r"[a-z]+s( [a-z]+)?", said):
        return [re.sub(r" (right|left)$", "", said)]
    names = [re.sub(r" (right|left)$", "", name) for name in (term.word, *term.synonyms)]
    fit = [name for name in names if re.fullmatch(r"[a-z]+s( [a-z]+){0,2}", name) and not re.search("right|left", name)]
    return list(dict.fromkeys(fit))[:6] or [re.sub(r" (right|left)$", "", term.phrase)]


def flaw_of(
    text: str, *, noun: str, others: Collection[str], examples: Collection[str], known: Collection[str]
) -> str | None:
    """Why a narration cannot stand, None if it can. `known` are words that are surely words."""
    words = re.findall(r"[a-z']+", text.lower())
    if noun and words.count(noun.split()[-1]) > 1:
        return "its subject meets itself"
    if words[-1] in UNFINISHED:
        return "it breaks off"
    if any(one == two for one, two in pairwise(words)):
        return "it stutters"
    if any(len(word) > 4 and words.count(word) > 2 for word in words) or len(set(words)) < 0.6 * len(words):
        return "it repeats itself"
    if any(len(word) > 13 or _is_glued(word, known) for word in words):
        return "it has a word that is none"
    if any(_overlap(words, other) >= 5 for other in others):
        return "it repeats another shot"
    if any(_overlap(words, example) >= 4 for example in examples):
        return "it copies the example"
    return None


def title_flaw(title: str, *, bare: Collection[str], examples: Collection[str]) -> str | None:
    """Why a title cannot stand; `bare` are the words of the hero alone."""
    words = title.split()
    content = {word.lower() for word in words} - {"the", "a", "an"}
    if not 2 <= len(words) <= 5:
        return "it has not two to five words"
    if len(content) < 2 or content <= set(bare):
        return "it only names one thing"
    if len(content) < len([word for word in words if word not in {"The", "A", "An", "the", "a"}]):
        return "it repeats itself"
    if title in examples or any(len(word) > 13 for word in words):
        return "it is an example, or no title"
    return None


def _head(position: int, num_shots: int, noun: str, verbs: Sequence[str], is_new: bool) -> str:
    if position == 0:
        openings: Sequence[str] = OPENINGS
    elif position == num_shots - 1:
        openings = ENDINGS
    else:
        openings = MIDDLES[(position - 1) % len(MIDDLES)]
    vowel = noun[:1] in tuple("aeiou")
    article = ("(an|the)" if vowel else "(a|a little|the)") if is_new else "the"
    return f"({'|'.join(openings)}) {article} {noun} ({'|'.join(verbs)})"


def _is_glued(word: str, known: Collection[str]) -> bool:
    """Two words without a space, as in `themoon`: a constrained model does that when it must not end yet."""
    if word in known or word in {"another", "theatre", "theater", "within", "without"}:
        return False
    for at in range(3, len(word) - 2):
        head, tail = word[:at], word[at:]
        if (head in FUNCTION_WORDS and (tail in known or at > 3)) or tail in ("them", "they", "with", "that"):
            return True
        if min(len(head), len(tail)) > 3 and head in known and tail in known:
            return True
    return False


def _overlap(words: Sequence[str], other: str) -> int:
    """The longest run of words that both have."""
    theirs = " " + " ".join(re.findall(r"[a-z']+", other.lower())) + " "
    longest = 0
    for start in range(len(words)):
        length = longest + 1
        while start + length <= len(words) and " " + " ".join(words[start : start + length]) + " " in theirs:
            longest, length = length, length + 1
    return longest
