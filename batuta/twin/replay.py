"""Replay: decide again, by the present code, what a hub once decided, and say where the two part.

The recording leads: what becomes known next is what the hub learnt then, whatever is decided now. So one difference
does not drag all later ones behind it, and each that is told is a difference by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.core.decide import APPLICATION, decide
from batuta.core.fleet import Fleet
from batuta.core.state import State
from batuta.core.touched import touched
from batuta.errors import BatutaError, Refused
from batuta.kinds.base import Record, encode_hook
from batuta.kinds.difference import FieldChange, differences
from batuta.twin.replay_frames import Begin, There, Turn
from batuta.twin.replay_rows import Row, change_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.state import Change
    from batuta.twin.replay_frames import Frame


class Parted(Record):
    """One row that was decided otherwise than it would be now."""

    at: int
    """The instant of the decision, on that hub's clock."""
    turn: int
    """Which decision of the recording, from 1."""
    table: str
    key: str
    fields: tuple[FieldChange, ...]
    """`before`: as recorded; `after`: as decided now."""
    everything: bool = False


class Replayed(Record):
    """What came of a replay."""

    turns: int
    decided: int
    """Rows that the hub wrote in these decisions."""
    stretches: int
    begins_at: int
    ends_at: int
    version: str
    """Of the batuta that recorded."""
    parted: tuple[Parted, ...] = ()
    is_whole: bool = True
    """All of the recording was decided again; not so when as many differences were found as were asked for."""


class _Hub:
    """The hub's deciding over again, as `hub.loop` does it."""

    def __init__(self, begin: Begin) -> None:
        self.state = State(hub_since=begin.hub_since).deaf_for(begin.deaf_ms)
        self._decided_on, self._decided_at = self.state, begin.at
        self._open = frozenset(begin.open)
        self._own: dict[str, Any] = {}
        self._fleet = Fleet()

    def begin_here(self) -> None:
        """The tables are read."""
        self._decided_on = self.state

    def turn(self, turn: Turn, heard: list[Change], then: list[Change]) -> tuple[Change, ...]:
        """`then`: what that hub decided here, and so wrote."""
        self.state = self.state.deaf_for(turn.deaf_ms)
        if heard:
            self.state = self.state.with_changes([self._as_written(change) for change in heard])
        if turn.everything:
            decision = decide(self.state, turn.at)
        else:
            news = touched(self._decided_on, self.state, self._decided_at, turn.at, self._fleet, self._own)
            decision = decide(self.state, turn.at, news | self._open, self._fleet)
            self._decided_on, self._decided_at = self.state, turn.at
            self._own = {change.key: change.value for change in then}
        self._open = frozenset(APPLICATION + app for app in decision.pending)
        return decision.changes

    def _as_written(self, change: Change) -> Change:
        """A row that came just as it was decided is that very row, as it was to that hub."""
        own = self._own.get(change.key) if change.table == "decided" else None
        return change._replace(value=own) if own is not None and own == change.value else change


def replay(frames: Iterable[Frame], *, differences_max: int = 1) -> Replayed:
    """Decides it all again, until so many rows were found to differ."""
    hub: _Hub | None = None
    there: list[Change] = []
    found: list[Parted] = []
    tally = _Tally()
    for frame in frames:
        if isinstance(frame, Begin):
            hub, there = _Hub(frame), []
            tally.begins(frame)
            continue
        if hub is None:
            raise BatutaError("the recording does not start with a beginning", next_step="record again")
        if isinstance(frame, There):
            there.append(_read(frame.row))
            continue
        if there:
            hub.state, there = hub.state.with_changes(there), []
            hub.begin_here()
        tally.turns(frame)
        then = [_read(row) for row in frame.decided]
        now = hub.turn(frame, [_read(row) for row in frame.heard], then)
        found += _parted(frame, then, now, tally.count)
        if len(found) >= differences_max:
            return tally.told(found[:differences_max], is_whole=False)
    return tally.told(found, is_whole=True)


class _Tally:
    """What has been replayed so far."""

    def __init__(self) -> None:
        self.count = self._decided = self._stretches = self._begins_at = self._ends_at = 0
        self._version = ""

    def begins(self, begin: Begin) -> None:
        self._begins_at = self._begins_at or begin.at
        self._ends_at = max(self._ends_at, begin.at)
        self._stretches += 1
        self._version = begin.version

    def turns(self, turn: Turn) -> None:
        self.count += 1
        self._decided += len(turn.decided)
        self._ends_at = max(self._ends_at, turn.at)

    def told(self, parted: list[Parted], *, is_whole: bool) -> Replayed:
        return Replayed(
            turns=self.count, decided=self._decided, stretches=self._stretches, begins_at=self._begins_at,
            ends_at=self._ends_at, version=self._version, parted=tuple(parted), is_whole=is_whole,
        )  # fmt: skip


def _read(row: Row) -> Change:
    try:
        return change_of(row)
    except (ValueError, Refused) as error:
        raise BatutaError(f"row {row.key} of the recording cannot be read: {error}") from error


class _Both(NamedTuple):
    then: Any
    now: Any


def _parted(turn: Turn, then: Iterable[Change], now: Iterable[Change], number: int) -> list[Parted]:
    rows = {(change.table, change.key): _Both(change.value, _Missing) for change in then}
    for change in now:
        before = rows.get((change.table, change.key), _Both(_Missing, None)).then
        rows[change.table, change.key] = _Both(before, change.value)
    return [
        Parted(
            at=turn.at, turn=number, table=table, key=key, everything=turn.everything,
            fields=tuple(differences(_plain(both.then), _plain(both.now))),
        )
        for (table, key), both in sorted(rows.items())
        if both.then is not both.now and both.then != both.now
    ]  # fmt: skip


class _Missing:
    """The row is not written at all."""


def _plain(value: Any) -> Any:
    """As JSON would say it. A row that is removed and one that is left as it was are told apart."""
    if value is _Missing:
        return "(not written)"
    if value is None:
        return "(removed)"
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=encode_hook))
