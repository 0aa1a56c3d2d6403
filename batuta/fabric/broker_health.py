"""How a broker is, in its own words, and when a new start would mend it.

A broker that could not write to its disk once takes nothing more for that stream until it is started anew, however much
room there is by then. Its links stand, it greets, it answers what it is asked: nobody notices but those whose messages
are not kept. So whoever keeps a broker asks it. One short conversation in the broker's plain protocol does, because a
client library would be kept in memory for years for one line a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

QUESTION: Final = "$SYS.REQ.SERVER.PING.HEALTHZ"
ANSWER_S: Final = 2.0
ANSWER_BYTES_MAX: Final = 1 << 20
WORDS_MAX: Final = 300

UNSAID: Final = "it does not say how it is"
"""It greets and then says nothing we understand: once is nothing, on a machine that is busy."""
WRITE_ERROR: Final = "write error"
"""What the broker calls a store that has given up."""
NO_SPACE: Final = "no space left"
ROOM_BYTES: Final = 4 << 20
"""Less than this is no room: a new start would end where the last one did."""
AGAIN_FIRST_S: Final = 5.0
AGAIN_LONGEST_S: Final = 300.0


async def ask(port: int, user: str, password: str, timeout_s: float = ANSWER_S) -> str | None:
    """Nothing when the broker is well, else its own words; None when it does not even greet.

    A broker greets everyone who connects, before it asks who they are. The user is one of its system account.
    """
    greeted = False
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                greeted = (await reader.readline()).startswith(b"INFO ")
                if not greeted:
                    return None
                writer.write(_question(user, password))
                return _words(await _answer(reader))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
        return f"{UNSAID}: {error or type(error).__name__}"[:WORDS_MAX] if greeted else None


def _question(user: str, password: str) -> bytes:
    who = json.dumps({"verbose": False, "pedantic": False, "user": user, "pass": password, "name": "batuta health"})
    inbox = f"_INBOX.{secrets.token_hex(8)}"
    return f"CONNECT {who}\r\nSUB {inbox} 1\r\nPUB {QUESTION} {inbox} 0\r\n\r\n".encode()


async def _answer(reader: asyncio.StreamReader) -> Any:
    """The first message; what the broker says before it is for clients that stay."""
    while line := await reader.readline():
        if line.startswith(b"-ERR"):
            raise ValueError(line[5:].decode(errors="replace").strip())
        if line.startswith(b"MSG "):
            size = int(line.split()[-1])
            if not 0 < size <= ANSWER_BYTES_MAX:
                raise ValueError(f"an answer of {size} bytes")
            return json.loads(await reader.readexactly(size))
    raise ValueError("it hung up")


def _words(answer: Any) -> str:
    """What is wrong, if anything is."""
    said = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(said, dict):
        raise ValueError("an answer that cannot be read")
    if said.get("status") == "ok":
        return ""
    return str(said.get("error") or said.get("status") or "no words")[:WORDS_MAX]


class Mending:
    """When a broker is to be started anew because its store has given up: once there is room, and ever more seldom."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._pause_s = AGAIN_FIRST_S
        self._not_before_s = 0.0

    def is_due(self, words: str, now_s: float) -> bool:
        """`words` as it said, `now_s` on a clock that does not step. True counts as done."""
        if WRITE_ERROR not in words:
            if now_s > self._not_before_s + AGAIN_LONGEST_S:
                self._pause_s = AGAIN_FIRST_S
            return False
        if now_s < self._not_before_s or room_bytes(self._store) < ROOM_BYTES:
            return False
        self._not_before_s = now_s + self._pause_s
        self._pause_s = min(self._pause_s * 2, AGAIN_LONGEST_S)
        return True


def room_bytes(directory: Path) -> int:
    """Free for us on its disk; 0 when nobody can say."""
    try:
        disk = os.statvfs(directory)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize
