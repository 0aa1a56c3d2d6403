"""Words: the closed list of states that people see, each with its meaning, its exit, and how bad it is.

A roll-up is as bad as its worst part. Waiting is not an error; no word is without a way out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Word(NamedTuple):
    """A state: 0 is well or neutral, 1 passes by itself, 2 and 3 want somebody's attention."""

    word: str
    severity: int
    meaning: str
    next_step: str


_TABLE: tuple[Word, ...] = (
    # Well, or nothing to say.
    Word("ok", 0, "everything is as wished", ""),
    Word("unassigned", 0, "nothing is asked of it", "declare an application: `batuta apply -f FILE`"),
    Word("empty", 0, "there is nothing in it yet", "join a node: `batuta token create` and `batuta join TOKEN`"),
    Word("unused", 0, "no application names it", "name it in a component: `model: {name: …, version: …}`"),
    Word("idle", 0, "it applies to nothing that is declared", "declare what it is for, or look at `applies`"),
    Word("online", 0, "its link is up", ""),
    Word("in-sync", 0, "it runs what it was asked to run", ""),
    # Passing by itself.
    Word("updating", 1, "it is on its way to what was asked", "wait, or see `batuta why NAME`"),
    Word("waiting", 1, "it waits for something that comes by itself", "wait, or see `batuta why NAME`"),
    Word("late", 1, "it has missed heartbeats and may come back", "wait ten seconds, or check its link"),
    Word("deferred", 1, "it will be asked when its link is back", "bring the node back"),
    Word("held", 1, "it was told to change nothing", "`batuta node release NAME`"),
    Word("never", 1, "it was enrolled and has not been heard since", "start it: `batuta join` on the machine"),
    Word("pending", 1, "it asks to join and waits for approval", "`batuta node approve NAME`, or `node remove NAME`"),
    # Wanting attention.
    Word("unknown", 2, "nobody can tell: its nodes are silent", "bring the nodes back, or add others"),
    Word("degraded", 2, "some of it works, some does not", "see `batuta why NAME`"),
    Word("drifted", 2, "it runs something else than it was asked to", "see `batuta describe node NAME`"),
    Word("offline", 3, "its link is down", "check power and network; it goes on from its ledger"),
    Word("failed", 3, "it cannot do what was asked", "see `batuta describe node NAME`"),
    Word("failing", 3, "nothing of it works", "see `batuta why NAME`"),
)  # fmt: skip

WORDS: dict[str, Word] = {row.word: row for row in _TABLE}

LINK = ("online", "late", "offline", "never")
SYNC = ("in-sync", "updating", "deferred", "drifted", "failed", "held", "pending", "unassigned")
HEALTH = ("ok", "degraded", "failing", "unknown")
APPLICATION = ("ok", "updating", "waiting", "degraded", "failing", "unknown", "unassigned")
MODEL = ("ok", "empty", "unused", "waiting")
POLICY = ("ok", "idle", "degraded")
FLAG = ("ok", "updating", "degraded", "idle", "unused", "empty")


def worst(words: Iterable[str]) -> str:
    """The worst of some words; of equally bad ones the one listed last, of equally good ones the first."""
    rows = [WORDS[word] for word in words]
    if not rows:
        return "ok"
    bad = max(row.severity for row in rows)
    alike = [row for row in _TABLE if row.severity == bad and row in rows]
    return (alike[-1] if bad else alike[0]).word
