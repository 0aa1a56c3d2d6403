"""The life of a worker on trial: it listens beside the old one, computes what it is given, and counts how it fares.

In shadow nobody waits for it, and it reads no further than it has come: what it cannot follow, the old one drops. In
split it answers what it is asked, several things at once. It takes no frames, acknowledges none, answers no caller of
its own and is in no card: all of that stays with the old one, so that nothing is lost with this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from batuta.core.beside import salt_of, socket_name
from batuta.core.worker import PULSE_EVERY_MS
from batuta.dataflow import answers
from batuta.dataflow.beside.agreement import Compared, rows, same
from batuta.dataflow.beside.wire import FORMAT, PIECE_BYTES, Answer, Back, Hello, handed, packed, read
from batuta.dataflow.engines import first_line
from batuta.dataflow.oip.endpoint import Asking
from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.messages import read_answer
from batuta.dataflow.unix import listen_unix
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.core.worker import WorkerOrder
    from batuta.dataflow.beside.wire import Frame, Handed, Request
    from batuta.dataflow.scoring import Scorer
    from batuta.dataflow.serving import Serving
    from batuta.dataflow.tally import Tally
    from batuta.dataflow.tensors import Array

AT_ONCE_MAX: Final = 64
"""Messages that are being answered; further ones are not read yet."""
FINISH_S: Final = 5.0
YIELDS: Final = 5
NOT_ITS_FAULT: Final = frozenset(("overloaded", "deadline_passed", "not_ready"))
UNREAD: Final = "this release does not read that topic"


class Trial:
    """One new release."""

    def __init__(self, order: WorkerOrder, serving: Serving, scorer: Scorer | None, tally: Tally) -> None:
        assert order.instance.beside is not None
        assert order.instance.model is not None
        self.order = order
        self.instance = order.instance
        self.serving = serving
        self.scorer = scorer
        self.tally = tally
        self._routes = answers.routes_of(order.instance)
        self._own = frozenset(port.name for port in serving.engine.outputs)
        self._path = Path(order.directory).parent / socket_name(order.instance)
        self._hello = Hello(
            FORMAT, order.instance.name, f"{order.instance.model.name}:{order.instance.model.version}",
            order.instance.beside.mode, order.instance.beside.share, salt_of(order.instance), scorer is not None,
        )  # fmt: skip
        self._answering: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        serving.endpoint.told = self._told

    # --- Living ---

    async def live(self, stop: asyncio.Event) -> None:
        """Until told to stop; then answers what it was asked."""
        listening = listen_unix(self._path)
        mine = self._path.stat().st_ino
        server = await asyncio.start_unix_server(self._serve, sock=listening, limit=PIECE_BYTES)
        beating = asyncio.create_task(self._beat())
        stopping = asyncio.create_task(stop.wait())
        if self._hello.mode == "shadow":
            # Nobody waits for it: where there is not enough processor for both, the old one has three parts of four.
            os.nice(YIELDS)
        try:
            await asyncio.wait({beating, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.close()
            with contextlib.suppress(OSError):
                # Another may listen there by now.
                if self._path.stat().st_ino == mine:
                    self._path.unlink()
            for writer in self._writers:
                writer.write(packed(Back(0)))
            if self._answering:
                await asyncio.wait(self._answering, timeout=FINISH_S)
            for writer in tuple(self._writers):
                writer.close()
            await end(stopping)
            faulty = beating if beating.done() else None
            await end(beating)
            await self.serving.close()
            self.tally.beat("stopping")
        if faulty is not None:
            faulty.result()

    async def _beat(self) -> None:
        while True:
            self.tally.beat("ready")
            await asyncio.sleep(PULSE_EVERY_MS / 1000)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One old worker; a second one may be there while it is exchanged itself."""
        self._writers.add(writer)
        try:
            writer.write(packed(self._hello))
            while True:
                given = handed.decode(await read(reader))
                if given.number == 0:
                    await self._shown(given)
                    continue
                while len(self._answering) >= AT_ONCE_MAX:
                    await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._asked(given, writer))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
        except (EOFError, OSError):
            pass  # the old one ended, or is started anew: it comes again
        except ValueError as error:
            self.tally.error(f"what the old release handed over cannot be read: {error}")
        finally:
            self._writers.discard(writer)
            writer.close()

    # --- Computing ---

    async def _asked(self, given: Handed, writer: asyncio.StreamWriter) -> None:
        found, said = await asyncio.gather(self._frames(given.frames), self._requests(given.requests))
        try:
            back = packed(Back(given.number, [*found, *said]))
        except ValueError as error:
            back = packed(Back(given.number, [Answer(fault=str(error))] * (len(found) + len(said))))
        if not writer.is_closing():
            writer.write(back)

    async def _shown(self, given: Handed) -> None:
        found, said = await asyncio.gather(self._frames(given.frames), self._requests(given.requests))
        for frame, answer in zip(given.frames, found, strict=True):
            if answer.fault != UNREAD:
                self._compare(Compared(1, int(not answer.fault and same(frame.said, answer.made))))
        for request, answer in zip(given.requests, said, strict=True):
            if answer.fault not in NOT_ITS_FAULT:
                self._compare(self._same_rows(request, answer))

    def _compare(self, compared: Compared) -> None:
        self.tally.compared += compared.rows
        self.tally.agreed += compared.agreed

    def _same_rows(self, request: Request, answer: Answer) -> Compared:
        try:
            old = read_answer(memoryview(request.said), request.said_json_bytes)
            if answer.fault:
                return Compared(max((len(each.array) for each in old.values() if each.array.ndim), default=1), 0)
            return rows(old, read_answer(memoryview(answer.body), answer.json_bytes), self._own)
        except Fault as fault:
            self.tally.error(f"two answers could not be compared: {fault.message}")
            return Compared(1, 0)

    async def _frames(self, frames: Sequence[Frame]) -> list[Answer]:
        """Whatever goes wrong is one frame's fault, and told of that one."""
        if not frames:
            return []
        begun = time.monotonic()
        self.tally.received += len(frames)
        found: dict[int, Answer] = {}
        fit: list[int] = []
        items: list[Array] = []
        ids: dict[int, str | None] = {}
        for i, frame in enumerate(frames):
            route = answers.route_of(self._routes, frame.topic)
            if route is None or self.scorer is None:
                self.tally.passed_on += 1
                found[i] = Answer(UNREAD)
                continue
            how, data = route[0].input.decode, bytes(frame.data)
            try:
                slow = asyncio.to_thread(self.scorer.decode, data, how) if self.scorer.is_slow(how) else None
                item = await slow if slow is not None else self.scorer.decode(data, how)
            except ValueError as error:
                found[i] = self._failed(frame, str(error))
                continue
            fit.append(i)
            items.append(item.tensor)
            ids[i] = item.id
        for i, result in zip(fit, await self._scored(items), strict=True):
            if isinstance(result, Exception):
                found[i] = self._failed(frames[i], f"the model could not run on it: {first_line(result)}")
                continue
            self.tally.answered_after(frames[i].age_ms + (time.monotonic() - begun) * 1000)
            found[i] = Answer(made=result, id=ids[i])
        return [found[i] for i in range(len(frames))]

    async def _scored(self, items: list[Array]) -> list[dict[str, Any] | Exception]:
        if not items:
            return []
        assert self.scorer is not None
        assert self.instance.model is not None
        batch = self.instance.model.batch
        if len(items) > batch:
            parts = [await self._scored(items[i : i + batch]) for i in range(0, len(items), batch)]
            return [each for part in parts for each in part]
        self.tally.batches += 1
        try:
            return list(await self.scorer.score(items, self.serving.batching.run))
        except Exception as error:  # runtimes raise their own kinds; whichever it is, somebody in the batch is at fault
            if len(items) == 1:
                return [error]
        return [each for item in items for each in await self._scored([item])]

    def _failed(self, frame: Frame, why: str) -> Answer:
        self.tally.errors += 1
        self.tally.error(f"{frame.topic}: {why}")
        return Answer(why or "it failed")

    async def _requests(self, requests: Sequence[Request]) -> list[Answer]:
        """All at once: what may run together does."""
        return list(await asyncio.gather(*(self._request(each) for each in requests)))

    async def _request(self, request: Request) -> Answer:
        found: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def say(body: bytes, json_bytes: int | None, fault: Fault | None, _by: str = "", /) -> None:
            if not found.done():
                found.set_result(Answer(fault.code) if fault is not None else Answer("", body, json_bytes))

        asking = Asking(request.urgency, request.timeout_ms)
        self.serving.endpoint.infer(request.body, request.json_bytes, asking, say)
        return await found

    def _told(self, took_ms: float, fault: Fault | None) -> None:
        self.tally.received += 1
        if fault is None:
            self.tally.answered_after(took_ms)
        elif fault.code in NOT_ITS_FAULT:
            self.tally.refused[fault.code] = self.tally.refused.get(fault.code, 0) + 1
        else:
            # The old one has taken it, so whatever the new one does not like about it is the new one's fault.
            self.tally.errors += 1
            self.tally.error(f"a request: {fault.message}")
