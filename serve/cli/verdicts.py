"""What a person says of a take, done to the ledger."""

from __future__ import annotations

import json

from actors.catalog import Catalog
from cluster.errors import InvalidInput, NotFound
from cluster.ledger import films
from cluster.ledger.films import Film
from cluster.ledger.ledger import Ledger
from cluster.rates import usd
from cluster.settings import Settings
from pipelines.recipes import film as recipe
from serve.books import farm_runs
from serve.cli.orders import agreed
from serve.cli.wording import dollars
from serve.revision import Editor, place_of, take_id, takes_of

SAID = {
    "circle": "is circled: the film is cut with it",
    "approve": "is approved",
    "reject": "is rejected, and drawn again with another seed",
}


def give(ledger: Ledger, settings: Settings, verb: str, text: str, *, yes: bool, as_json: bool) -> None:
    """Raises NotFound, IllegalMove, and InvalidInput if it is not confirmed."""
    film_id, key = place_of(ledger, text)
    film, name = _read(ledger, film_id), f"take {recipe.take_of(key)} of {recipe.shot_of(key)}"
    if key not in takes_of(film):
        raise NotFound(f"no {name} in the film", field="TAKE", remedy=f"`farm tasks {film.now.job.id}` lists them")
    if not yes:
        spent = film.spend_by_key.get(key)
        cost = f"{dollars(usd(spent.nano))} was spent on it" if spent else "nothing was spent on it yet"
        if as_json:
            _write(verb, film, key, done=False)
        else:
            print(f"{verb} {name}: it is drawn again; {cost}", flush=True)
        if as_json or not agreed():
            raise InvalidInput("nothing was done", field=verb, remedy="give --yes to do it")
    catalog = Catalog.load(settings.home / "models.d")
    getattr(Editor(ledger, catalog, lambda: _read(ledger, film_id)), verb)(key)
    film = _read(ledger, film_id)
    if as_json:
        _write(verb, film, key, done=True)
        return
    dead = takes_of(film)[key]["state"] == "dead"
    print(f"{name} {'is rejected for the third time, and dead' if dead else SAID[verb]}")
    if farm_runs(settings) is False:
        print(f"no farm is at work here: farm render --film {film.id} goes on with it")


def _read(ledger: Ledger, film_id: str) -> Film:
    return ledger.view(lambda c: films.read(c, film_id))


def _write(verb: str, film: Film, key: str, *, done: bool) -> None:
    task = takes_of(film)[key]
    row = {"verb": verb, "film": film.id, "take": take_id(film.id, key), "job": film.now.job.id}
    print(json.dumps({**row, "state": task["state"], "done": done}))
