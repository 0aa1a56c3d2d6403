"""What the supervisor tells the processes it starts, in files below `<state>/hub`: nothing secret is ever an argument.

run.json       settings and ports of this run
ports.json     the ports, so that the next run takes the same
secrets.json   passwords and keys of the broker; its owner's alone
"""

from __future__ import annotations

import fcntl
import os
from typing import IO, TYPE_CHECKING

import msgspec

from batuta.config import HubConfig
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from pathlib import Path


class Ports(Record):
    """Where this run listens. `client` is the broker's own, on loopback, for the hub process."""

    http: int
    https: int
    leaf: int
    client: int


class Run(Record):
    """One run of a hub."""

    config: HubConfig
    ports: Ports

    @property
    def hubs(self) -> tuple[str, ...]:
        """Where nodes enrol, in order."""
        return tuple(f"https://{_bracketed(name)}:{self.ports.https}" for name in self._names)

    @property
    def leafs(self) -> tuple[str, ...]:
        """Where nodes link to, in order."""
        return tuple(f"tls://{_bracketed(name)}:{self.ports.leaf}" for name in self._names)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.config.names or ("127.0.0.1",)


class Secrets(Record):
    """What only this machine knows."""

    hub_password: str
    callout_password: str
    system_password: str
    callout_seed: str
    callout_issuer: str


def read_run(state: Path) -> Run:
    return msgspec.json.decode((state / "hub" / "run.json").read_bytes(), type=Run)


def read_secrets(state: Path) -> Secrets:
    return msgspec.json.decode((state / "hub" / "secrets.json").read_bytes(), type=Secrets)


def lock(path: Path) -> IO[bytes] | None:
    """The lock, held until the file is closed or the process ends; None when another process holds it."""
    file = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name
