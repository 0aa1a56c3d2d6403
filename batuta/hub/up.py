"""What nodes forward: one log per priority class, bounded by the fabric, each entry once. Here it is only read."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from batuta.fabric.subjects import UP_CLASSES

if TYPE_CHECKING:
    from batuta.fabric.base import Fabric, LogEntry

LIMIT_MAX: Final = 2_000


class UpReader:
    """Reads forwarded data, for people and programs that ask over HTTP."""

    def __init__(self, fabric: Fabric) -> None:
        self._logs = {each: fabric.log(f"up-{each}") for each in UP_CLASSES}

    async def read(self, priority: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Up to `limit` entries with a sequence greater than `after`, in order."""
        entries = await self._logs[priority].read(after, max(1, min(limit, LIMIT_MAX)))
        return [_shown(entry) for entry in entries]


def _shown(entry: LogEntry) -> dict[str, Any]:
    """An entry as JSON; what is not text is base64, and says so."""
    shown: dict[str, Any] = {
        "sequence": entry.sequence,
        "node": entry.key.split(".", 1)[0],
        "topic": entry.headers.get("Batuta-Topic", ""),
        "sourceTopic": entry.headers.get("Batuta-Source-Topic", ""),
        "instance": entry.headers.get("Batuta-Instance", ""),
        "id": entry.headers.get("Nats-Msg-Id", ""),
        "at": entry.at_ms,
    }
    try:
        shown["payload"] = entry.data.decode()
    except UnicodeDecodeError:
        shown["payload"] = base64.b64encode(entry.data).decode()
        shown["encoding"] = "base64"
    return shown
