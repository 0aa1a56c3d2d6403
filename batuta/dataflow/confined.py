"""The process in which a version's `transform.py` runs: it computes, and can do nothing else.

Started by the worker, which sends the file's text and then arrays, and hears arrays. Before a line of the file runs,
the kernel is told (seccomp) to refuse this process every call but those that computing takes: it opens no file, makes
no socket and no process, and reaches no other. So it may import only what is loaded by then (`MODULES`). Its memory is
limited as well. It speaks to the worker by two pipes and dies with it.

Not kept from it: the time, chance, and how long it thinks; the worker ends it after a while. It is the same user on the
same kernel, so a fault of the kernel's own is not guarded against.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any, Final

MODULES: Final = (
    "base64", "collections", "dataclasses", "datetime", "enum", "functools", "io", "itertools", "json", "math",
    "numpy", "numpy.fft", "numpy.linalg", "numpy.random", "operator", "PIL.Image", "PIL.ImageFilter", "PIL.ImageOps",
    "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "random", "re", "statistics", "string", "struct", "time", "typing",
    "zlib",
)  # fmt: skip
LENGTH: Final = struct.Struct("<I")
MESSAGE_BYTES_MAX: Final = 256 << 20

# What computing takes, by number: read write close fstat lseek mmap mprotect munmap brk mremap madvise, signals, futex,
# clocks, sleeping, yielding, random bytes, poll, exit.
ALLOWED: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 28, 35, 39, 60, 96, 98, 131, 186, 202, 204, 219, 228, 229,
         230, 231, 271, 273, 318, 334),
    ),
    "aarch64": (
        0xC00000B7,
        (57, 62, 63, 64, 73, 80, 93, 94, 98, 99, 101, 113, 114, 115, 123, 124, 128, 132, 134, 135, 139, 165,
         169, 172, 178, 214, 215, 216, 222, 226, 233, 278, 293),
    ),
}  # fmt: skip
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 1, 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def confine() -> None:
    """From here on. Raises OSError when the kernel does not do it: then nothing may run."""
    if platform.machine() not in ALLOWED:
        raise OSError(f"no list of calls for {platform.machine()}")
    architecture, allowed = ALLOWED[platform.machine()]

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, value)

    # Another architecture's numbers mean other calls.
    steps = [step(_LOAD, 4), step(_EQUAL, architecture, 1, 0), step(_RETURN, _KILL), step(_LOAD, 0)]
    for i, number in enumerate(allowed):
        steps.append(step(_EQUAL, number, len(allowed) - i, 0))
    steps += [step(_RETURN, _REFUSE), step(_RETURN, _ALLOW)]
    libc = ctypes.CDLL(None, use_errno=True)
    text = b"".join(steps)
    program = _Program(len(steps), text)
    for call in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "the kernel does not confine processes")


def main() -> None:
    """`confined READ_FD WRITE_FD PARENT MEMORY_BYTES`."""
    reading, writing, parent, memory_bytes = (int(word) for word in sys.argv[1:5])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    for name in MODULES:
        importlib.import_module(name)
    import numpy as np

    from batuta.dataflow.transforming import arrays_of, message_of

    for limit, most in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (most, most))
    text = _read(reading)
    os.environ.clear()
    np.dot(np.ones((8, 8)), np.ones((8, 8)))
    confine()
    space: dict[str, Any] = {"__name__": "transform", "__builtins__": __builtins__}
    try:
        exec(compile(text, "transform.py", "exec"), space)  # noqa: S102 - this is the place made for it
        found = [name for name in ("before", "after") if callable(space.get(name))]
        _write(writing, message_of({}, text=",".join(found)))
    except BaseException as error:  # whatever it raises is the file's fault, and is told
        _write(writing, message_of({}, fault=_said(error)))
        return
    while True:
        data = _read(reading)
        if not data:
            return
        given = arrays_of(data)
        try:
            answer = space[given.text](dict(given.arrays))
            made = {str(name): np.ascontiguousarray(value) for name, value in answer.items()}
            said = message_of(made)
        except BaseException as error:  # as above
            said = message_of({}, fault=_said(error))
        _write(writing, said)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _read(fd: int) -> bytes:
    head = _exactly(fd, LENGTH.size)
    return _exactly(fd, LENGTH.unpack(head)[0]) if head else b""


def _exactly(fd: int, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        part = os.read(fd, min(count - len(found), 1 << 20))
        if not part:
            return b""
        found += part
    return bytes(found)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


if __name__ == "__main__":
    main()
