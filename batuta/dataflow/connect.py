"""A connection to the node's own broker, for processes that live as long as it does and longer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import nats
from nats.errors import Error as NatsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.client import Client

SECRET_BYTES_MAX = 64 * 1024
RETRY_S = 0.5

log = logging.getLogger("worker")


async def connect(broker: Mapping[str, str], name: str, stop: asyncio.Event) -> Client | None:
    """Tries until it is connected, or None once it is told to stop. The client then reconnects by itself, for ever."""
    while not stop.is_set():
        try:
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
        except (OSError, NatsError, TimeoutError) as error:
            log.warning("the broker cannot be reached: %s", error or type(error).__name__)
        try:
            async with asyncio.timeout(RETRY_S):
                await stop.wait()
        except TimeoutError:
            continue
    return None


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
