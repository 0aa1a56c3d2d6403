"""Rows of the tables as lines of text: what a recording and a snapshot are made of.

A line is one JSON value and stands for one row, so that a fleet of any size is written and read piece by piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.observed import Report, Sighting
from batuta.core.standing import DECIDED
from batuta.core.state import Change, State, Table
from batuta.kinds import manifest
from batuta.kinds.base import Record, Resource, decode_hook, encode_hook

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TABLES: tuple[Table, ...] = ("desired", "decided", "observed", "sightings")


class Row(Record):
    """One row of one table; without a value it is gone."""

    table: Table
    key: str
    value: msgspec.Raw = msgspec.Raw(b"null")


def row_of(table: Table, key: str, value: Any) -> Row:
    """The row as it is written."""
    if isinstance(value, Resource):
        return Row(table=table, key=key, value=msgspec.Raw(manifest.to_json(value)))
    return Row(table=table, key=key, value=msgspec.Raw(msgspec.json.encode(value, enc_hook=encode_hook)))


def change_of(row: Row) -> Change:
    """The row as it is decided on. Raises ValueError or Refused for one that this version cannot read."""
    said = bytes(row.value)
    if said == b"null":
        return Change(row.table, row.key, None)
    if row.table == "desired":
        return Change(row.table, row.key, manifest.from_json(said))
    kind: type[Any] | None = {"observed": Report, "sightings": Sighting}.get(row.table)
    kind = DECIDED.get(row.key.split(".", 1)[0]) if kind is None else kind
    if kind is None:
        raise ValueError(f"no kind of decision is kept under {row.key!r}")
    return Change(row.table, row.key, msgspec.json.decode(said, type=kind, dec_hook=decode_hook))


def rows_of(state: State) -> Iterator[Row]:
    """Every row of every table, in order."""
    for table in TABLES:
        for key, value in sorted(getattr(state, table).items()):
            yield row_of(table, key, value)


def state_of(rows: Iterable[Row], hub_since: int) -> State:
    """The tables that these rows are."""
    return State(hub_since=hub_since).with_changes(change_of(row) for row in rows)
