"""From a logline to a script: a language model decides, shot by shot; code only keeps the film about its logline.

1. `ground` finds what the logline names and the video model can draw; `lay_out` spreads it over the shots.
2. For each shot the writer picks what is still open (subject, hue, place, motion, camera) from enums, narrowed so that
   no (subject, motion, place) comes twice. It sees the logline and the shots so far.
3. The title, and each narration as soon as its shot is decided, run beside it in the engine's batch.
4. Answers with a flaw are asked for again with another seed, a bounded number of times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from actors.catalog import Model
from actors.contract import Complete, Completion, Json
from cluster.errors import InvalidInput, QualityCheckFailed
from pipelines.casting import Casting, Picture
from pipelines.grounding import ground
from pipelines.narration import FREE_PATTERN, TITLE_PATTERN, flaw_of, narration_pattern, plain_pattern, title_flaw
from pipelines.script import MAX_SHOTS, Scene, Script, Shot, check_logline

NUM_TRIES = 4
SHOTS_IN_VIEW = 6
TIMEOUT_S = 300.0  # of one request, on a machine that is busy with other things
TOP_P = 0.9  # cuts the tail, where a small model's broken words come from
NUM_AT_ONCE = 8

DIRECT = "You direct a picture book film, shot by shot. Each shot continues the story."
NAME = "You name picture books. A title says what is special in the story."
NARRATE = "You write the narration of a picture book. One short, plain and poetic sentence for each picture."
TITLES = (
    ("A yellow balloon looks for a friend above the town.", "A Friend Above the Rooftops"),
    ("Two whales sing until the ice breaks.", "Song of the Ice"),
    ("A tired tailor sews a coat for the winter.", "The Warmest Coat"),
)
OF_PLACES = (  # story, picture, sentence; they take turns, so that not all sound alike
    (
        "An old kite looks for a friend.",
        "a yellow kite flies over a green meadow",
        "One morning, a yellow kite flies over the green hills and the sleeping cows.",
    ),
    (
        "A kettle runs away to sea.",
        "a silver kettle rolls in a harbour",
        "Soon a silver kettle rolls among the ropes and barrels of the harbour.",
    ),
    (
        "Two boots lose each other.",
        "a brown boot waits in the snowy mountains",
        "Then the brown boot waits under a pine, alone with the snow.",
    ),
)
OF_DEEDS = (  # one for each shape of a sentence, in the order of `SHAPES`
    ("A lamp is afraid of the dark.", "a green lamp spins", "Then the green lamp spins past every window of the town."),
    ("A snowman wants to see summer.", "a snowman wanders", "Soon the snowman wanders to find a warm blue river."),
    ("A leaf runs away.", "a brown leaf falls", "Slowly the leaf falls like a feather from a sleeping bird."),
)
OF_ENDS = (
    ("Mother bear bakes bread.", "a brown bear waits", "At last the bear waits and smiles at the golden bread."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing:
    """A script and what it took to write."""

    script: Script
    prompt_tokens: int
    completion_tokens: int
    num_requests: int


def write_script(*, logline: str, num_shots: int, seed: int, model: Model, complete: Complete) -> Writing:
    """A valid script for `model`; the same arguments give the same script if `complete` is deterministic.

    Raises InvalidInput (logline, num_shots, seed), QualityCheckFailed, and whatever `complete` raises.
    """
    logline = check_logline(logline)
    if not 1 <= num_shots <= MAX_SHOTS:
        raise InvalidInput(
            f"shots must be from 1 to {MAX_SHOTS}, got {num_shots}", field="shots", remedy=f"use 1 to {MAX_SHOTS}"
        )
    if not 0 <= seed < 2**63:
        raise InvalidInput(f"seed must be from 0 to 2^63-1, got {seed}", field="seed", remedy="use another number")
    with ThreadPoolExecutor(max_workers=NUM_AT_ONCE, thread_name_prefix="writing") as pool:
        room = _Room(logline=logline, num_shots=num_shots, seed=seed, model=model, complete=complete, pool=pool)
        script = room.write()
        script.validate_against(model)
        return Writing(
            script=script,
            prompt_tokens=sum(answer.prompt_tokens for answer in room.answers),
            completion_tokens=sum(answer.completion_tokens for answer in room.answers),
            num_requests=len(room.answers),
        )


class _Room:
    """The writing of one script."""

    def __init__(
        self, *, logline: str, num_shots: int, seed: int, model: Model, complete: Complete, pool: ThreadPoolExecutor
    ) -> None:
        self.logline, self.num_shots, self.seed, self.model = logline, num_shots, seed, model
        self._complete, self._pool = complete, pool
        self.casting = Casting(ground(logline, model.vocabulary), model.vocabulary, num_shots)
        self.known = self.casting.known_words(logline)
        self.answers: list[Completion] = []

    def write(self) -> Script:
        title = self._pool.submit(self._title)
        told: list[Future[str]] = []
        for index in range(self.num_shots):
            picture = self._direct(index)
            told.append(self._pool.submit(self._narrate, picture, 0))
        narrations: list[str] = []
        for picture, future in zip(self.casting.pictures, told, strict=True):
            narrations.append(self._settle(picture, future.result(), narrations))
        return Script(
            title=title.result(),
            logline=self.logline,
            model=self.model.id,
            seed=self.seed,
            continuity=tuple(self.casting.continuity(self.logline)),
            notes=tuple(self.casting.notes()),
            scenes=tuple(self._scenes(narrations)),
        )

    # -- what the language model decides --------------------------------------------------------------------------

    def _direct(self, index: int) -> Picture:
        """Decide one shot: the writer picks what is open, with the shots so far in view."""
        drawable: Json = self.model.prompt_schema()["properties"]
        options = self.casting.options(index)
        schema = drawable["prompt"] if self.model.vocabulary is None else _choice(drawable, options)
        if self.model.vocabulary is not None and not options:
            return self.casting.decide(index, {})
        seen = [f"Shot {picture.index + 1}: {picture.sentence}" for picture in self.casting.pictures[-SHOTS_IN_VIEW:]]
        asked = "\n".join([f"Story: {self.logline}", *seen, f"Shot {index + 1}: {self.casting.asked(index)}"])
        chat = [*self.casting.examples(list(options)), ("user", asked)]
        for attempt in range(NUM_TRIES):
            purpose = f"shot|{index}|{attempt}"
            answer = self._ask(DIRECT, chat, schema, purpose=purpose, max_tokens=120, temperature=1.0)
            if answer:
                named = zip(options, answer, strict=True) if options else [("prompt", answer)]
                return self.casting.decide(index, dict(named))
        raise QualityCheckFailed(f"the writer could not decide shot {index + 1}", remedy="use another seed")

    def _title(self) -> str:
        chat = [
            turn for story, title in TITLES for turn in (("user", f"Story: {story}"), ("assistant", json.dumps(title)))
        ]
        chat.append(("user", f"Story: {self.logline}"))
        schema = {"type": "string", "pattern": TITLE_PATTERN}
        flaw: str | None = None
        for attempt in range(2 * NUM_TRIES):
            purpose, temperature = f"title|{attempt}", 0.4 + 0.1 * attempt
            title = str(self._ask(NAME, chat, schema, purpose=purpose, max_tokens=32, temperature=temperature))
            flaw = title_flaw(title, bare=self.casting.bare_hero, examples={title for _, title in TITLES})
            if title and flaw is None:
                return title
        raise QualityCheckFailed(f"the writer found no title: {flaw}", remedy="use another seed")

    def _narrate(self, picture: Picture, attempt: int) -> str:
        """One narration, "" if it was cut off."""
        story, drawn, sentence = self._example(picture)
        chat = [
            ("user", f"Story: {story}\nPicture: {drawn}"),
            ("assistant", json.dumps(sentence)),
            ("user", f"Story: {self.logline}\nPicture: {picture.told}"),
        ]
        schema = {"type": "string", "pattern": self._pattern(picture, plain=attempt == NUM_TRIES)}
        purpose = f"narration|{picture.index}|{attempt}"
        return str(self._ask(NARRATE, chat, schema, purpose=purpose, max_tokens=64, temperature=0.5 + 0.1 * attempt))

    def _example(self, picture: Picture) -> tuple[str, str, str]:
        """The example that has the shape of the sentence that is asked for."""
        if picture.starts_scene:
            return OF_PLACES[picture.index % len(OF_PLACES)]
        return OF_ENDS[0] if picture.index == self.num_shots - 1 else OF_DEEDS[picture.index % len(OF_DEEDS)]

    def _settle(self, picture: Picture, line: str, others: Sequence[str]) -> str:
        """The line if it is fit to stand beside the earlier ones, else another one."""
        examples = [sentence for _, _, sentence in (*OF_PLACES, *OF_DEEDS, *OF_ENDS)]
        for attempt in range(1, NUM_TRIES + 1):
            if line and flaw_of(line, noun=picture.noun, others=others, examples=examples, known=self.known) is None:
                return line
            line = self._narrate(picture, attempt)
        if not line or line in others:
            raise QualityCheckFailed(f"the writer found no narration for shot {picture.index + 1}")
        return line

    # -- the shape of it ------------------------------------------------------------------------------------------

    def _pattern(self, picture: Picture, *, plain: bool) -> str:
        if self.model.vocabulary is None:
            return FREE_PATTERN
        said: dict[str, Any] = {"noun": picture.noun, "verbs": picture.verbs, "is_new": picture.is_new}
        place: dict[str, Any] = {"position": picture.index, "num_shots": self.num_shots}
        if plain or picture.starts_scene:
            return plain_pattern(**said, **place, where=picture.where)
        return narration_pattern(**said, **place)

    def _ask(
        self,
        system: str,
        chat: Sequence[tuple[str, str]],
        schema: Json,
        *,
        purpose: str,
        max_tokens: int,
        temperature: float,
    ) -> Any:
        """The decoded answer, "" if it was cut off: the caller tries another seed."""
        messages = [{"role": "system", "content": system}]
        messages += [{"role": role, "content": content} for role, content in chat]
        try:
            answer = self._complete(
                messages,
                schema=schema,
                seed=_seed(self.seed, self.logline, purpose),
                max_tokens=max_tokens,
                temperature=temperature,
                timeout_s=TIMEOUT_S,
                top_p=TOP_P,
            )
        except QualityCheckFailed:
            return ""
        self.answers.append(answer)
        return json.loads(answer.text)

    def _scenes(self, narrations: Collection[str]) -> list[Scene]:
        scenes: list[Scene] = []
        for picture, narration in zip(self.casting.pictures, narrations, strict=True):
            shot = Shot(
                id=f"sh{(picture.index + 1) * 10:03d}",
                fields=picture.fields,
                prompt=self.casting.prompt(picture, self.model, self.logline),
                narration=narration,
            )
            if scenes and not picture.starts_scene:
                scenes[-1] = scenes[-1].model_copy(update={"shots": (*scenes[-1].shots, shot)})
            else:
                scenes.append(Scene(heading=picture.heading, place=picture.place, shots=(shot,)))
        return scenes


def _choice(drawable: Json, options: Mapping[str, Sequence[str]]) -> Json:
    """An array with one word of each kind that is open: half the tokens of an object."""
    items = [{**drawable[kind], "enum": list(words)} for kind, words in options.items()]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:7], "big")
