"""Whom the verbs of operating ask: the ledger of FARM_HOME or, where FARM_URL is set, the farm that is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster import settings as settings_module
from cluster.errors import InvalidInput, NotFound
from cluster.settings import Settings

if TYPE_CHECKING:
    from cluster.ledger.ledger import Ledger
    from serve.keyring import Keyring
    from serve.office import Office
    from serve.shelf import Shelf


@contextmanager
def opened() -> Iterator[Office]:
    """Raises NotFound where no farm has worked yet, and what `Ledger` or the way to a farm raises."""
    settings = settings_module.load()
    if settings.url:
        from serve.remote import Remote
        from serve.remote_office import RemoteOffice

        with Remote.of(settings) as remote:
            yield RemoteOffice(remote)
        return
    from serve.books import Books, farm_runs
    from serve.foresight import Foresight

    with ledger_of(settings) as ledger:
        yield Books(
            ledger=ledger,
            farm_runs=farm_runs(settings),
            tenant=settings.tenant,
            foresight=lambda: Foresight.of_ledger(ledger, settings),
        )


@contextmanager
def keyring() -> Iterator[Keyring]:
    """The keys of those who ask. The ledger is made if need be: a key may be there before the farm has worked."""
    settings = settings_module.load()
    if settings.url:
        from serve.remote import Remote
        from serve.remote_office import RemoteKeyring

        with Remote.of(settings) as remote:
            yield RemoteKeyring(remote)
        return
    from cluster.ledger.ledger import Ledger
    from serve.keyring import LedgerKeyring

    settings.home.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.ledger)
    try:
        yield LedgerKeyring(ledger=ledger, usual=settings.tenant)
    finally:
        ledger.close()


@contextmanager
def shelf() -> Iterator[Shelf]:
    """The files of the farm. Raises NotFound where no farm has worked yet."""
    settings = settings_module.load()
    if settings.url:
        from serve.remote import Remote
        from serve.remote_office import RemoteShelf

        with Remote.of(settings) as remote:
            yield RemoteShelf(remote)
        return
    from cluster.store.opening import open_store
    from serve.shelf import LedgerShelf

    with ledger_of(settings) as ledger:
        yield LedgerShelf(ledger=ledger, store=open_store(settings), settings=settings)


@contextmanager
def ledger_of(settings: Settings) -> Iterator[Ledger]:
    """Raises NotFound where no farm has worked yet."""
    from cluster.ledger.ledger import Ledger
    from cluster.ledger.upkeep import file_of

    file = file_of(settings.ledger)
    if file is not None and not file.exists():
        raise NotFound(
            f"no farm has worked in {settings.home} yet", field="FARM_HOME",
            remedy="render something, or set FARM_HOME to where that was done",
        )  # fmt: skip
    ledger = Ledger(settings.ledger)
    try:
        yield ledger
    finally:
        ledger.close()


def here(what: str) -> Settings:
    """The settings, for what is only done where the ledger is. Raises InvalidInput where FARM_URL names another."""
    settings = settings_module.load()
    if settings.url:
        raise InvalidInput(
            f"{what} works where the ledger is, not over HTTP", field="FARM_URL",
            remedy="give the command on a machine of the farm, without FARM_URL",
        )  # fmt: skip
    return settings
