"""A version's own Python, `transform.py`, asked from the worker: `before(inputs)` and `after(outputs)`.

The file runs in a process of its own that can only compute (`confined`). Nothing that comes back is trusted: sizes and
datatypes are checked before an array is made of it. A call that takes too long, or a process that dies, costs the
request or the frame that it was for, and the process is started anew.
"""

from __future__ import annotations

import math
import os
import select
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from batuta.dataflow.confined import LENGTH, MESSAGE_BYTES_MAX
from batuta.dataflow.engines import Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.dataflow.oip.datatypes import Array

START_S: Final = 30.0
CALL_S: Final = 5.0
MEMORY_BYTES: Final = 512 << 20
"""Of data, NumPy's own included."""
TEXT_BYTES_MAX: Final = 1 << 20
KINDS: Final = "biufUS"


class _Tensor(msgspec.Struct, array_like=True):
    name: str
    dtype: str
    shape: list[int]
    data: bytes


class _Message(msgspec.Struct, array_like=True):
    arrays: list[_Tensor]
    text: str = ""
    fault: str = ""


class Given(NamedTuple):
    """A message, decoded."""

    arrays: dict[str, Array]
    text: str
    fault: str


_decoder = msgspec.msgpack.Decoder(_Message)


def message_of(arrays: Mapping[str, Array], *, text: str = "", fault: str = "") -> bytes:
    """Texts go as such, and BYTES as the bytes they are."""
    tensors = []
    for name, each in arrays.items():
        array = each
        if array.dtype == object:
            array = np.array([w if isinstance(w, bytes) else str(w).encode() for w in array.ravel()], "S").reshape(
                array.shape
            )
        if array.dtype.kind not in KINDS:
            raise ValueError(f"{name} is {array.dtype}, which cannot be handed over")
        tensors.append(_Tensor(name, array.dtype.str, list(array.shape), array.tobytes()))
    return msgspec.msgpack.encode(_Message(tensors, text, fault))


def arrays_of(data: bytes) -> Given:
    """Raises ValueError for what is no message."""
    said = _decoder.decode(data)
    arrays = {}
    for each in said.arrays:
        dtype = np.dtype(each.dtype)
        if dtype.kind not in KINDS or dtype.itemsize == 0 or any(d < 0 for d in each.shape):
            raise ValueError(f"{each.name!r} is no array")
        if math.prod(each.shape) * dtype.itemsize != len(each.data):
            raise ValueError(f"{each.name!r} has another size than it says")
        arrays[each.name] = np.frombuffer(each.data, dtype).reshape(each.shape)
    return Given(arrays, said.text, said.fault)


class Transform:
    """One process, used by one thread at a time."""

    def __init__(self, text: bytes) -> None:
        """Raises Unfit when the file is none."""
        if len(text) > TEXT_BYTES_MAX:
            raise Unfit("artifact_unreadable", f"transform.py has more than {TEXT_BYTES_MAX} bytes")
        self._text = text
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes]
        self._to = self._from = -1
        self._has: list[str] = []
        self.restarts = -1
        self._start()

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._call("before", inputs)

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._call("after", outputs)

    def has(self, name: str) -> bool:
        return name in self._has

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for fd in (self._to, self._from):
            if fd >= 0:
                os.close(fd)
        self._to = self._from = -1

    def _start(self) -> None:
        self.restarts += 1
        reading, self._to = os.pipe()
        self._from, writing = os.pipe()
        os.set_blocking(self._to, False)
        words = [str(reading), str(writing), str(os.getpid()), str(MEMORY_BYTES)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "batuta.dataflow.confined", *words],
                pass_fds=(reading, writing),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", ""), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(reading)
            os.close(writing)
        try:
            self._send(self._text, START_S)
            said = self._hear(START_S)
        except (OSError, ValueError, TimeoutError) as error:
            self.close()
            raise Unfit("start_failed", f"transform.py cannot be confined or run here: {error}") from error
        if said.fault or not said.text:
            self.close()
            raise Unfit("artifact_unreadable", f"transform.py: {said.fault or 'it has neither before nor after'}")
        self._has = said.text.split(",")

    def _call(self, name: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Raises ValueError with a sentence for people."""
        with self._lock:
            if self._to < 0:
                # It could not be started again the last time.
                self._start()
            try:
                self._send(message_of(arrays, text=name), CALL_S)
                said = self._hear(CALL_S)
            except (OSError, TimeoutError) as error:
                self.close()
                raise ValueError(f"{name} of transform.py did not answer: {error or type(error).__name__}") from None
        if said.fault:
            raise ValueError(f"{name} of transform.py: {said.fault}")
        return said.arrays

    def _send(self, data: bytes, within_s: float) -> None:
        until = time.monotonic() + within_s
        view = memoryview(LENGTH.pack(len(data)) + data)
        while view:
            self._wait(self._to, until, out=True)
            view = view[os.write(self._to, view) :]

    def _hear(self, within_s: float) -> Given:
        until = time.monotonic() + within_s
        size = LENGTH.unpack(self._exactly(LENGTH.size, until))[0]
        if size > MESSAGE_BYTES_MAX:
            raise OSError("its answer is too large")
        try:
            return arrays_of(self._exactly(size, until))
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise OSError(f"its answer is none: {error}") from None

    def _exactly(self, count: int, until: float) -> bytes:
        found = bytearray()
        while len(found) < count:
            self._wait(self._from, until, out=False)
            part = os.read(self._from, min(count - len(found), 1 << 20))
            if not part:
                raise OSError("its process ended")
            found += part
        return bytes(found)

    def _wait(self, fd: int, until: float, *, out: bool) -> None:
        left = until - time.monotonic()
        poll = select.poll()
        poll.register(fd, select.POLLOUT if out else select.POLLIN)
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("it takes too long")


def plain(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """An answer as JSON has it: a batch of one is its item."""
    return {name: _plain(array) for name, array in arrays.items()}


def _plain(array: Array) -> Any:
    value = array[0] if array.ndim and len(array) == 1 else array
    found = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return found.decode(errors="replace") if isinstance(found, bytes) else found
