"""Flags, as a node evaluates them: what the hub made of each for this node, and how a key falls to a variant.

The hub resolves conditions, because they ask about the node; what is left fits in a few bytes and needs no network. One
flag order says: everybody here gets this variant, or keys are divided so. The hub evaluates by the same functions when
somebody asks it, so both always say the same.

Keys are divided by a race: each variant of a split draws a number for the key, by a hash of flag, variant and key; the
smallest number, weighed by the variant's share, wins. So a key leaves its variant only for one whose share grew more:
with two variants, whoever had the one that grows keeps it. All of it is done in whole numbers, so that every processor
comes to the same.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal, NamedTuple

import msgspec

from batuta.kinds.base import Record

Why = Literal["STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT", "DISABLED"]
"""Reasons of OpenFeature: no rules; no rule holds; a rule names the variant; a rule splits; switched off."""
KEY_CHARS_MAX: Final = 1024
SHEET_BYTES_MAX: Final = 512 * 1024
PUSHED_BYTES_MAX: Final = 48 * 1024
"""A larger sheet is not sent when it changes: its node is told to ask for it."""
FLAGS_FILE: Final = "flags.json"
"""The sheet as the node keeps it, in the directory of its gateway."""
_ONE: Final = 1 << 64


class FlagOrder(Record):
    """One flag, with its conditions resolved for one node."""

    namespace: str
    name: str
    why: Why
    variants: dict[str, Any]
    """Those that somebody can get here; a single one when there is no split."""
    split: dict[str, int] = {}
    """Percent of all keys, by variant; none of them is 0."""
    rule: int = 0
    """Which rule says so, from 1; 0 when none does."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


class Sheet(Record):
    """All flags of one node, in order of namespace and name."""

    flags: tuple[FlagOrder, ...] = ()


class Given(NamedTuple):
    """What a key gets."""

    variant: str
    value: Any
    why: Why
    rule: int


class Denied(NamedTuple):
    """Why nobody can say, by a code of OpenFeature."""

    code: Literal["TARGETING_KEY_MISSING", "INVALID_CONTEXT"]
    message: str


def evaluate(order: FlagOrder, key: str | None) -> Given | Denied:
    """What `key` gets of a flag: always the same, wherever it is asked. Without a split nobody needs a key."""
    variant = next(iter(order.variants), "")
    if len(order.split) > 1:
        if not key:
            return Denied("TARGETING_KEY_MISSING", f"flag {order.name!r} divides keys here: say a targetingKey")
        if len(key) > KEY_CHARS_MAX:
            return Denied("INVALID_CONTEXT", f"the targetingKey has {len(key)} characters, and {KEY_CHARS_MAX} may be")
        variant = winner(order.key, order.split, key)
    return Given(variant, order.variants[variant], order.why, order.rule)


def winner(flag: str, shares: dict[str, int], key: str) -> str:
    """The variant of `flag` (its namespace and name) that a key falls to."""
    # drawn/share of one is less than of another: compared crosswise, nothing is rounded.
    best, best_drawn, best_share = "", 0, 0
    for variant, share in sorted(shares.items()):
        if share <= 0:
            continue
        drawn = _drawn(f"{flag}\n{variant}\n{key}")
        if not best or drawn * best_share < best_drawn * share:
            best, best_drawn, best_share = variant, drawn, share
    return best


def digest_of(body: bytes) -> str:
    """What tells one sheet from another; empty for a sheet without flags."""
    return hashlib.sha256(body).hexdigest()[:16] if body else ""


def written(sheet: Sheet) -> bytes:
    """A sheet as it is sent and kept: equal sheets are equal bytes, and one without flags is none."""
    return msgspec.json.encode(sheet, order="sorted") if sheet.flags else b""


def read(body: bytes) -> Sheet:
    """Raises ValueError for what is no sheet."""
    try:
        return msgspec.json.decode(body, type=Sheet) if body else Sheet()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"this is no sheet of flags: {str(error)[:200]}") from None


def _drawn(text: str) -> int:
    """An exponential number, drawn by a hash: -log2 of a fraction, as a whole number of 2**-40."""
    fraction = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") + 1
    # -log2(fraction / 2**64): the whole part by its length, what is behind the point by squaring.
    length = fraction.bit_length() - 1
    mantissa = fraction << (64 - length)  # in [1, 2), with 64 bits behind the point
    logarithm = length << 40
    for bit in range(39, -1, -1):
        mantissa = mantissa * mantissa >> 64
        if mantissa >= 2 * _ONE:
            mantissa >>= 1
            logarithm |= 1 << bit
    return (64 << 40) - logarithm
