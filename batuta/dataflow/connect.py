"""A connection to the node's own broker, for processes that live as long as it does and longer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import nats
from nats.errors import Error as NatsError

from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.client import Client

SECRET_BYTES_MAX = 64 * 1024
TRY_S = 10.0
RETRY_S = 0.5

log = logging.getLogger("worker")


async def connect(broker: Mapping[str, str], name: str, stop: asyncio.Event) -> Client | None:
    """Tries until it is connected, or None once it is told to stop. The client then reconnects by itself, for ever."""
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            if (client := await _tried(broker, name, stopping)) is not None:
                return client
            await asyncio.wait({stopping}, timeout=RETRY_S)
        return None
    finally:
        await end(stopping)


async def _tried(broker: Mapping[str, str], name: str, stopping: asyncio.Task[bool]) -> Client | None:
    """The library tries for ever, also when it is refused, and with what it was told first: so it is given a while, and
    then begins anew with what is true by then."""
    trying = asyncio.create_task(_once(broker, name))
    try:
        await asyncio.wait({trying, stopping}, timeout=TRY_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(trying)
    if trying.cancelled():
        return None
    try:
        return trying.result()
    except (OSError, NatsError, TimeoutError) as error:
        log.warning("the broker cannot be reached: %s", error or type(error).__name__)
        return None


async def _once(broker: Mapping[str, str], name: str) -> Client:
    return await nats.connect(
        broker["url"],
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.2,
        connect_timeout=3,
        ping_interval=10,
        max_outstanding_pings=2,
        error_cb=_say,
        **secrets(broker.get("credentials", "")),
    )


def secrets(path: str) -> dict[str, Any]:
    """What the file at `path` proves: `{"user", "password"}`, `{"token"}`, or a NATS credentials file."""
    if not path:
        return {}
    with Path(path).open("rb") as file:
        text = file.read(SECRET_BYTES_MAX)
    if text.lstrip().startswith(b"-----BEGIN"):
        return {"user_credentials": path}
    said = msgspec.json.decode(text, type=dict[str, str])
    return {each: said[each] for each in ("user", "password", "token") if each in said}


async def _say(error: Exception) -> None:
    log.warning("broker: %s", error or type(error).__name__)
