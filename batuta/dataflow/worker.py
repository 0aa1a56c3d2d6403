"""The model worker: a process that takes frames from the inboxes of its site, runs its model, and answers.

For each frame, in this order: answer into the `out` stream of the node that took the frame, hear that it is kept, then
acknowledge the frame. Killed anywhere between, the frame comes again within two seconds to whoever serves the inbox,
and the answer's name keeps it from being there twice. A frame that no run could ever answer is refused for good and
counted; so is one that kills the process (`suspects`).

Started by the node agent with its order on standard input, which holds paths of secrets, never secrets.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from batuta.core.worker import NEIGHBOURS_FILE, PULSE_EVERY_MS, PULSE_FILE, WorkerOrder
from batuta.dataflow import answers
from batuta.dataflow.beside.newcomer import Newcomer, shown
from batuta.dataflow.connect import connect
from batuta.dataflow.hand import Frame, Hand
from batuta.dataflow.posting import Posting
from batuta.dataflow.pull import Inbox, Pull
from batuta.dataflow.suspects import SUSPECTS_FILE, Suspects
from batuta.dataflow.tally import Tally
from batuta.dataflow.vouching import vouched_for
from batuta.errors import ArtifactRefused
from batuta.fabric import subjects
from batuta.fabric.tasks import end, hang_up
from batuta.kinds.base import decode_hook

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from batuta.dataflow.beside.wire import Answer, Hello
    from batuta.dataflow.scoring import Scorer
    from batuta.dataflow.serving import Serving
    from batuta.dataflow.tensors import Array

ORDER_BYTES_MAX = 1 << 20
NEIGHBOURS_BYTES_MAX = 1 << 20
KEPT_WITHIN_S = 2.0
"""An answer that is not known to be kept after this is not; its frame comes again."""
EXTEND_EVERY_S = 0.7
"""Well below the two seconds after which an unacknowledged frame is given to another."""
UNANSWERED_BATCHES_MAX = 2
EXIT_UNFIT = 3

log = logging.getLogger("worker")


class Worker:
    """One instance of a model."""

    def __init__(
        self, order: WorkerOrder, serving: Serving, scorer: Scorer | None, client: Client, tally: Tally
    ) -> None:
        """`scorer` is None when it has no topics, and answers requests only."""
        assert order.instance.model is not None
        self.order = order
        self.instance = order.instance
        self.model = order.instance.model
        self.serving = serving
        self.scorer = scorer
        self.tally = tally
        self.suspects = Suspects(Path(order.directory) / SUSPECTS_FILE, tally.error)
        self.hand = Hand(room=self.model.batch * 2, stir=self._stir)
        self.pulls: dict[str, Pull] = {}
        self._client = client
        self.posting = Posting(client)
        self.newcomer = Newcomer(self.instance, Path(order.directory), tally.error)
        serving.endpoint.newcomer = self.newcomer
        self._elsewhere: asyncio.Task[None] | None = None
        """Frames that the newcomer has, and all those before them."""
        self._routes = answers.routes_of(order.instance)
        self._answering: set[asyncio.Task[None]] = set()
        self._neighbours_seen: tuple[int, int] | None = None

    # --- Whom it serves ---

    async def meet_neighbours(self) -> None:
        """Serves exactly the nodes that the neighbours file names."""
        if self.scorer is None:
            return
        path = Path(self.order.directory) / NEIGHBOURS_FILE
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if seen == self._neighbours_seen:
                return
            with path.open("rb") as file:
                names = set(msgspec.json.decode(file.read(NEIGHBOURS_BYTES_MAX), type=list[str]))
            self._neighbours_seen = seen
        except (OSError, ValueError) as error:
            # Whoever it serves already, it goes on serving.
            self.tally.error(f"the list of neighbours cannot be read: {error}")
            return
        for name in sorted(self.pulls.keys() - names):
            await self.pulls.pop(name).stop()
        for name in sorted(names - self.pulls.keys()):
            inbox = Inbox(name, subjects.MQTT_KEPT_STREAM, subjects.reader(self.instance.consumer, name))
            self.pulls[name] = Pull(self._client, inbox, self.model.batch, take=self._take, may_take=self.hand.has_room)
            self.pulls[name].begin()

    def _stir(self) -> None:
        for pull in self.pulls.values():
            pull.stir()

    def _take(self, ingest: str, message: Msg) -> None:
        place = answers.place_of(message.reply)
        self.tally.received += 1
        self.tally.redelivered += place.delivered > 1
        self.hand.put(Frame(ingest, message, place, time.monotonic()))

    # --- Answering ---

    async def work(self) -> None:
        """Until the hand is closed and empty."""
        while frames := await self.hand.take(self.model.batch, self.model.linger_ms):
            together, alone, convicted = self.suspects.sort(frames)
            for frame in convicted:
                deaths = self.suspects.deaths_of(frame)
                await self._refuse(frame, f"the worker died {deaths} times while it ran on this and on nothing else")
            if self.newcomer.is_asked:
                together = self._hand_over(together)
            results = await self._run(together)
            for frame in alone:
                if self.suspects.deaths_of(frame):
                    # It may well take the process along: whatever is answered is to be out of hand by then.
                    await self._answer(results)
                    await self._all_settled()
                    results = []
                with self.suspects.alone(frame):
                    results += await self._run([frame])
            await self._answer(results)
            if self.newcomer.is_shown:
                for frame, result in results:
                    data = frame.message.data
                    self.newcomer.show(shown(frame.topic, data, said=result), len(data))
        await self._all_settled()

    def _hand_over(self, frames: list[Frame]) -> list[Frame]:
        """Gives the release on trial its share, and returns the rest. What it does not answer is answered here."""
        its = [frame for frame in frames if self.newcomer.takes(frame.topic)]
        if its:
            now = time.monotonic()
            given = [shown(frame.topic, frame.message.data, (now - frame.taken_at) * 1000) for frame in its]
            answered: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
            hello = self.newcomer.hello
            self.newcomer.ask(given, [], answered.set_result)
            self._elsewhere = asyncio.create_task(self._from_newcomer(self._elsewhere, its, hello, answered))
            self._elsewhere.add_done_callback(self._end_if_faulty)
        return [frame for frame in frames if frame not in set(its)]

    def _end_if_faulty(self, task: asyncio.Task[None]) -> None:
        """A fault of ours must not keep frames in hand for ever: the work ends by it, as by any other."""
        if not task.cancelled() and task.exception() is not None:
            self.hand.close()

    async def _from_newcomer(
        self,
        before: asyncio.Task[None] | None,
        frames: list[Frame],
        hello: Hello | None,
        answered: asyncio.Future[Sequence[Answer]],
    ) -> None:
        results: dict[Frame, dict[str, Any]] = {}
        for frame, answer in zip(frames, await answered, strict=True):
            found = answers.route_of(self._routes, frame.topic)
            if not answer.fault and isinstance(answer.made, dict) and found is not None:
                (frame.route, frame.output_topic), frame.id, frame.by = found, answer.id, hello
                results[frame] = answer.made
        results |= dict(await self._run([frame for frame in frames if frame not in results]))
        if before is not None:
            # In the order in which they came: what one source said first is answered first.
            await before
        await self._answer([(frame, results[frame]) for frame in frames if frame in results])

    async def _run(self, frames: list[Frame]) -> list[tuple[Frame, dict[str, Any]]]:
        if not frames:
            return []
        fit, items = await self._decoded(frames)
        return await self._scored(fit, items) if fit else []

    async def _answer(self, results: list[tuple[Frame, dict[str, Any]]]) -> None:
        """Published here, in order; only the waiting is done aside, while the next batch runs."""
        if not results:
            return
        while len(self._answering) >= UNANSWERED_BATCHES_MAX:
            await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)
        sent = [(frame, await self._send(frame, result)) for frame, result in results]
        task = asyncio.create_task(self._settle(sent))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _all_settled(self) -> None:
        if self._elsewhere is not None:
            await self._elsewhere
        while self._answering:
            await asyncio.wait(self._answering)

    async def _decoded(self, frames: Sequence[Frame]) -> tuple[list[Frame], list[Array]]:
        assert self.scorer is not None
        fit: list[Frame] = []
        items: list[Array] = []
        for frame in frames:
            found = answers.route_of(self._routes, frame.topic)
            if found is None:
                # Another revision of this component reads it, and shares the inbox.
                self.tally.passed_on += 1
                await self._quietly(frame.message.nak(delay=1))
                self.hand.drop(frame)
                continue
            frame.route, frame.output_topic = found
            try:
                how = frame.route.input.decode
                slow = self.scorer.is_slow(how)
                decoded = asyncio.to_thread(self.scorer.decode, frame.message.data, how) if slow else None
                item = await decoded if decoded is not None else self.scorer.decode(frame.message.data, how)
                frame.id = item.id
                items.append(item.tensor)
                fit.append(frame)
            except ValueError as error:
                await self._refuse(frame, str(error))
        return fit, items

    async def _scored(self, frames: list[Frame], items: list[Array]) -> list[tuple[Frame, dict[str, Any]]]:
        assert self.scorer is not None
        self.tally.batches += 1
        try:
            results = await self.scorer.score(items, self.serving.batching.run)
            return list(zip(frames, results, strict=True))
        except (
            Exception
        ) as error:  # ONNX Runtime raises its own kinds; whichever it is, somebody in the batch is at fault
            if len(frames) == 1:
                await self._refuse(frames[0], f"the model could not run on it: {_line(error)}")
                return []
        found: list[tuple[Frame, dict[str, Any]]] = []
        for frame, item in zip(frames, items, strict=True):
            found += await self._scored([frame], [item])
        return found

    async def _send(self, frame: Frame, result: dict[str, Any]) -> asyncio.Future[Any] | None:
        if frame.output_topic is None or frame.route is None:
            return None
        by = frame.by.instance if frame.by is not None else self.instance.name
        name = answers.answer_id(self.instance.consumer, frame.ingest, frame.place, frame.topic, frame.id)
        said = {
            **({"id": frame.id} if frame.id is not None else {}),
            **result,
            "model": frame.by.model if frame.by is not None else f"{self.model.name}:{self.model.version}",
            "instance": by,
            "node": self.order.broker["node"],
            "source": frame.topic,
            "at": time.time_ns() // 1_000_000,
        }
        try:
            subject = subjects.result(frame.ingest, subjects.subject_of_topic(frame.output_topic))
            headers = answers.headers_of(self.instance, frame.route, frame.output_topic, frame.topic, name, by)
            return await self.posting.post(subject, msgspec.json.encode(said), headers)
        except (
            Exception
        ) as error:  # a broker that is away, a topic that cannot be one: it stays unanswered and comes again
            unsent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            unsent.set_exception(error)
            return unsent

    async def _settle(self, sent: list[tuple[Frame, asyncio.Future[Any] | None]]) -> None:
        """Acknowledges every frame whose answer is kept, and leaves the others to come again."""
        waiting = [future for _, future in sent if future is not None and not future.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=KEPT_WITHIN_S)
        for frame, future in sent:
            if future is not None:
                if not future.done():
                    future.cancel()
                    self.tally.unsent_because(f"{frame.ingest} did not say that the answer is kept")
                    self.hand.drop(frame)
                    continue
                if (error := future.exception()) is not None:
                    self.tally.unsent_because(f"{frame.ingest} did not keep the answer: {_line(error)}")
                    self.hand.drop(frame)
                    continue
                self.tally.duplicates += bool(future.result().duplicate)
            await self._quietly(self._client.publish(frame.message.reply, b"+ACK"))
            if frame.by is None:
                # Who else answered it counts it: what a release is judged by is its own.
                self.tally.answered_after((time.monotonic() - frame.taken_at) * 1000)
            self.hand.drop(frame)

    async def _refuse(self, frame: Frame, why: str) -> None:
        """It would be refused for ever, so it never comes again."""
        self.tally.errors += 1
        self.tally.error(f"{frame.topic}: {why}")
        await self._quietly(frame.message.term())
        self.hand.drop(frame)

    async def _quietly(self, saying: Any) -> None:
        """What cannot be said to the broker is the same as not having come this far: the frame comes again."""
        try:
            await saying
        except Exception as error:  # the client raises its own kinds
            self.tally.error(f"could not acknowledge: {_line(error)}")

    async def extend(self) -> None:
        """Tells the brokers that what is in hand is being worked on."""
        while True:
            await asyncio.sleep(EXTEND_EVERY_S)
            before = time.monotonic() - EXTEND_EVERY_S
            for frame in self.hand.held():
                if frame.taken_at <= before:
                    await self._quietly(frame.message.in_progress())

    # --- Living ---

    async def live(self, stop: asyncio.Event) -> None:
        """Until told to stop; then finishes what is in hand."""
        await self.posting.begin()
        aside = [asyncio.create_task(each) for each in (self.extend(), self._beat(stop), self.newcomer.run())]
        working = asyncio.create_task(self.work())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping, *aside}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await asyncio.gather(self.serving.close(), *(pull.stop() for pull in self.pulls.values()))
        self.hand.close()
        try:
            await working
            if self._client.is_connected:
                await self._client.flush()
        finally:
            faulty = [task for task in aside if task.done()]
            await end(*aside, stopping)
            # The last word, so that its books are whole.
            self.tally.handover = self.newcomer.books
            self.tally.beat("stopping")
        for task in faulty:
            # A fault of what runs aside is a fault of the worker: it ends by it, and is started anew.
            task.result()

    async def _beat(self, stop: asyncio.Event) -> None:
        while True:
            if not stop.is_set():
                await self.meet_neighbours()
            self.tally.handover = self.newcomer.books
            reached = tuple(sorted(name for name, pull in self.pulls.items() if pull.reached))
            self.tally.beat("stopping" if stop.is_set() else "ready", reached=reached)
            await asyncio.sleep(PULSE_EVERY_MS / 1000)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


async def run(order: WorkerOrder) -> int:
    """One worker's life; its exit status."""
    tally = Tally(Path(order.directory) / PULSE_FILE, order.start)
    tally.beat("loading")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if order.instance.model is None:
        tally.beat("failed", code="start_failed", detail="the order names no model", final=True)
        return EXIT_UNFIT
    try:
        await asyncio.to_thread(vouched_for, order)
    except ArtifactRefused as refused:
        log.error("%s", refused)  # noqa: TRY400 - as below
        tally.beat("failed", code=refused.code, detail=refused.message, final=True)
        return EXIT_UNFIT
    from batuta.dataflow.engines import Unfit
    from batuta.dataflow.scoring import Scorer
    from batuta.dataflow.serving import Serving

    inputs = order.instance.inputs
    try:
        serving = Serving(order, tally)
        tensor = next((i.tensor for i in inputs if i.tensor is not None), None)
        scorer = Scorer(serving.engine, order.instance.model, tensor, serving.transformed) if inputs else None
    except Unfit as unfit:
        log.error("%s", unfit)  # noqa: TRY400 - a sentence for people; the trace says nothing more
        tally.beat("failed", code=unfit.code, detail=str(unfit), final=True)
        return EXIT_UNFIT
    if order.instance.beside is not None:
        from batuta.dataflow.beside.trial import Trial

        await Trial(order, serving, scorer, tally).live(stop)
        return 0
    try:
        await serving.listen()
    except OSError as error:
        log.error("requests cannot be taken: %s", error)  # noqa: TRY400 - as above
        code = "port_taken" if error.errno == errno.EADDRINUSE else "start_failed"
        tally.beat("failed", code=code, detail=f"requests cannot be taken: {error.strerror}")
        return EXIT_UNFIT
    client = await connect(order.broker, f"worker {order.instance.name}", stop)
    if client is None:
        return 0
    try:
        await serving.join(client)
        await Worker(order, serving, scorer, client, tally).live(stop)
    finally:
        await hang_up(client)
    log.info("stopped after %d answers", tally.answered)
    return 0


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("nats").setLevel(logging.WARNING)
    order = msgspec.json.decode(sys.stdin.buffer.read(ORDER_BYTES_MAX), type=WorkerOrder, dec_hook=decode_hook)
    import uvloop

    sys.exit(uvloop.run(run(order)))


if __name__ == "__main__":
    main()
