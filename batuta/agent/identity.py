"""What a node keeps of its enrolment: who it is, which hub it belongs to, and where its key and certificates lie.

Read by the agent at every start, so nothing here imports cryptography: the agent itself never opens a certificate.
What it must know of one, from when to when it holds, was written down by whoever did (`enrol`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.agent.ledger import flush_directory
from batuta.errors import EnrolmentRefused
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from pathlib import Path

RENEW_WITH_LEFT: Final = 1 / 3
"""Renew when this share of the certificate's life is left."""


class Identity(Record):
    """Who this node is. Written last, so that what it names is there."""

    node: str
    site: str
    leafs: tuple[str, ...]
    """Where its hub takes links, in order of preference."""
    hubs: tuple[str, ...]
    """Where its hub answers HTTPS."""
    pin: str
    """Hash of the hub's root: a token with another pin is of another hub."""
    chain: str
    """Name of the file with the certificate chain; a renewed one gets a new name, so the broker sees the change."""
    begins_at: int
    ends_at: int

    def renew_at(self) -> int:
        return self.ends_at - int((self.ends_at - self.begins_at) * RENEW_WITH_LEFT)


def load(directory: Path) -> Identity | None:
    """The enrolment kept here; None when there is none."""
    try:
        data = (directory / "node.json").read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Identity)
    except msgspec.MsgspecError as error:
        raise EnrolmentRefused(
            "enrolment_unreadable",
            f"{directory / 'node.json'} cannot be read: {error}",
            next_step=f"move {directory} away and join again with a new token",
        ) from error


def keep(directory: Path, identity: Identity) -> None:
    write_private(directory / "node.json", msgspec.json.encode(identity))


def write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, and only its owner can read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    flush_directory(path.parent)
