"""Place: which node takes a wish. Constraints say no, each with its Reason; preferences weigh what is left; names break
ties.

Both are tables (`core.constraints`, `core.preferences`), asked of all candidates at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.constraints import FILTERS, fitting
from batuta.core.preferences import scorers_for
from batuta.core.rank import Choice
from batuta.core.reasons import Reason

if TYPE_CHECKING:
    from batuta.core.fleet import Fleet, Ints
    from batuta.core.wish import Wish


class Scored(NamedTuple):
    """A node that could take a wish: what each scorer gives it, weighted."""

    total: int
    parts: dict[str, int]


def choose(wish: Wish, fleet: Fleet) -> Choice | None:
    """The best node for a wish; None when every filter table says no."""
    return choose_plainly(wish, fleet) if wish.only is not None else wish.ask.ranking(fleet).choose(wish)


def choose_plainly(wish: Wish, fleet: Fleet) -> Choice | None:
    """The same by asking everybody everything: what `choose` means, and what laws hold it to."""
    rows = wish.rows()
    for row in FILTERS:
        if not rows.size:
            return None
        rows = rows[row.mask(wish, fleet, rows)]
    if not rows.size:
        return None
    total = np.zeros(len(rows), np.int64)
    for scorer in scorers_for(wish.ask):
        total += scorer.weight * scorer.score(wish, fleet, rows)
    best = rows[total == total.max()]
    row_chosen = best[np.argmin(fleet.rank[best])]
    return Choice(int(row_chosen), int(fitting(wish, fleet, np.array([row_chosen]))[0]))


def weigh(wish: Wish, fleet: Fleet, without: frozenset[str] = frozenset()) -> tuple[Ints, Ints, dict[str, Ints]]:
    """The rows that could take a wish, what each scores in all, and by scorer; some scorers may be left out."""
    rows = wish.rows()
    for row in FILTERS:
        rows = rows[row.mask(wish, fleet, rows)]
    weighed = [s for s in scorers_for(wish.ask) if s.name not in without]
    parts = {s.name: s.weight * s.score(wish, fleet, rows) for s in weighed}
    total = np.zeros(len(rows), np.int64)
    for part in parts.values():
        total += part
    return rows, total, parts


def refusals(wish: Wish, fleet: Fleet) -> dict[str, int]:
    """How many of the nodes in question each filter turned away, in the filters' order."""
    rows = wish.rows()
    counts: dict[str, int] = {}
    for row in FILTERS:
        left = rows[row.mask(wish, fleet, rows)]
        if len(left) < len(rows):
            counts[row.code] = len(rows) - len(left)
        rows = left
    return counts


def explain(wish: Wish, fleet: Fleet, only: Ints | None = None) -> list[tuple[str, Reason | Scored]]:
    """Every node (or only some rows), in order of name: the Reason why not, or what the scorers give it."""
    rows = np.flatnonzero(fleet.present) if only is None else only
    answers: dict[int, Reason | Scored] = {}
    for f in FILTERS:
        passes = f.mask(wish, fleet, rows)
        for row in rows[~passes].tolist():
            answers[row] = Reason(code=f.code, subject=f"node/{fleet.names[row]}", detail=f.detail(wish, fleet, row))
        rows = rows[passes]
    parts = {s.name: (s.weight * s.score(wish, fleet, rows)).tolist() for s in scorers_for(wish.ask)}
    for i, row in enumerate(rows.tolist()):
        given = {name: values[i] for name, values in parts.items()}
        answers[row] = Scored(sum(given.values()), given)
    return sorted(((fleet.names[row], answer) for row, answer in answers.items()), key=lambda entry: entry[0])
