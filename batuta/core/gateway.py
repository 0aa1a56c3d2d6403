"""What a node agent and its inference gateway say to each other. Values only, as in `core.worker`.

The order goes in on standard input, and the listening socket is handed over open: so no call is refused while the
gateway starts, or starts again. What it counted is a file that it replaces every second.
"""

from __future__ import annotations

from batuta.kinds.base import Record

GATEWAY_PORT = 8500
"""Where programs of a node find it, unless another has the port."""
MEASURES_FILE = "mesh.json"
"""In its directory: `core.observed.Mesh`."""
MEASURES_BYTES_MAX = 256 * 1024
FAR_FILE = "far.json"
"""In its directory: who serves elsewhere, as the hub said last."""


class GatewayOrder(Record):
    """All that a gateway must know to begin."""

    node: str
    directory: str
    """Its own; only this user can read it."""
    instances: str
    """The directory of this node's instances, where their sockets are."""
    listener: int
    """Number of the open, listening socket that it inherits."""
    broker: dict[str, str]
    """How it reaches the node's broker, account SITE: as in `runtimes.base.Order`."""
    far: dict[str, str] = {}
    """How it reaches the same broker under the name that may call other sites; empty where it may not."""
