"""Regions: shared memory of this machine in which large tensors are handed over, by the protocol's extension.

A region is read and written by file calls and not mapped: whoever owns it may shorten it at any time, and a mapping
that ends too early kills the process that looks. A copy in memory costs a tenth of what the socket does.

Only objects of POSIX shared memory that belong to this user are opened, and only for callers who are this user (or
root): at the Unix socket the kernel sees to that, at the port it is asked who owns the other end.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batuta.dataflow.oip.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTORY: Final = "/dev/shm"  # noqa: S108 - where POSIX shared memory is, by definition
REGIONS_MAX: Final = 64
REGION_BYTES_MAX: Final = 1 << 30
_KEY = re.compile(r"/?[A-Za-z0-9_.-]{1,250}")


class Region(NamedTuple):
    """One that is registered."""

    name: str
    key: str
    offset: int
    byte_size: int
    fd: int


class Regions:
    """All that are registered at one worker."""

    def __init__(self) -> None:
        self._by_name: dict[str, Region] = {}

    def register(self, name: str, said: Mapping[str, Any]) -> None:
        key, offset, size = said.get("key"), said.get("offset", 0), said.get("byte_size")
        if not isinstance(key, str) or not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise Fault("malformed", "key names an object of shared memory: a slash, then letters, digits, _, . and -")
        if type(offset) is not int or type(size) is not int or offset < 0 or not 0 < size <= REGION_BYTES_MAX:
            raise Fault("malformed", f"offset and byte_size are whole numbers; byte_size at most {REGION_BYTES_MAX}")
        if name in self._by_name:
            raise Fault("malformed", f"region {name!r} is registered already")
        if len(self._by_name) >= REGIONS_MAX:
            raise Fault("overloaded", f"{REGIONS_MAX} regions are registered already")
        fd = _opened(key)
        if os.fstat(fd).st_size < offset + size:
            os.close(fd)
            raise Fault("unfit", f"{key} has fewer than {offset + size} bytes")
        self._by_name[name] = Region(name, key, offset, size, fd)

    def unregister(self, name: str | None = None) -> None:
        """That one, or all."""
        for each in [name] if name is not None else list(self._by_name):
            region = self._by_name.pop(each, None)
            if region is not None:
                os.close(region.fd)

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        if name is not None and name not in self._by_name:
            raise Fault("unknown", f"there is no region {name!r}")
        return [
            {"name": each.name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size}
            for each in self._by_name.values()
            if name in (None, each.name)
        ]

    def read(self, parameters: Mapping[str, Any]) -> memoryview:
        """What a tensor's parameters name."""
        region, at, size = self._part(parameters)
        found = bytearray(size)
        if os.preadv(region.fd, [found], at) != size:
            raise Fault("unfit", f"region {region.name!r} has become shorter than it was")
        return memoryview(found)

    def write(self, parameters: Mapping[str, Any], data: bytes) -> None:
        region, at, size = self._part(parameters)
        if len(data) > size:
            raise Fault("unanswerable", f"the output has {len(data)} bytes, and {size} were set aside for it")
        # Writing past the end would make the object longer; that is its owner's to do.
        if os.fstat(region.fd).st_size < at + len(data) or os.pwrite(region.fd, data, at) != len(data):
            raise Fault("unanswerable", f"region {region.name!r} has become shorter than it was")

    def _part(self, parameters: Mapping[str, Any]) -> tuple[Region, int, int]:
        name = parameters.get("shared_memory_region")
        size, offset = parameters.get("shared_memory_byte_size"), parameters.get("shared_memory_offset", 0)
        if not isinstance(name, str) or name not in self._by_name:
            raise Fault("unfit", f"no region {name!r} is registered")
        region = self._by_name[name]
        if type(size) is not int or type(offset) is not int or min(size, offset) < 0:
            raise Fault("malformed", "shared_memory_byte_size and shared_memory_offset are whole numbers")
        if offset + size > region.byte_size:
            raise Fault("unfit", f"region {name!r} has {region.byte_size} bytes, not {offset + size}")
        return region, region.offset + offset, size


def _opened(key: str) -> int:
    try:
        fd = os.open(f"{DIRECTORY}/{key.lstrip('/')}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Fault("unfit", f"{key} cannot be opened: {error.strerror}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
        os.close(fd)
        raise Fault("unfit", f"{key} is not this user's")
    return fd


def owner_of_peer(host: str, port: int) -> int | None:
    """The user who owns the other end of a connection over loopback; None when nobody here does."""
    table = "/proc/net/tcp6" if ":" in host else "/proc/net/tcp"
    try:
        wanted = f"{_kernel_address(host)}:{port:04X}"
        with Path(table).open(encoding="ascii") as file:
            for line in file:
                fields = line.split()
                if len(fields) > 7 and fields[1] == wanted and fields[3] == "01":
                    return int(fields[7])
    except (OSError, ValueError):
        return None
    return None


def _kernel_address(host: str) -> str:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
