"""Films and takes of a farm that is elsewhere, by the names that `serve.revision` knows here."""

from __future__ import annotations

from urllib.parse import quote

from actors.contract import Json
from cluster.errors import InvalidInput, NotFound
from pipelines.recipes import film as recipe
from serve.remote import Remote
from serve.revision import film_and_key


def film_named(remote: Remote, text: str) -> Json:
    """By its id, or by a job that it is or was made by. Raises NotFound, InvalidInput."""
    if text.startswith("film_"):
        return remote.get(f"/v1/films/{quote(text, safe='')}")  # type: ignore[no-any-return]
    return film_of(remote, remote.get("/v1/names/jobs", part=text, tasks=False)["job"])


def film_of(remote: Remote, job_id: str) -> Json:
    """Raises NotFound."""
    after, more = None, True
    while more:
        page = remote.get("/v1/films", after=after, limit=100)
        for film in page["data"]:
            if any(revision["job"] == job_id for revision in film["revisions"]):
                return film  # type: ignore[no-any-return]
        after, more = page["last_id"], page["has_more"]
    raise NotFound(f"{job_id} makes no film", field="FILM", remedy="`farm ls` lists jobs; render it once more")


def place_of(remote: Remote, text: str) -> tuple[str, str]:
    """(the id of its film, the key of the take). Raises NotFound, InvalidInput."""
    film_id, key = film_and_key(text.strip().lower())
    if film_id != "film_none":
        return film_id, key
    head, slash, key = text.partition("/")
    if slash and head.startswith("film_"):
        return head, key
    where = remote.get("/v1/names/jobs", part=text)
    if where["task"] is None or not recipe.take_of(where["task"]):
        raise InvalidInput(f"{text} is no take", field="TAKE", remedy="name one as in JOB/sh010.t2")
    return str(film_of(remote, where["job"])["id"]), where["task"]
