"""An endpoint: one model that answers requests, however they came.

It takes a body and gives a body back, once, through a callback: a request of a tiny model is answered within the call
that read it. Whoever carries the bytes, HTTP or the fabric, knows nothing of tensors.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from batuta.dataflow.beside.requests import handing, key_of, showing
from batuta.dataflow.beside.wire import Request
from batuta.dataflow.engines import first_line
from batuta.dataflow.oip.batching import Job
from batuta.dataflow.oip.datatypes import BYTES, DTYPES
from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.messages import Asked, Call, Given, Made, from_bytes, read, write
from batuta.dataflow.oip.shaped import Shaped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batuta.dataflow.beside.newcomer import Newcomer
    from batuta.dataflow.engines import Engine
    from batuta.dataflow.oip.batching import Batching
    from batuta.dataflow.oip.datatypes import Port
    from batuta.dataflow.oip.regions import Regions
    from batuta.dataflow.oip.transformed import Transformed

    class Answer(Protocol):
        """Body; how much of it is JSON when tensors follow; why it is none, when it is none; and by whom it is, when
        there are two."""

        def __call__(self, said: bytes, json_bytes: int | None, fault: Fault | None, by: str = "", /) -> None: ...


EXTENSIONS: Final = (
    "binary_tensor_data", "classification", "model_repository", "schedule_policy", "system_shared_memory",
)  # fmt: skip
IMAGES_AT_ONCE_MAX: Final = 64
IMAGE_THREADS: Final = 2
"""An image is large once it is unpacked, so few are at one time."""
CLASSES_OF_PRIORITY: Final = {1: 0, 2: 1, 3: 2}
"""The protocol's extension counts priorities from 1, the highest; 0 is what the server thinks usual."""


class Asking(NamedTuple):
    """What came with a request, beside its body."""

    urgency: int = 1
    timeout_ms: float | None = None
    """From now on; None when there is all the time in the world."""
    shared: Callable[[], Regions] | None = None
    """Gives the shared memory that who asks may use, or raises Fault; None when it cannot be reached from there."""
    key: str = ""
    """What it is about, when it says so."""
    pinned: bool = False
    """It names a version, and no other may answer it."""


class Endpoint:
    """One model, and how requests to it fare."""

    def __init__(
        self, name: str, version: str, engine: Engine, batching: Batching, shaped: Shaped | Transformed | None = None
    ) -> None:
        self.name = name
        self.version = version
        self.engine = engine
        self.batching = batching
        self.shaped: Shaped | Transformed = shaped or Shaped(engine, None, None, ())
        self._unpacking = ThreadPoolExecutor(IMAGE_THREADS, thread_name_prefix="image")
        self._shaping = 0
        """Requests whose images are being unpacked."""
        self.is_ready = True
        self.received = 0
        self.answered = 0
        self.refused = 0
        self.told: Callable[[float, Fault | None], None] = lambda _ms, _fault: None
        """Hears of every request that is over: how many milliseconds it took, and what was wrong with it."""
        self.newcomer: Newcomer | None = None
        """The release on trial beside this one, if there is any."""
        self._inputs = {port.name: port for port in engine.inputs}
        self._outputs = {port.name: i for i, port in enumerate(engine.outputs)}
        self._loop = asyncio.get_running_loop()

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": self.engine.platform,
            "inputs": [_described(port) for port in self.engine.inputs],
            "outputs": [_described(port) for port in self.engine.outputs],
        }

    def infer(self, body: memoryview, json_bytes: int | None, asking: Asking, answer: Answer) -> None:
        """Calls `answer` once: now, or when there is one."""
        begun = time.perf_counter()
        self.received += 1

        def over(said: bytes, size: int | None, fault: Fault | None, by: str = "", /) -> None:
            if fault is None:
                self.answered += 1
            else:
                self.refused += 1
            if by and self.newcomer is not None:
                if by == self.newcomer.own:
                    self.told((time.perf_counter() - begun) * 1000, fault)
                answer(said, size, fault, by)
                return
            self.told((time.perf_counter() - begun) * 1000, fault)
            answer(said, size, fault)

        try:
            self._take(body, json_bytes, asking, over)
        except Fault as fault:
            over(fault.body, None, fault)
        except MemoryError:
            large = Fault("too_large", "there is no memory for this request")
            over(large.body, None, large)

    def _take(self, body: memoryview, json_bytes: int | None, asking: Asking, answer: Answer) -> None:
        if not self.is_ready:
            raise Fault("not_ready", f"{self.name} is stopping", 1)
        shared = asking.shared
        in_memory = False

        def region(said: Mapping[str, Any]) -> memoryview:
            nonlocal in_memory
            in_memory = True
            assert shared is not None
            return shared().read(said)

        call = self._raw(body) if json_bytes == 0 else read(body, json_bytes, None if shared is None else region)
        for asked in call.outputs:
            if asked.name not in self._outputs and not self.shaped.may_answer(asked.name):
                raise Fault("unfit", f"there is no output {asked.name!r}; there is {', '.join(self._outputs)}")
        urgency, timeout_ms = _pressing(call, asking)
        deadline = None if timeout_ms is None else self._loop.time() + timeout_ms / 1000
        newcomer = self.newcomer
        if newcomer is None or newcomer.hello is None or in_memory or any(asked.region for asked in call.outputs):
            # Memory that is shared with this worker is not shared with another.
            self._run(call, asking, urgency, deadline, answer)
            return
        request = Request(body, json_bytes, urgency, timeout_ms)
        if newcomer.is_shown:
            self._run(call, asking, urgency, deadline, showing(newcomer, request, answer))
            return
        if not asking.pinned and newcomer.takes(key_of(asking.key, call, body)):
            self.batching.guests += 1

            def go_on() -> None:
                self.batching.guests -= 1
                try:
                    self._run(call, asking, urgency, deadline, answer, newcomer.own)
                except Fault as fault:
                    answer(fault.body, None, fault, newcomer.own)
                self.batching.settle()

            def done(said: bytes, size: int | None, by: str) -> None:
                self.batching.guests -= 1
                answer(said, size, None, by)
                self.batching.settle()

            handing(newcomer, request, done, go_on)
            return
        self._run(call, asking, urgency, deadline, answer, newcomer.own)

    def _run(  # noqa: PLR0917
        self, call: Call, asking: Asking, urgency: int, deadline: float | None, answer: Answer, by: str = ""
    ) -> None:
        """Raises Fault when it is not to be had."""
        shared = asking.shared
        in_images = self.shaped.is_meant(call)
        said_by = (by,) if by else ()

        def done(outputs: Sequence[Any] | None, fault: Exception | None) -> None:
            if in_images and outputs is not None and self.shaped.is_slow:
                self._loop.run_in_executor(self._unpacking, finished, outputs, fault).add_done_callback(
                    lambda finishing: answer(*finishing.result(), *said_by)
                )
            else:
                answer(*finished(outputs, fault), *said_by)

        def finished(outputs: Sequence[Any] | None, fault: Exception | None) -> tuple[bytes, int | None, Fault | None]:
            """Never raises: whoever waits is to hear of everything that can go wrong."""
            try:
                if outputs is None:
                    raise _blamed(fault)
                made = self._made(outputs, call, in_images=in_images)
                store = None if shared is None else lambda where, data: shared().write(where, data)
                said, size = write(self.name, self.version, call, made, store)
            except Fault as wrong:
                return wrong.body, None, wrong
            except Exception as error:  # no memory for the answer, say
                failed = Fault("model_failed", f"the answer could not be made: {first_line(error)}")
                return failed.body, None, failed
            return said, size, None

        if not in_images:
            feeds, rows, alone = self._fed(call)
            self.batching.submit(Job(feeds, rows, done, urgency=urgency, deadline=deadline, alone=alone))
            return
        if self._shaping >= IMAGES_AT_ONCE_MAX:
            raise Fault("overloaded", f"the images of {self._shaping} requests are being unpacked already", 1)

        def go_on(shaping: asyncio.Future[dict[str, Any]]) -> None:
            self._shaping -= 1
            self.batching.guests -= 1
            try:
                feeds = shaping.result()
                rows = len(next(iter(feeds.values())))
                self.batching.submit(Job(feeds, rows, done, urgency=urgency, deadline=deadline))
            except Exception as error:  # Fault, or whatever else: who asked is told
                done(None, error)

        # It is here already, so it counts: for whoever asks how busy this is, and for whoever waits for the last one.
        self.batching.guests += 1
        self._shaping += 1
        self._loop.run_in_executor(self._unpacking, self.shaped.feeds, call).add_done_callback(go_on)

    def _raw(self, body: memoryview) -> Call:
        """No JSON at all: the body is the only input, and its shape follows from its size."""
        if len(self.engine.inputs) != 1:
            raise Fault("unfit", f"a body of tensors alone is for models of one input; {self.name} has more")
        port = self.engine.inputs[0]
        shape = list(port.shape)
        free = [i for i, d in enumerate(shape) if d < 0]
        if port.datatype == BYTES:
            raise Fault("unfit", "a body of tensors alone cannot be BYTES")
        if free:
            # The first that varies takes what is there; others are 1.
            for i in free:
                shape[i] = 1
            step = math.prod(shape) * DTYPES[port.datatype].itemsize
            shape[free[0]] = len(body) // step if step else 0
        return Call({port.name: from_bytes(port.name, port.datatype, shape, body)}, binary=True)

    def _fed(self, call: Call) -> tuple[dict[str, Any], int, bool]:
        """Arrays by input, how many rows, and whether they must run alone."""
        given = call.inputs
        if given.keys() != self._inputs.keys():
            self._name_what_is_wrong(given)
        feeds: dict[str, Any] = {}
        rows = 0
        alone = False
        for name, port in self._inputs.items():
            datatype, array = given[name]
            if datatype != port.datatype:
                raise Fault("unfit", f"input {name!r} is {port.datatype}, not {datatype}")
            if not port.takes(array.shape):
                raise Fault("unfit", f"input {name!r} has shape {_shape(port)}, not {list(array.shape)}")
            if array.size == 0:
                raise Fault("unfit", f"input {name!r} is empty")
            feeds[name] = array if array.flags.aligned else array.copy()
            count = array.shape[0] if array.ndim else 1
            alone = alone or (rows not in (0, count))
            rows = rows or count
        return feeds, rows, alone

    def _name_what_is_wrong(self, given: dict[str, Given]) -> None:
        if unknown := sorted(given.keys() - self._inputs.keys()):
            raise Fault("unfit", f"there is no input {unknown[0]!r}; there is {', '.join(self._inputs)}")
        missing = sorted(self._inputs.keys() - given.keys())
        raise Fault("unfit", f"input {missing[0]!r} is missing")

    def _made(self, outputs: Sequence[Any], call: Call, *, in_images: bool) -> list[Made]:
        arrays = self.engine.tensors(outputs)
        ports = self.engine.outputs
        if in_images and not call.outputs and self.shaped.answers:
            return self.shaped.made(arrays)
        if not call.outputs:
            return [Made(port.name, port.datatype, array) for port, array in zip(ports, arrays, strict=True)]
        found: list[Made] = []
        for asked in call.outputs:
            if asked.name not in self._outputs:
                found += self.shaped.made(arrays, asked.name)
                continue
            i = self._outputs[asked.name]
            made = Made(asked.name, ports[i].datatype, arrays[i])
            found.append(classified(made, asked) if asked.classes else made)
        return found


def classified(made: Made, asked: Asked) -> Made:
    """The best classes of each row, in the protocol's words: `0.93:7`."""
    if made.datatype == BYTES or made.array.ndim == 0:
        raise Fault("unanswerable", f"output {made.name!r} has no scores to rank")
    rows = made.array.reshape(made.array.shape[0], -1) if made.array.ndim > 1 else made.array.reshape(1, -1)
    most = min(asked.classes, rows.shape[1])
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :most]
    words = np.empty(best.shape, object)
    for row, chosen in enumerate(best):
        words[row, :] = [f"{rows[row, i]}:{i}".encode() for i in chosen]
    return Made(made.name, BYTES, words if made.array.ndim > 1 else words[0])


def _pressing(call: Call, asking: Asking) -> tuple[int, float | None]:
    """How urgent, and until when: what the request says itself goes before what came with it."""
    urgency, timeout_ms, parameters = asking.urgency, asking.timeout_ms, call.parameters
    if not parameters:
        return urgency, timeout_ms
    if (priority := parameters.get("priority")) is not None:
        if type(priority) is not int or priority < 0:
            raise Fault("malformed", "the parameter priority is a whole number: 1 critical, 2 normal, 3 bulk")
        urgency = CLASSES_OF_PRIORITY.get(priority, 2) if priority else urgency
    if (timeout := parameters.get("timeout")) is not None:
        if type(timeout) is not int or timeout < 0:
            raise Fault("malformed", "the parameter timeout is a whole number of microseconds")
        if timeout:
            timeout_ms = min(timeout / 1000, timeout_ms if timeout_ms is not None else math.inf)
    return urgency, timeout_ms


def _blamed(fault: Exception | None) -> Fault:
    if isinstance(fault, Fault):
        return fault
    if isinstance(fault, UnicodeDecodeError):
        return Fault("unfit", "an element of BYTES is no text, which is what the model takes")
    return Fault("model_failed", f"the model could not run on it: {first_line(fault) if fault else 'no answer'}")


def _described(port: Port) -> dict[str, Any]:
    return {"name": port.name, "datatype": port.datatype, "shape": list(port.shape)}


def _shape(port: Port) -> str:
    return str(list(port.shape))
