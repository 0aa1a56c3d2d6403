"""Requests of the protocol, and the new release beside who is asked them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import msgspec

from batuta.dataflow.beside.newcomer import LATE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.dataflow.beside.newcomer import Newcomer
    from batuta.dataflow.beside.wire import Answer as Given
    from batuta.dataflow.beside.wire import Request
    from batuta.dataflow.oip.endpoint import Answer
    from batuta.dataflow.oip.faults import Fault
    from batuta.dataflow.oip.messages import Call

PARAMETER = "key"
"""Of a request: the same as the header."""


def key_of(said: str, call: Call, body: memoryview) -> str:
    """By what a request belongs to one release or the other: the key that it names, else its id, else itself. Who asks
    the same again is then answered by the same release, and whoever has a key always is."""
    if said:
        return said
    if (key := call.parameters.get(PARAMETER)) is not None:
        return str(key)
    return call.id if call.id is not None else f"{len(body)}:{zlib.crc32(body)}"


def showing(newcomer: Newcomer, request: Request, answer: Answer) -> Answer:
    """Answers, and then shows the answer. What this one could not answer is shown to nobody."""

    def answered(said: bytes, json_bytes: int | None, fault: Fault | None, by: str = "", /) -> None:
        answer(said, json_bytes, fault, *((by,) if by else ()))
        if fault is None:
            # Nobody waits for the other's answer, and it may take the time that it needs.
            what = msgspec.structs.replace(request, urgency=2, timeout_ms=None, said=said, said_json_bytes=json_bytes)
            newcomer.show(what, len(request.body) + len(said))

    return answered


def handing(
    newcomer: Newcomer, request: Request, done: Callable[[bytes, int | None, str], None], otherwise: Callable[[], None]
) -> None:
    """Asks it. `otherwise` is called when it does not answer: half of the time that there is, is left then."""
    assert newcomer.hello is not None
    by = newcomer.hello.instance

    def answered(answers: Sequence[Given]) -> None:
        (given,) = answers
        if given.fault:
            otherwise()
        else:
            done(given.body, given.json_bytes, by)

    within_s = LATE_S if request.timeout_ms is None else request.timeout_ms / 2_000
    newcomer.ask([], [request], answered, within_s)
