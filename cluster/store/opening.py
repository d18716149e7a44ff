"""Which store the settings mean, opened: every composition root asks here and nowhere else."""

from __future__ import annotations

from cluster.settings import Settings
from cluster.store.directory import DirectoryStore
from cluster.store.port import Store


def open_store(settings: Settings) -> Store:
    """Raises StoreUnavailable, InvalidSettings."""
    return DirectoryStore(settings.store_dir)
