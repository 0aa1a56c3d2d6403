"""/doctor: the hub looks at itself. Each row is one question; each answer says what to do next."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.routing import Route

from batuta.core.liveness import link
from batuta.errors import FabricUnavailable
from batuta.fabric import identity
from batuta.hub.audit_reading import newest_sequence
from batuta.web.answers import said

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.hub import Hub

DISK_FREE_WARN_BYTES: Final = 2**30
DISK_FREE_FAIL_BYTES: Final = 64 * 2**20
DAY_MS: Final = 86_400_000
CLOCK_EARLIEST_MS: Final = 1_735_689_600_000
"""2025: a clock before this has never been set."""


class Check(NamedTuple):
    """One question and its answer."""

    name: str
    result: str
    """`pass`, `warn` or `fail`."""
    message: str
    next_step: str = ""


def doctor_routes(hub: Hub) -> list[Route]:
    async def doctor(_request: Request) -> Response:
        checks = [
            await tables(hub),
            await audited(hub),
            clock(hub),
            disk(hub),
            authority(hub),
            listener(hub),
            nodes(hub),
            reports(hub),
            increments(hub),
        ]
        rows = [{"name": c.name, "result": c.result, "message": c.message, "nextStep": c.next_step} for c in checks]
        return said({"checks": rows})

    return [Route("/doctor", doctor, methods=["GET"])]


async def tables(hub: Hub) -> Check:
    """Can the broker be reached, and does it keep what it is given?"""
    if not hub.fabric.is_connected:
        return Check("broker", "fail", "the hub's broker is not connected", "see <state>/hub/broker/broker.log")
    began = time.perf_counter()
    try:
        await hub.fabric.table("decided").get("hub.epoch")
    except FabricUnavailable as error:
        return Check("broker", "fail", error.message, "see <state>/hub/broker/broker.log")
    took_ms = (time.perf_counter() - began) * 1000
    if hub.loop.unavailable:
        return Check("broker", "fail", f"decisions cannot be written: {hub.loop.unavailable}", "free some disk space")
    return Check("broker", "pass", f"tables answer in {took_ms:.1f} ms, epoch {hub.store.epoch}")


async def audited(hub: Hub) -> Check:
    """Can the audit be kept? While it cannot, nothing is written at all."""
    try:
        newest = await newest_sequence(hub.audit)
    except FabricUnavailable as error:
        return Check("audit", "fail", f"it cannot be read: {error.message}", "see <state>/hub/broker/broker.log")
    if hub.audit.unavailable:
        message = f"it could not be kept, so the write was refused: {hub.audit.unavailable}"
        return Check(
            "audit", "fail", message, "free some disk space, see <state>/hub/broker/broker.log, then write again"
        )
    return Check("audit", "pass", f"{newest} entries were kept so far" if newest else "nothing was written yet")


def clock(hub: Hub) -> Check:
    if hub.clock.now() < CLOCK_EARLIEST_MS:
        return Check("clock", "fail", "this machine's clock has never been set", "timedatectl set-ntp true")
    return Check("clock", "pass", "this machine's clock is set")


def disk(hub: Hub) -> Check:
    stat = os.statvfs(hub.config.directory)
    free = stat.f_bavail * stat.f_frsize
    message = f"{free / 2**30:.1f} GiB free in {hub.config.directory}"
    if free < DISK_FREE_FAIL_BYTES:
        return Check("disk", "fail", message, "free some space, or move the state with --state")
    if free < DISK_FREE_WARN_BYTES:
        return Check("disk", "warn", message, "free some space soon")
    return Check("disk", "pass", message)


def authority(hub: Hub) -> Check:
    root = hub.authorities.root(hub.clock.now())
    return _ends("authority", root.certificate_pem, hub.clock.now(), "nodes must join again before it ends")


def listener(hub: Hub) -> Check:
    chain = hub.authorities.listener.chain
    if not chain.exists():
        return Check("listener", "warn", "there is no certificate for HTTPS and links", "restart `batuta up`")
    return _ends("listener", chain.read_text(), hub.clock.now(), "restart `batuta up` to renew it")


def _ends(name: str, certificate: str, now: int, next_step: str) -> Check:
    left_ms = identity.validity(certificate)[1] - now
    message = f"its certificate ends in {left_ms // DAY_MS} days"
    if left_ms <= 0:
        return Check(name, "fail", "its certificate has ended", next_step)
    return Check(name, "warn" if left_ms < 30 * DAY_MS else "pass", message, next_step if left_ms < 30 * DAY_MS else "")


def nodes(hub: Hub) -> Check:
    state, now, waiting = hub.loop.state, hub.clock.now(), sorted(hub.enrolment.waiting)
    if waiting:
        many = "1 machine waits" if len(waiting) == 1 else f"{len(waiting)} machines wait"
        names = ", ".join(waiting[:5])
        return Check("nodes", "warn", f"{many} for approval: {names}", f"batuta node approve {waiting[0]}")
    if not state.nodes:
        return Check("nodes", "warn", "no node has joined", "batuta token create")
    away = sorted(node for node in state.nodes if link(state, node, now) != "online")
    message = f"{len(state.nodes) - len(away)} of {len(state.nodes)} nodes are online"
    if away:
        return Check("nodes", "warn", f"{message}; not {', '.join(away[:5])}", f"batuta describe node {away[0]}")
    return Check("nodes", "pass", message)


def reports(hub: Hub) -> Check:
    if hub.store.garbled:
        reason = next(iter(hub.store.garbled.values()))
        return Check("reports", "warn", str(reason), reason.next_step)
    return Check("reports", "pass", "every report can be read")


def increments(hub: Hub) -> Check:
    missed = hub.counters["incremental_differences"]
    if missed:
        return Check("decisions", "warn", f"full passes put {missed} missed changes right", "please report this bug")
    return Check("decisions", "pass", "deciding by changes missed nothing")
