"""Rank: the order of all nodes for one component, kept right while its instances are placed one after the other.

Placing an instance changes what the tables say of few rows, and each row of the tables says of how few (`Reach`). So
everything is asked once, what cannot change is never asked again, and what can is asked for many rows in one go: what
would each of the best say if it took the next one? While the instances are placed, those answers are looked up.

What comes out is what asking everything afresh for every instance gives (`place.choose_plainly`); a law says so.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.constraints import FILTERS, fitting, reach_of, says
from batuta.core.preferences import scorers_for
from batuta.core.wish import Slot, Wish

if TYPE_CHECKING:
    from batuta.core.constraints import Reach
    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.load import Load
    from batuta.core.wish import Ask

REFUSED = -(2**63)
FEW = 2
"""For so few instances the best is simply looked for."""
AHEAD = 64
"""How many of the best are looked at together at least."""
_WIDTH: dict[Reach, int] = {"fixed": 0, "row": 1, "site": 2, "fleet": 3}


class Choice(NamedTuple):
    """The node chosen, as a row, and the variant that fits there."""

    row: int
    variant: int


class Ranking:
    """Every node that could ever take an instance of one component: what it scores now, as one sortable number."""

    def __init__(self, ask: Ask, fleet: Fleet) -> None:
        self.ask = ask
        self.fleet = fleet
        self.asked = 0
        """Counts the rows that were scored; for those who want to know what placing costs."""
        self.plain = Wish(ask, Slot(""))
        filters = [(f, reach_of(f, ask)) for f in FILTERS if says(f, ask)]
        scorers = [(s, reach_of(s, ask)) for s in scorers_for(ask) if says(s, ask)]
        self._filters = [f for f, reach in filters if reach != "fixed"]
        self._slot_filters = [f for f, reach in filters if reach == "fixed" and f.by_slot]
        self._scorers = [s for s, reach in scorers if reach != "fixed"]
        self._span = fleet.capacity + 1
        self._slot_scorers = [s for s, reach in scorers if reach == "fixed" and s.by_slot]
        self._width = max((_WIDTH[reach] for _, reach in (*filters, *scorers)), default=0)
        rows = self.plain.rows()
        for f, reach in filters:
            if reach == "fixed" and rows.size:
                rows = rows[f.mask(self.plain, fleet, rows)]
        self.rows = rows
        self._position = np.full(fleet.capacity, -1, np.int64)
        self._position[rows] = np.arange(len(rows))
        self._fixed = np.zeros(len(rows), np.int64)
        """What nothing changes: rows that depend on the slot aside."""
        self._slotted = np.zeros(len(rows), np.int64)
        """What those say for a slot that may be anywhere and that nobody fills."""
        for s, reach in scorers:
            if reach == "fixed" and rows.size:
                score = s.weight * s.score(self.plain, fleet, rows)
                if s.by_slot:
                    self._slotted += score
                else:
                    self._fixed += score
        self._order: Ints | None = None
        self._begins: Ints | None = None
        self._base = (self._fixed + self._slotted) * self._span + (self._span - 1 - fleet.rank[rows])
        """The key of a plain wish as far as nothing changes it."""
        keys, variants = self.evaluate(np.arange(len(rows)), self.plain)
        self.keys, self.variants = keys, variants.copy()  # Whoever answered looks it up again.
        self._moves, self._seen = fleet.moves, len(fleet.moves)
        self._ladder: _Ladder | None = None

    def choose(self, wish: Wish) -> Choice | None:
        """The best node for a wish as things are now; None when nobody can take it."""
        if self._moves is not self.fleet.moves:
            self.__init__(self.ask, self.fleet)  # type: ignore[misc]
        self._catch_up()
        if wish is self.plain:
            return self._best()
        own = [row for row in (*wish.own, wish.before, wish.shun) if row is not None]
        if not own and wish.slot.is_free and wish.only is None:
            return self._best()
        among = self._in_question(wish)
        special = self._reached(own)
        kept, kept_variants = self.keys[special], self.variants[special]
        self.keys[special], self.variants[special] = self.evaluate(special, wish)
        found = self._pick(among)
        self.keys[special], self.variants[special] = kept, kept_variants
        return found

    def choose_run(self, most: int) -> list[tuple[Choice, Load]]:
        """What `choose` would say of plain wishes, one after the other, each placed with its load before the next: as
        many of them as are known without looking further, no row twice. Whoever asks places all of them at once."""
        if self._moves is not self.fleet.moves:
            self.__init__(self.ask, self.fleet)  # type: ignore[misc]
        self._catch_up()
        if self._has_ladder():
            assert self._ladder is not None
            return self._ladder.run(most)
        found = self._pick(None)
        return [] if found is None else [(found, self.ask.load(found.variant, found.row))]

    def evaluate(self, at: Ints, wish: Wish) -> tuple[Ints, Ints]:
        """For some places of `rows`: total and name as one number, or REFUSED; and the variant that fits."""
        fleet, left, is_plain = self.fleet, self.rows[at], wish is self.plain
        self.asked += len(left)
        good: Ints | None = None
        passes: Bools | None = None
        for f in self._filters if is_plain else (*self._slot_filters, *self._filters):
            passes = f.mask(wish, fleet, left) if passes is None else passes & f.mask(wish, fleet, left)
        mine = at
        if passes is not None and not passes.all():
            good = passes.nonzero()[0]
            left, mine = left[good], at[good]
            if not left.size:
                return np.full(len(at), REFUSED, np.int64), np.full(len(at), -1, np.int64)
        if is_plain:
            total = self._base[mine]
            for s in self._scorers:
                total += s.score(wish, fleet, left) * (s.weight * self._span)
        else:
            total = self._fixed[mine]
            for s in (*self._slot_scorers, *self._scorers):
                total += s.weight * s.score(wish, fleet, left)
            total *= self._span
            total += self._span - 1 - fleet.rank[left]
        fits = fitting(wish, fleet, left)
        if good is None:
            return total, fits
        keys, variants = np.full(len(at), REFUSED, np.int64), np.full(len(at), -1, np.int64)
        keys[good], variants[good] = total, fits
        return keys, variants

    @property
    def is_by_site(self) -> bool:
        """Does placing an instance change what other nodes of the site score?"""
        return self._width >= _WIDTH["site"]

    def members(self, sites: Ints) -> tuple[Ints, Ints]:
        """The places of `rows` that are at these sites, one site after the other; and where each begins among them."""
        order, begins = self._by_site()
        first = begins[sites]
        counts = begins[sites + 1] - first
        starts = counts.cumsum() - counts
        found: Ints = order[np.arange(counts.sum()) + (first - starts).repeat(counts)]
        return found, starts

    def possible(self, wish: Wish, rows: list[int]) -> list[int]:
        """Those of some rows on which a wish could be if there were room; the best first, as far as nothing changes."""
        asked = wish.rows()
        at = self._position[np.intersect1d(np.array(rows, np.int64), asked)]
        at = at[at >= 0]
        order = np.lexsort((self.fleet.rank[self.rows[at]], -self._fixed[at]))
        return [int(row) for row in self.rows[at][order].tolist()]

    def at(self, row: int, wish: Wish) -> tuple[int, int] | None:
        """What a wish would score there now, and the variant that fits; None when it is refused."""
        at = self._position[row : row + 1]
        if at[0] < 0:
            return None
        keys, variants = self.evaluate(at, wish)
        return None if keys[0] == REFUSED else (int(keys[0]) // self._span, int(variants[0]))

    def units(self) -> Ints:
        """What the best of each unit scores: of each row, or of each site."""
        if not self.is_by_site:
            return self.keys
        order, begins = self._by_site()
        return np.maximum.reduceat(self.keys[order], begins[:-1]) if len(order) else self.keys

    def _by_site(self) -> tuple[Ints, Ints]:
        """Places in the order of their sites, and where each site begins; at the end, where the last one ends."""
        if self._order is None or self._begins is None:
            sites = self.fleet.site[self.rows]
            self._order = np.argsort(sites, kind="stable")
            changes = np.flatnonzero(np.diff(sites[self._order])) + 1
            self._begins = np.concatenate(([0], changes, [len(sites)])).astype(np.int64)
        return self._order, self._begins

    def _catch_up(self) -> None:
        """Ask again what can have changed since."""
        new, self._seen = self._moves[self._seen :], len(self._moves)
        ladder = self._ladder
        if ladder is not None and ladder.is_as_expected(new):
            return
        if ladder is not None and ladder.is_ahead:
            self._ladder = None
        if not new:
            return
        reached = self._reached([row for row, _, _ in new])
        if reached.size:
            self.keys[reached], self.variants[reached] = self.evaluate(reached, self.plain)
            self._ladder = None

    def _reached(self, rows: list[int]) -> Ints:
        """The places whose answers can differ when something differs at these rows."""
        if not rows:
            return np.zeros(0, np.int64)
        if self._width >= _WIDTH["fleet"]:
            return np.arange(len(self.rows))
        if self._width >= _WIDTH["site"]:
            return np.flatnonzero(np.isin(self.fleet.site[self.rows], self.fleet.site[rows]))
        at = np.unique(self._position[rows])
        found: Ints = at[at >= 0]
        return found

    def _in_question(self, wish: Wish) -> Ints | None:
        """The places that a slot can be at; None for all of them."""
        if wish.slot.is_free and wish.only is None:
            return None
        at = self._position[wish.rows()]
        found: Ints = at[at >= 0]
        return found

    def _pick(self, among: Ints | None) -> Choice | None:
        keys = self.keys if among is None else self.keys[among]
        if not keys.size:
            return None
        best = int(keys.argmax())
        if keys[best] == REFUSED:
            return None
        at = best if among is None else int(among[best])
        return Choice(int(self.rows[at]), int(self.variants[at]))

    def _best(self) -> Choice | None:
        if not self._has_ladder():
            return self._pick(None)
        assert self._ladder is not None
        return self._ladder.best()

    def _has_ladder(self) -> bool:
        """Is there one now? For few instances there is none, and where each changes what all others score."""
        if self._ladder is None and not (self.ask.open <= FEW or self._width >= _WIDTH["fleet"]):
            self._ladder = _Ladder(self, max(AHEAD, self.ask.open))
        return self._ladder is not None


class _Ladder:
    """The best units in order, each with what it would score next. A unit is as much as one placement can change."""

    def __init__(self, ranking: Ranking, width: int) -> None:
        self._ranking = ranking
        self.is_ahead = False
        """Was a run told of which nobody knows yet whether it was placed?"""
        self._expected: list[tuple[int, Load, int]] = []
        """What the fleet is told when just that is placed which was chosen last."""
        self._rows = self._here = np.zeros(0, np.int64)
        """Where that is, and how many replicas are there then."""
        self._steps: list[_Next] = []
        self._climb(width)

    def _climb(self, width: int) -> None:
        keys = self._ranking.units()
        count = min(width, len(keys))
        order = np.argpartition(keys, len(keys) - count) if 0 < count < len(keys) else np.arange(len(keys))
        best, rest = order[len(keys) - count :], order[: len(keys) - count]
        self._width = width
        self._floor = int(keys[rest].max(initial=REFUSED))
        """What the best of all others scores: below it, they are looked at as well."""
        self._heap = [(-key, unit) for key, unit in zip(keys[best].tolist(), best.tolist(), strict=True)]
        heapq.heapify(self._heap)
        self._next: dict[int, _Next] = {}
        """By unit: where in it an instance would go, and what would come of it."""
        self._unknown = [unit for key, unit in self._heap if -key != REFUSED]
        """Units of which that is not known (any more)."""

    def best(self) -> Choice | None:
        found = self._first()
        if found is None:
            return None
        self._expect([found])
        return found[0]

    def _first(self) -> _Next | None:
        """The best unit, with what comes of it."""
        if not self._heap:
            return None
        while -self._heap[0][0] < self._floor:
            self._climb(self._width * 4)
        key, unit = self._heap[0]
        if -key == REFUSED:
            return None
        found = self._next.get(unit)
        if found is None:
            self._look_ahead()
            found = self._next[unit]
        return found

    def run(self, most: int) -> list[tuple[Choice, Load]]:
        """The best for several, one after the other, up to where one has to look ahead again."""
        if self._first() is None:
            return []
        heap, upcoming, unknown = self._heap, self._next, self._unknown
        steps: list[_Next] = []
        while len(steps) < most:
            key, unit = heap[0]
            if -key < self._floor or -key == REFUSED or (found := upcoming.pop(unit, None)) is None:
                break
            heapq.heapreplace(heap, (-found[2], unit))
            if found[2] != REFUSED:
                unknown.append(unit)
            steps.append(found)
        self._expect(steps)
        self.is_ahead = True
        return [step[:2] for step in steps]

    def _expect(self, steps: list[_Next]) -> None:
        self._steps = steps
        self._expected = [(step[0].row, step[1], 1) for step in steps]
        self._rows = np.array([step[0].row for step in steps])
        self._here = self._ranking.ask.here[self._rows] + 1

    def is_as_expected(self, moves: list[tuple[int, Load, int]]) -> bool:
        """Was just that placed which was chosen last? Then what it leads to is known already."""
        ranking, steps = self._ranking, self._steps
        if not moves:
            return not self.is_ahead
        if moves != self._expected:
            return False
        if (ranking.ask.here[self._rows] != self._here).any():
            return False
        if not self.is_ahead:
            unit = self._heap[0][1]
            then = self._next.pop(unit)[2]
            heapq.heapreplace(self._heap, (-then, unit))
            if then != REFUSED:
                self._unknown.append(unit)
        if ranking.is_by_site:
            for _, _, _, at, keys, variants in steps:
                ranking.keys[at], ranking.variants[at] = keys, variants
        else:
            places = np.array([step[3] for step in steps])
            ranking.keys[places], ranking.variants[places] = [step[4] for step in steps], [step[5] for step in steps]
        self._expected, self._steps, self.is_ahead = [], [], False
        return True

    def _look_ahead(self) -> None:
        """Place one more in each of the best units, in thought, and ask them all at once what they score then."""
        ranking, ask, fleet = self._ranking, self._ranking.ask, self._ranking.fleet
        units, self._unknown = self._unknown, []
        at = best = np.array(units)
        starts: Ints | None = None
        if ranking.is_by_site:
            at, starts = ranking.members(best)
            there = ranking.keys[at]
            lengths = np.diff(starts, append=len(at))
            best = at[there == np.maximum.reduceat(there, starts).repeat(lengths)]  # No two that are taken are equal.
        rows, variants = ranking.rows[best], ranking.variants[best]
        choices = list(map(Choice._make, zip(rows.tolist(), variants.tolist(), strict=True)))
        loads, laid = self._loads(choices, rows, variants)
        for those, load in laid:
            fleet.lay(those, load, 1)
        ask.here[rows] += 1
        keys, after = ranking.evaluate(at, ranking.plain)
        ask.here[rows] -= 1
        for those, load in laid:
            fleet.lay(those, load, -1)
        if starts is None:
            each = keys.tolist()
            self._next.update(
                zip(units, zip(choices, loads, each, units, each, after.tolist(), strict=True), strict=True)
            )
            return
        tops, begins = np.maximum.reduceat(keys, starts).tolist(), starts.tolist()
        ends = (*begins[1:], len(at))
        for unit, choice, load, top, begin, end in zip(units, choices, loads, tops, begins, ends, strict=True):
            self._next[unit] = (choice, load, top, at[begin:end], keys[begin:end], after[begin:end])

    def _loads(self, choices: list[Choice], rows: Ints, variants: Ints) -> tuple[list[Load], list[tuple[Ints, Load]]]:
        """What each of these would take; and the same, together for all of whom it is the same."""
        ask = self._ranking.ask
        if not ask.needs:
            of = {variant: ask.load(variant, 0) for variant in {choice.variant for choice in choices}}
            loads = [of[choice.variant] for choice in choices]
            if len(of) == 1:
                return loads, [(rows, loads[0])]
            return loads, [(rows[variants == variant], load) for variant, load in of.items()]
        loads = [ask.load(variant, row) for row, variant in choices]
        alike: dict[Load, list[int]] = {}
        for (row, _), load in zip(choices, loads, strict=True):
            alike.setdefault(load, []).append(row)
        return loads, [(np.array(those), load) for load, those in alike.items()]


_Next = tuple[Choice, "Load", int, "int | Ints", "int | Ints", "int | Ints"]
"""One unit, if it took one more: where, with what load, what its best scores then; and the places that this changes,
with what they score then and which variants fit."""
