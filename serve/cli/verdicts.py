"""What a person says of a take: to the ledger here, or to a farm elsewhere. Both are told and answered alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from actors.catalog import Catalog
from cluster.errors import InvalidInput, NotFound
from cluster.ledger import films
from cluster.ledger.films import Film
from cluster.ledger.ledger import Ledger
from cluster.rates import usd
from cluster.settings import Settings
from pipelines.recipes import film as recipe
from serve import remote_films
from serve.books import farm_runs
from serve.cli.orders import agreed
from serve.cli.wording import dollars
from serve.foresight import Foresight
from serve.remote import Remote
from serve.revision import Editor, place_of, take_id, takes_of

SAID = {
    "circle": "is circled: the film is cut with it",
    "approve": "is approved",
    "reject": "is rejected, and drawn again with another seed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A take, as the newest revision of its film has it."""

    film: str
    key: str
    job: str
    state: str
    cost_usd: Decimal

    @property
    def id(self) -> str:
        return take_id(self.film, self.key)

    @property
    def name(self) -> str:
        return f"take {recipe.take_of(self.key)} of {recipe.shot_of(self.key)}"


class Takes(Protocol):
    def find(self, text: str) -> Seen:
        """By its id, or as JOB/KEY. Raises NotFound, InvalidInput."""

    def give(self, verb: str, take: Seen) -> Seen:
        """Raises IllegalMove, NotReady."""

    def goes_on(self, film_id: str) -> str | None:
        """What somebody has to do so that the film does; None: nothing."""


def give(takes: Takes, verb: str, text: str, *, yes: bool, as_json: bool) -> None:
    """Raises InvalidInput if it is not confirmed, and what `takes` raises."""
    take = takes.find(text)
    if not yes:
        cost = f"{dollars(take.cost_usd)} was spent on it" if take.cost_usd else "nothing was spent on it yet"
        if as_json:
            _write(verb, take, done=False)
        else:
            print(f"{verb} {take.name}: it is drawn again; {cost}", flush=True)
        if as_json or not agreed():
            raise InvalidInput("nothing was done", field=verb, remedy="give --yes to do it")
    take = takes.give(verb, take)
    if as_json:
        _write(verb, take, done=True)
        return
    print(f"{take.name} {SAID[verb] if take.state != 'dead' else 'is rejected for the third time, and dead'}")
    if (next_step := takes.goes_on(take.film)) is not None:
        print(next_step)


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerTakes:
    ledger: Ledger
    settings: Settings

    def find(self, text: str) -> Seen:
        film_id, key = place_of(self.ledger, text)
        return self._seen(film_id, key)

    def give(self, verb: str, take: Seen) -> Seen:
        catalog = Catalog.load(self.settings.home / "models.d")
        foretold = Foresight.of_ledger(self.ledger, self.settings).of_graph
        getattr(Editor(self.ledger, catalog, lambda: self._read(take.film), foretold), verb)(take.key)
        return self._seen(take.film, take.key)

    def goes_on(self, film_id: str) -> str | None:
        if farm_runs(self.settings) is not False:
            return None
        return f"no farm is at work here: farm render --film {film_id} goes on with it"

    def _read(self, film_id: str) -> Film:
        return self.ledger.view(lambda c: films.read(c, film_id))

    def _seen(self, film_id: str, key: str) -> Seen:
        film = self._read(film_id)
        task, spend = takes_of(film).get(key), film.spend_by_key.get(key)
        if task is None:
            raise NotFound(f"no take {key} in the film", field="TAKE", remedy=f"`farm tasks {film.now.job.id}`")
        cost_usd = usd(spend.nano) if spend else Decimal(0)
        return Seen(film=film_id, key=key, job=film.now.job.id, state=task["state"], cost_usd=cost_usd)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteTakes:
    remote: Remote

    def find(self, text: str) -> Seen:
        film_id, key = remote_films.place_of(self.remote, text)
        return self._seen(self.remote.get(f"/v1/takes/{take_id(film_id, key)}"))

    def give(self, verb: str, take: Seen) -> Seen:
        return self._seen(self.remote.post(f"/v1/takes/{take.id}/{verb}"))

    def goes_on(self, film_id: str) -> str | None:
        return None

    def _seen(self, take: Mapping[str, Any]) -> Seen:
        film = self.remote.get(f"/v1/films/{take['film']}")
        return Seen(
            film=take["film"],
            key=recipe.take_key(take["shot"], take["number"]),
            job=film["revisions"][-1]["job"],
            state=take["state"],
            cost_usd=Decimal(take["cost"]["amount"]),
        )


def _write(verb: str, take: Seen, *, done: bool) -> None:
    row = {"verb": verb, "film": take.film, "take": take.id, "job": take.job, "state": take.state, "done": done}
    print(json.dumps(row))
