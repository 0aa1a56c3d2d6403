"""Unix sockets at paths of any length.

The kernel takes 107 bytes for the name of a socket, and the directory of an instance may well be longer. So sockets are
made and reached through their directory, opened and named by its number.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKLOG = 1024


def connect_unix(path: Path | str) -> socket.socket:
    """A connected, non-blocking stream socket. Raises OSError when nobody listens there; never waits."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        with _short(Path(path)) as name:
            made.connect(name)
    except BaseException:
        made.close()
        raise
    return made


def listen_unix(path: Path | str) -> socket.socket:
    """A listening socket that only this user can reach. What an earlier process left there is replaced."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        with _short(Path(path)) as name:
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            made.bind(name)
            Path(path).chmod(0o600)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
