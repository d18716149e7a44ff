"""The bill held against held time, the log of events, the meters and the budgets. What `farm cost check` says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import Connection

from cluster.ledger import budget_recount, recount
from cluster.rates import usd

OF_MONEY = (
    "ledger balanced",
    "held time balanced",
    "waste is what the log says",
    "every show pays for its own",
    "meters balance",
    "budgets equal a recount",
    "no budget overshoots its bound",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """`flaws`: each as "invariant: who and how". `sums`: what was found to balance, in dollars."""

    flaws: tuple[str, ...]
    num_lines: int
    sums: dict[str, str]

    @property
    def said(self) -> str:
        by_kind = ", ".join(f"{kind} ${amount}" for kind, amount in self.sums.items())
        return f"{self.num_lines} cost lines balance: {by_kind}" if self.sums else "there are no cost lines yet"


def balance(connection: Connection) -> Balance:
    books = recount.read_books(connection)
    by_kind: Counter[str] = Counter()
    for line in books.log.lines:
        by_kind[line.kind] += line.nano
    return Balance(
        flaws=tuple(
            flaw for flaw in (*recount.flaws(books), *budget_recount.flaws(connection)) if flaw.startswith(OF_MONEY)
        ),
        num_lines=len(books.log.lines),
        sums={kind: f"{usd(nano):.9f}" for kind, nano in by_kind.items()},
    )
