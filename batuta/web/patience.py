"""Patience: how long a connection may take to say what it wants.

The server below waits for ever for the end of a request that has begun. Here the head of a request has a deadline, and
so has what still comes of a body once its answer was given. What is answered too late is answered 408, or, when the
answer was given already, cut off. The body itself is `bodies`' to be patient with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from batuta.web.answers import refusal

if TYPE_CHECKING:
    import asyncio

HEAD_S: Final = 10.0
REST_S: Final = 10.0
TAKEN_S: Final = 30.0
"""Whoever takes nothing of its answer for so long is hung up on: what it does not read is memory of the hub."""
HANG_UP: Final = "batuta.hang_up"
"""What the state of a request calls this by: for whoever knows sooner that nobody reads its answer."""
Awaited = Literal["", "head", "rest"]


class Patient(H11Protocol):
    """One connection."""

    transport: asyncio.Transport
    _awaited: Awaited = ""
    _deadline: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, HANG_UP: transport.abort}
        self._await("head", HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._await("", 0)
        self._watch_taking(0)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_taking(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch_taking(0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP at all is answered in our words too."""
        self._refuse(400, msg)

    def _look(self) -> None:
        """What is awaited now, by the two states of the connection."""
        if self.transport.is_closing():
            self._await("", 0)
        elif self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            # Between two requests the server's own patience counts; it ends with the first byte of the next.
            self._await("" if self.timeout_keep_alive_task is not None else "head", HEAD_S)
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state in (h11.DONE, h11.MUST_CLOSE):
            self._await("rest", REST_S)
        else:
            self._await("", 0)

    def _await(self, what: Awaited, seconds: float) -> None:
        if what == self._awaited:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._awaited = what
        self._deadline = self.loop.call_later(seconds, self._give_up) if what else None

    def _watch_taking(self, waiting_bytes: int) -> None:
        if self._taking is not None:
            self._taking.cancel()
        self._taking = self.loop.call_later(TAKEN_S, self._look_taking, waiting_bytes) if waiting_bytes else None

    def _look_taking(self, waited_bytes: int) -> None:
        waiting_bytes = self.transport.get_write_buffer_size()
        if waiting_bytes >= waited_bytes:
            self.transport.abort()
        else:
            self._watch_taking(waiting_bytes)

    def _give_up(self) -> None:
        has_begun = bool(self.conn.trailing_data[0])
        if self._awaited == "head" and self.conn.our_state is h11.IDLE and has_begun:
            self._refuse(408, f"no whole request came in {HEAD_S:.0f} s")
        else:
            self.transport.close()

    def _refuse(self, code: int, message: str) -> None:
        body = msgspec.json.encode(refusal(code, message))
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=code, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            said = self.conn.send(event)
            if said:
                self.transport.write(said)
        self.transport.close()
