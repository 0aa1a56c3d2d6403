"""Hearing: what becomes of a Local when the actuator or a runtime says something.

Backoff is state, not a sleep: a failure sets the instant of the next try, and `core.local.step` comes back to it.
"""

from __future__ import annotations

import zlib

import msgspec

from batuta.core import probation
from batuta.core.deeds import ALIVE, Event, Failed, Fetched, Gone, Local, Proved, Ready, Started, Unready, because, into
from batuta.core.reasons import Reason

BACKOFF_FIRST_MS = 1_000
BACKOFF_LONGEST_MS = 300_000


def heard(local: Local, event: Event, now: int) -> Local | None:
    """The Local after what the actuator or a runtime said; None when nothing of it is left to remember.

    When the node agent starts, it asks the runtimes about every Local of its ledger before the first `step`: found
    again is `Started(adopted=True)`; not there, or never certain to have begun (no handle), is `Gone` once it is sure.
    """
    match event:
        case Fetched():
            return into(local, "waiting", now, None) if local.phase == "fetching" else local
        case Proved():
            return into(local, "waiting", now, None) if local.phase == "proving" else local
        case Started(handle=handle, adopted=adopted):
            return _started(local, dict(handle), adopted, now)
        case Ready():
            return _ready(local, now)
        case Unready(reason=reason):
            if local.phase == "starting" and reason.code != "not_live":
                return msgspec.structs.replace(local, reason=reason)
            return into(local, "unready", now, reason) if local.phase in ALIVE else local
        case Failed(reason=reason, final=final):
            if local.phase == "stopping":
                # The Stop is still to be answered; until then the slot counts as occupied.
                return msgspec.structs.replace(local, handle={})
            return _failed(local, reason, final, now) if local.phase in (*ALIVE, "fetching", "proving") else local
        case Gone():
            return _gone(local, now)


def _started(local: Local, handle: dict[str, int | str], adopted: bool, now: int) -> Local:
    found = msgspec.structs.replace(local, handle=handle, starts=local.starts + (not adopted))
    if local.phase == "stopping" and not adopted:
        return found  # Its Stop waits behind this start.
    if adopted and local.phase in ("ready", "unready"):
        return found  # The next inspection corrects it; until then a restarted node agent is no news.
    return into(found, "starting", now, because(local, "starting"))


def _ready(local: Local, now: int) -> Local:
    if local.phase not in ("starting", "unready"):
        return local
    took_ms = max(0, now - local.since) if local.phase == "starting" else local.ready_after_ms
    ready = msgspec.structs.replace(into(local, "ready", now, None), ready_after_ms=took_ms)
    is_watched = local.instance.probation_ms is not None or local.instance.fallback is not None
    return msgspec.structs.replace(ready, first_ready_at=now) if is_watched and ready.first_ready_at is None else ready


def _gone(local: Local, now: int) -> Local | None:
    rest = msgspec.structs.replace(local, handle={})
    if local.phase == "stopping":
        if local.reason is None:
            return None  # Its order was withdrawn; if it is wanted again, it begins afresh.
        if local.reason.code == "probation_failed":
            return into(rest, "refused", now, local.reason)
        if local.reason.code != "lease_lapsed":
            return _failed(rest, local.reason, False, now)
        return into(rest, "waiting", now, local.reason)
    if local.phase in ALIVE:
        rest = probation.lost(rest)
        if probation.is_lost_too_often(rest):
            return into(rest, "refused", now, probation.verdict(rest, now))
        return into(rest, "waiting", now, None)
    return into(rest, "waiting", now, None) if local.phase in ("fetching", "proving") else rest


def _failed(local: Local, reason: Reason, final: bool, now: int) -> Local:
    # What was stopped because it failed, failed when it was stopped, however long its end took.
    failed_at = local.since if local.phase == "stopping" else now
    failures = local.failures + 1
    rest = msgspec.structs.replace(local, failures=failures, handle={}, retry_at=None, reason=reason, since=now)
    if local.phase != "fetching":
        rest = probation.counted(rest, reason)
    if final:
        return msgspec.structs.replace(rest, phase="refused")
    if local.phase != "fetching" and probation.is_failed(rest, failed_at):
        return msgspec.structs.replace(rest, phase="refused", reason=probation.verdict(rest, failed_at))
    return msgspec.structs.replace(rest, phase="backoff", retry_at=now + backoff_ms(local.instance.name, failures))


def backoff_ms(name: str, failures: int) -> int:
    """One second doubled with every failure, five minutes at most, less up to a fifth so that a fleet does not retry
    as one."""
    full = min(BACKOFF_FIRST_MS << min(failures - 1, 20), BACKOFF_LONGEST_MS)
    return full - full * (zlib.crc32(f"{name}/{failures}".encode()) % 200) // 1000
