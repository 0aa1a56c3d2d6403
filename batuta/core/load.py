"""Load: what an instance takes of its node, and what is free again when it goes.

Whatever instances share on a node is here: a fleet lays loads on its columns, and whoever places many instances lays
them tentatively, to see what would come next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from batuta.core.decided import Instance


class Load(NamedTuple):
    """Of processor time and memory."""

    cpu_millis: int
    memory_bytes: int


def load_of(instance: Instance) -> Load:
    return Load(int(instance.cpu_millis), int(instance.memory_bytes))
