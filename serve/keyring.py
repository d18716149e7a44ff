"""Keys of those who ask over HTTP, as somebody may see and change them: a port, and the ledger behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.errors import Forbidden, NotFound
from cluster.ledger import keys
from cluster.ledger.keys import KeySpec, Scope
from cluster.ledger.ledger import Ledger
from serve import clerk, naming
from serve.rows import KeyAsked, KeyRow, NewKey

LIMITS = ("requests_per_minute", "in_flight_s", "tokens_per_minute")


class Keyring(Protocol):
    def named(self, text: str) -> KeyRow:
        """By a part of its id. Raises NotFound, InvalidInput."""

    def keys(self, tenant: str | None) -> list[KeyRow]: ...

    def add(self, asked: KeyAsked) -> NewKey: ...

    def rotate(self, key_id: str, *, keep_old_s: float) -> NewKey: ...

    def revoke(self, key_id: str) -> KeyRow: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerKeyring:
    """`tenant` and `show` bound what is seen and made, `limits` what is made; None bounds nothing. `usual`: whose a key
    is if nobody says."""

    ledger: Ledger
    usual: str
    tenant: str | None = None
    show: str | None = None
    limits: Mapping[str, float | None] = field(default_factory=dict)

    def named(self, text: str) -> KeyRow:
        return self._seen(naming.key(self.ledger, text, tenant=self.tenant, show=self.show))

    def keys(self, tenant: str | None) -> list[KeyRow]:
        if self.tenant is not None and tenant not in (None, self.tenant):
            return []
        return [clerk.key_row(key) for key in self.ledger.keys(tenant or self.tenant, self.show)]

    def add(self, asked: KeyAsked) -> NewKey:
        """Raises InvalidInput, and Forbidden beyond the bounds."""
        tenant = asked.tenant or self.usual
        if self.tenant not in (None, tenant):
            raise Forbidden("this API key makes keys of its own tenant", field="tenant", remedy="leave tenant out")
        show = asked.show or self.show
        if self.show not in (None, show):
            raise Forbidden("this API key makes keys of its own show", field="show", remedy="leave show out")
        spec = KeySpec(
            tenant=tenant,
            name=asked.name,
            scopes=tuple(dict.fromkeys(Scope(one) for one in asked.scopes)),
            show=show,
            **{name: self._within(name, getattr(asked, name)) for name in LIMITS},
        )
        return clerk.new_key(*self.ledger.create_key(spec))

    def _within(self, name: str, asked: float | None) -> Any:
        most = self.limits.get(name)
        if most is not None and asked is not None and asked > most:
            raise Forbidden(f"this API key has a {name} of {most:g} itself", field=name, remedy="ask for no more")
        return most if asked is None else asked

    def rotate(self, key_id: str, *, keep_old_s: float) -> NewKey:
        """Raises NotFound, IllegalMove, and Forbidden for a key with more than the limits."""
        key = self._seen(key_id)
        for name, most in self.limits.items():
            has = getattr(key, name)
            if most is not None and (has is None or has > most):
                raise Forbidden(
                    f"this API key has a {name} of {most:g} itself", field=name, remedy="use a key with its limits"
                )
        return clerk.new_key(*self.ledger.rotate_key(key_id, keep_old_s=keep_old_s))

    def revoke(self, key_id: str) -> KeyRow:
        """Raises NotFound."""
        self._seen(key_id)
        return clerk.key_row(self.ledger.revoke_key(key_id))

    def _seen(self, key_id: str) -> KeyRow:
        key = self.ledger.view(lambda c: keys.find(c, key_id))
        if key is None or self.tenant not in (None, key.tenant) or self.show not in (None, key.show):
            raise NotFound("no such key", field="key", remedy="`farm keys ls` lists them")
        return clerk.key_row(key)
