"""Optimise: which moves would pay for themselves. Proposals only: somebody asks for them, or a policy (`core.looking`).

Placement never moves what is well, so what was best when it was placed may have become worse than what is there now.
A proposal weighs what a node scores more (points, as placement gives them, for as long as the horizon) against what
the move costs (points for as long as it takes and some unrest besides). What is remembered of a place, such as its
artifacts, is a cost of moving here and not a gain. The best move comes first, each is weighed again after those before
it, and there is a bound to how many are looked at and how many are proposed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.draft import Draft
from batuta.core.fleet import Fleet
from batuta.core.load import load_of
from batuta.core.place import weigh
from batuta.core.talks import listen
from batuta.core.trusted import followed
from batuta.core.view_application import fill
from batuta.core.wish import Ask, Wish
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.care import Holder
    from batuta.core.load import Load
    from batuta.core.state import State
    from batuta.core.wish import Slot

HORIZON_MS = 3_600_000
MOVES_MAX = 20
LOOKED_AT_MAX = 5_000
OF_THE_MOVE = frozenset(("stays", "artifact"))
"""Preferences that speak for staying as such: they are part of what a move costs, not of what a place is worth."""

UNREST_POINTS, UNREST_MS = 1_600, 60_000
"""A move costs what `stays` is worth, for a minute, however quick it is: nobody moves for a trifle."""
AWAY_POINTS = 16_000
"""And ten times as much for as long as a `never-twice` instance is nowhere: it is taken away before it is given."""
START_MS = 5_000
"""How long a start takes of which nothing is known."""
FETCH_BITS_PER_S = 20_000_000
"""How fast an artifact comes over a link of which nothing is known."""


class Move(Record):
    """One instance that had better be somewhere else: what it gains, in points and seconds, and what it costs."""

    app: str
    component: str
    slot: str
    instance: str
    """`read-1-0`."""
    node: str
    to: str
    points: int
    """What the other node scores more."""
    gain: int
    """Points times seconds of the horizon."""
    cost: int
    parts: dict[str, int] = {}
    """By preference: what the other node scores more, or less."""
    percent: int = 0
    """How much more that is than what its present place scores."""
    fetch_bytes: int = 0
    takes_ms: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.app, self.component, self.slot)

    @property
    def order(self) -> tuple[int, tuple[str, str, str]]:
        """The best first."""
        return (self.cost - self.gain, self.key)

    @property
    def said(self) -> str:
        """What it gains, for people: the greatest parts first."""
        parts = sorted(self.parts.items(), key=lambda part: (-abs(part[1]), part[0]))
        return f"{self.to} scores {self.points} more, {self.percent} % ({', '.join(f'{n} {v:+}' for n, v in parts)})"


class Proposal(Record):
    """Moves in the order in which they should be made."""

    moves: tuple[Move, ...] = ()
    looked_at: int = 0
    """So many instances were weighed."""
    is_whole: bool = True
    """All that could be weighed was, and all that pays is proposed."""


class Candidate(NamedTuple):
    """An instance that is well where it is, and that may be somewhere else."""

    ask: Ask
    slot: Slot
    holder: Holder
    row: int

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.ask.app, self.ask.component.name, self.slot.name)


class Terms(NamedTuple):
    """On what terms a move is worth it."""

    horizon_ms: int = HORIZON_MS
    least_percent: int = 0
    """So much more than its present place the other one scores, at least."""
    barred: frozenset[str] = frozenset()
    """Nodes to which it must not go."""


def propose(
    state: State,
    now: int,
    *,
    horizon_ms: int = HORIZON_MS,
    moves_max: int = MOVES_MAX,
    looked_at_max: int = LOOKED_AT_MAX,
    apps: Iterable[str] | None = None,
) -> Proposal:
    """The moves that pay within the horizon, the best first; the same for the same state and instant."""
    trial = Trial(Draft(state, Fleet().refresh(state, now), now))
    terms = Terms(horizon_ms)
    found, looked_at = [], 0
    is_whole = True
    for candidate in trial.candidates(state.applications() if apps is None else sorted(apps)):
        if looked_at >= looked_at_max:
            is_whole = False
            break
        looked_at += 1
        if (move := trial.weighed(candidate, terms)) is not None:
            found.append((move, candidate))
    found.sort(key=lambda entry: entry[0].order)
    moves: list[Move] = []
    for _, candidate in found:
        if len(moves) >= moves_max:
            is_whole = False
            break
        # Those before it may have taken its place, or made it needless.
        move = trial.weighed(candidate, terms)
        if move is not None:
            moves.append(move)
            trial.lay(move, candidate)
    return Proposal(moves=tuple(moves), looked_at=looked_at, is_whole=is_whole)


class Trial:
    """Moves tried out on a draft's fleet, one after the other; `undo` puts everything back."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._laid: list[tuple[Load, int, int]] = []

    def candidates(self, apps: Iterable[str]) -> Iterable[Candidate]:
        """Instances that are well, of components of which nothing is missing or on its way."""
        return _candidates(self.draft, apps)

    def weighed(self, candidate: Candidate, terms: Terms) -> Move | None:
        """The best move of one instance, if it pays."""
        return _weighed(self.draft, candidate, terms)

    def lay(self, move: Move, candidate: Candidate) -> None:
        """As if it had moved."""
        fleet, to = self.draft.fleet, self.draft.fleet.row_of[move.to]
        load = load_of(candidate.holder.instance)
        fleet.lay(candidate.row, load, -1)
        fleet.lay(to, load, 1)
        self._laid.append((load, candidate.row, to))
        candidate.ask.here[candidate.row] -= 1
        candidate.ask.here[to] += 1

    def undo(self) -> None:
        """The fleet as it was."""
        for load, row, to in reversed(self._laid):
            self.draft.fleet.lay(to, load, -1)
            self.draft.fleet.lay(row, load, 1)
        self._laid.clear()


def _candidates(draft: Draft, apps: Iterable[str]) -> Iterable[Candidate]:
    for app in apps:
        to_run = followed(draft, app) if draft.state.application(app) is not None else None
        for released in to_run.components if to_run is not None else ():
            filled = fill(draft, app, released)
            if not filled or not all(f.is_at_rest(released.revision) for f in filled):
                continue
            ask = listen(draft, Ask(app, released, draft.fleet))
            rows = [draft.fleet.row_of[f.holders[0].node] for f in filled]
            np.add.at(ask.here, rows, 1)
            for f, row in zip(filled, rows, strict=True):
                if f.slot.node is None:
                    yield Candidate(ask, f.slot, f.holders[0], row)


def _weighed(draft: Draft, candidate: Candidate, terms: Terms) -> Move | None:
    ask, slot, holder, row = candidate
    fleet = draft.fleet
    load = load_of(holder.instance)
    fleet.lay(row, load, -1)
    rows, total, parts = weigh(Wish(ask, slot, own=(row,)), fleet, without=OF_THE_MOVE)
    fleet.lay(row, load, 1)
    here = np.flatnonzero(rows == row)
    if not here.size:
        return None  # Its node may no longer run it: that is a move that needs no proposal.
    had = int(total[here[0]])
    gains = total - had
    shut = [fleet.row_of[name] for name in sorted(terms.barred) if name in fleet.row_of]
    gains[np.isin(rows, shut)] = 0
    if not gains.size or int(gains.max()) <= 0:
        return None
    best = np.flatnonzero(gains == gains.max())
    chosen = int(best[np.argmin(fleet.rank[rows[best]])])
    to = int(rows[chosen])
    points = int(gains[chosen])
    if points * 100 < terms.least_percent * had:
        return None
    fetch_bytes = _fetch_bytes(candidate, fleet, to)
    takes_ms = _start_ms(draft, holder) + fetch_bytes * 8_000 // _bits_per_s(draft, fleet, to)
    cost = UNREST_POINTS * UNREST_MS // 1000 + points * takes_ms // 1000
    if ask.never_twice:
        cost += AWAY_POINTS * (takes_ms + int(holder.instance.lease_ms or 0)) // 1000
    gain = points * terms.horizon_ms // 1000
    if gain <= cost:
        return None
    differences = {name: int(score[chosen] - score[here[0]]) for name, score in parts.items()}
    return Move(
        app=ask.app, component=ask.component.name, slot=slot.name,
        instance=holder.instance.name.rpartition("/")[2], node=holder.node, to=fleet.names[to],
        points=points, gain=gain, cost=cost, fetch_bytes=fetch_bytes, takes_ms=takes_ms,
        parts={name: value for name, value in sorted(differences.items()) if value},
        percent=points * 100 // max(1, had),
    )  # fmt: skip


def _fetch_bytes(candidate: Candidate, fleet: Fleet, to: int) -> int:
    model = candidate.holder.instance.model
    if model is None or bool(fleet.has_artifact(model.variant.digest)[to]):
        return 0
    return int(model.variant.size_bytes)


def _bits_per_s(draft: Draft, fleet: Fleet, to: int) -> int:
    site = draft.state.site(fleet.site_names[fleet.site[to]])
    known = site.spec.uplink.bandwidth_bps if site is not None else None
    return int(known) if known else FETCH_BITS_PER_S


def _start_ms(draft: Draft, holder: Holder) -> int:
    """As long as its last start took, where its node said so."""
    report = draft.reported(holder.node, holder.instance)
    return START_MS if report is None or report.ready_after_ms is None else report.ready_after_ms
