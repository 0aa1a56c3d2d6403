"""Probation: a new instance is trusted by its node only after a while, and what ran before it stands by.

An order may carry its *fallback*. The node then decides by itself, hub or no hub, which of the two runs. Rows in order,
the first that holds decides about the fallback:

    turned down     the new one was refused, by its proof or its engine, or failed its probation: the fallback runs
    under way       the new one starts, runs or stops: the fallback gives way
    not yet fit     its artifacts are not all here, or it is not proved: the fallback goes on
    otherwise       the fallback gives way: the new one may start as soon as there is room

It fails its probation when a run of it ends, or is not live, within `probation_ms` after it was first ready; when three
runs of it end before it was ever ready; when it is not ready for longer than anything may be; and when it was lost
three times together with the node agent or the machine. What was turned down is remembered by what would run, not by
its revision, so the same thing under another number is not tried again either; until the hub places it anew under the
same name, or the machine's hardware or runtime is another.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from batuta.core.deeds import ALIVE, Local, because
from batuta.core.proving import NEVER_REMEMBERED, Bench, Proven, proof_key
from batuta.core.reasons import CATALOGUE, Reason
from batuta.kinds.base import Record, encode_hook

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from batuta.core.decided import Instance

RUNS_MAX = 3
"""So many runs may come to nothing before it was ever ready."""
START_WITHIN_MS = 300_000
"""What is not ready so long after its start never will be; unless its probation is longer."""
FALLEN_MAX = 64
"""So much is remembered; what fell longest ago goes first."""
ERROR_CHARACTERS_MAX = 300
UNTRIED = "not tried again: nothing has changed here since"
_MARK = "fell "


class Fallen(Record):
    """What a node remembers of what it turned down in favour of a fallback."""

    key: str
    """As `fall_key` makes it."""
    name: str
    epoch: int
    """Placed anew under the same name, it is tried again: somebody asked for it."""
    at: int
    reason: Reason


def fallback_of(instance: Instance) -> Instance | None:
    """What ran before; nothing stands by for it in turn."""
    found = instance.fallback
    if found is None or found.name == instance.name:
        return None
    return msgspec.structs.replace(found, fallback=None, probation_ms=None, newcomer=None)


def same_content(one: Instance, other: Instance) -> bool:
    """Equal but for the epoch, for how it would fall back, for how fast it had to prove to be, and for what is tried
    beside it: then whatever runs for one serves the other."""
    return one is other or _as(other, one) == other


def _as(like: Instance, one: Instance) -> Instance:
    return msgspec.structs.replace(
        one, epoch=like.epoch, fallback=like.fallback, probation_ms=like.probation_ms, slo_p99_ms=like.slo_p99_ms,
        newcomer=like.newcomer,
    )  # fmt: skip


# --- Who runs ---------------------------------------------------------------------------------------------------------


def standing_in(
    local: Local, held: frozenset[str], proven: Mapping[str, Proven], bench: Bench, fallen: Mapping[str, Fallen]
) -> Instance | None:
    """The fallback, when it is to run now; `local` is what is known of the new one under its present order."""
    fallback = fallback_of(local.instance)
    if fallback is None or local.phase in ALIVE or local.phase == "stopping":
        return None
    if local.phase == "refused" or fell_before(local.instance, bench, fallen) is not None:
        return fallback
    key = proof_key(local.instance, bench)
    is_proved = not key or (key in proven and proven[key].reason is None)
    is_fit = is_proved and all(digest in held for digest in local.instance.artifacts)
    return None if is_fit else fallback


def is_watched(local: Local, now: int) -> bool:
    """It is on trial or on probation: what it measures is told often, so that gates decide soon."""
    if local.instance.beside is not None:
        return local.phase in ALIVE
    first_ready_at = local.first_ready_at
    return first_ready_at is not None and 0 <= now - first_ready_at <= (local.instance.probation_ms or 0)


# --- Failing ----------------------------------------------------------------------------------------------------------


def is_on_probation(local: Local, at: int) -> bool:
    """Does a failure at this instant make it fall?"""
    if fallback_of(local.instance) is None:
        return False
    return local.first_ready_at is None or at - local.first_ready_at <= (local.instance.probation_ms or 0)


def is_failed(local: Local, at: int) -> bool:
    """Asked of one whose run just came to nothing at this instant."""
    return is_on_probation(local, at) and (local.first_ready_at is not None or local.runs_failed >= RUNS_MAX)


def overdue_at(local: Local) -> int | None:
    """When one that runs has not been ready for so long that it never will be."""
    if local.phase not in ("starting", "unready") or not is_on_probation(local, local.since):
        return None
    probation_ms = local.instance.probation_ms or 0
    if local.phase == "unready":
        return local.since + max(probation_ms, 1)
    return local.since + max(probation_ms, START_WITHIN_MS)


def overdue(local: Local, now: int) -> Local:
    """One that is stopped because it is overdue: with its verdict, which its end will not change."""
    detail = local.reason.detail if local.reason is not None else ""
    told = counted(local, because(local, "not_ready", detail))
    return msgspec.structs.replace(told, reason=verdict(told, now))


def counted(local: Local, reason: Reason) -> Local:
    """With one more run that came to nothing, where anything stands by for it."""
    if fallback_of(local.instance) is None:
        return local
    first = local.first_error if local.first_error is not None else reason
    return msgspec.structs.replace(local, runs_failed=local.runs_failed + 1, first_error=first)


def lost(local: Local) -> Local:
    """It was not there when the node agent came back. Once is no fault of its own; what takes the machine along each
    time is told by the number. What has a lease ends with every node agent, and is not blamed for it. Nobody watched
    it meanwhile, for however long: its probation begins again."""
    if local.instance.lease_ms is not None or not is_on_probation(local, local.since):
        return local
    told = counted(local, because(local, "exited", "it was gone when the node agent came back"))
    return msgspec.structs.replace(told, first_ready_at=None)


def is_lost_too_often(local: Local) -> bool:
    is_blamed = local.instance.lease_ms is None and is_on_probation(local, local.since)
    return is_blamed and local.runs_failed >= RUNS_MAX


def verdict(local: Local, at: int) -> Reason:
    """Why it fell, with the first error."""
    error = local.first_error
    assert error is not None, "what fell was counted"
    words = CATALOGUE[error.code].sentence + (f": {error.detail}" if error.detail else "")
    words = words[:ERROR_CHARACTERS_MAX]
    if local.first_ready_at is not None:
        when = f"{max(0, at - local.first_ready_at) / 1000:.1f} s after it was first ready"
    else:
        when = f"{local.runs_failed} times before it was ready" if local.runs_failed > 1 else "before it was ready"
    return because(local, "probation_failed", f"{words}; {when}")


# --- Remembering ------------------------------------------------------------------------------------------------------


def fall_key(instance: Instance, bench: Bench) -> str:
    """Names what fell: what would run, whatever its revision, on this hardware and with this runtime."""
    bare = msgspec.structs.replace(
        instance, revision=0, epoch=0, fallback=None, probation_ms=None, beside=None, newcomer=None
    )
    said = msgspec.json.encode(bare, enc_hook=encode_hook, order="deterministic")
    digest = hashlib.blake2b(said, digest_size=16).hexdigest()
    return f"{_MARK}{digest} {bench.runtimes.get(instance.runtime, '-')} {bench.hardware or '-'}"


def fell_before(instance: Instance, bench: Bench, fallen: Mapping[str, Fallen]) -> Fallen | None:
    """Why it is not tried, if it fell before and nothing changed since. Without a fallback everything is tried."""
    if not fallen or fallback_of(instance) is None:
        return None
    found = fallen.get(fall_key(instance, bench))
    if found is None or (found.name == instance.name and instance.epoch > found.epoch):
        return None
    return found


def again(fell: Fallen) -> Reason:
    """Why it is not tried: what was wrong with it then, and that it would be now."""
    reason = fell.reason
    if reason.detail.endswith(UNTRIED):
        return reason
    return msgspec.structs.replace(reason, detail=f"{reason.detail}; {UNTRIED}")


def marked(local: Local, bench: Bench) -> Local:
    """One that was refused, with the key by which that is remembered."""
    if local.phase != "refused" or local.proof_key or fallback_of(local.instance) is None:
        return local
    if local.reason is None or local.reason.code in NEVER_REMEMBERED:
        return local
    return msgspec.structs.replace(local, proof_key=fall_key(local.instance, bench))


def is_tried_anew(local: Local, proven: Mapping[str, Proven], bench: Bench) -> bool:
    """It was refused for what it proved to be, and nobody knows what it is now: the machine or its runtime is another
    one."""
    if local.phase != "refused" or not local.proof_key:
        return False
    if local.proof_key.startswith(_MARK):
        return local.proof_key != fall_key(local.instance, bench)
    return proof_key(local.instance, bench) not in proven


def remembered(fallen: Mapping[str, Fallen], locals_: Iterable[Local], now: int) -> dict[str, Fallen]:
    """All that is remembered, with what fell since; the newest of each, and no more than FALLEN_MAX."""
    fresh = {each.key: each for each in _fallen(fallen, locals_, now)}
    if not fresh:
        return dict(fallen)
    newest = sorted((dict(fallen) | fresh).values(), key=lambda each: (-each.at, each.key))[:FALLEN_MAX]
    return {each.key: each for each in sorted(newest, key=lambda each: each.key)}


def _fallen(fallen: Mapping[str, Fallen], locals_: Iterable[Local], now: int) -> Iterator[Fallen]:
    for local in locals_:
        if local.phase != "refused" or not local.proof_key.startswith(_MARK) or local.reason is None:
            continue
        known, instance = fallen.get(local.proof_key), local.instance
        if known is None or known.epoch < instance.epoch:
            reason = local.reason
            yield Fallen(key=local.proof_key, name=instance.name, epoch=instance.epoch, at=now, reason=reason)
