"""News: everything that can reach the node's loop from outside. Senses say it; only the loop concludes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.agent.pulse import Contact
from batuta.core import local as core

if TYPE_CHECKING:
    from batuta.core.proving import Proven
    from batuta.core.reasons import Reason


class Ordered(NamedTuple):
    """An assignment as it lies in the table, not yet read."""

    data: bytes


class Shared(NamedTuple):
    """What the nodes of our site share, as the hub tells it, not yet read."""

    data: bytes


class Reconnected(NamedTuple):
    """The fabric is back after it was away."""


class Ailing(NamedTuple):
    """Something of the node itself is wrong, or, with None, is well again. `about` names which thing."""

    about: str
    reason: Reason | None


class Looked(NamedTuple):
    """Something that the next report carries may have changed."""


class Measured(NamedTuple):
    """How fast a variant proved to be in idle time."""

    proven: Proven


News = Measured | Ordered | Shared | Contact | Reconnected | Ailing | Looked | core.Event
