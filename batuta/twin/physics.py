"""Physics: how long things take, and what the machines are assumed to do by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.kinds.base import Record

if TYPE_CHECKING:
    from batuta.twin.chance import Chance

Range = tuple[int, int]


class Physics(Record):
    """Durations are drawn evenly from their ranges, in milliseconds."""

    latency_ms: Range = (5, 60)
    """One way between node and hub."""
    bandwidth_bps: int = 20_000_000
    start_ms: Range = (20, 800)
    warm_ms: Range = (10, 2_000)
    """From running to ready."""
    stop_ms: Range = (5, 1_500)
    stubborn_permille: int = 100
    """Instances that ignore the polite signal and end only when their grace does."""
    start_fails_permille: int = 30
    disconnect_seen_permille: int = 500
    """How often the hub's broker notices a cut before silence tells."""
    heartbeat_ms: int = 1_000
    """Or more, for large fleets, as the hub asks."""
    lazy: bool = True
    """Beats of calm nodes are known without being played; nothing else differs."""
    write_ms: Range = (0, 30)
    """One row of a commit."""
    writes_at_once: int = 1
    gather_ms: int = 200
    """How long the hub lets changes gather before it decides."""
    report_ms: int = 200
    """How long a node lets changes gather before it reports."""
    report_every_ms: int = 15_000
    """It reports so often though nothing changed."""
    reread_ms: int = 60_000
    """How often a node reads its assignment again without being told."""
    full_pass_ms: int = 15_000
    accept_us: int = 400
    """A new connection keeps the hub busy for so long, in millionths of a second: its certificate and its rights."""
    promises: bool = True
    """The hub answers heartbeats with the serial it has decided, not with the one it has written."""
    tied: bool = True
    """A never-twice instance ends with the node agent that counts its lease; the runtime must see to it."""
    steady: bool = True
    """The node agent subtracts instants of a clock that does not step while it runs."""

    def draw(self, span: Range, chance: Chance) -> int:
        return chance.between(*span)
