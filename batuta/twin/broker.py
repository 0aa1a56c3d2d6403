"""The broker of the twin: it keeps the tables, passes on what is published, and outlives every hub process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.twin.weights import ANSWER_BYTES, RECEIPT_BYTES, assignment_bytes
from batuta.twin.world import ANSWER, FOUND, PUSH, RECEIPT, Store

if TYPE_CHECKING:
    from batuta.core.decided import Assignment
    from batuta.core.observed import Report
    from batuta.twin.hub import Hub
    from batuta.twin.node import Node
    from batuta.twin.rest import Rest
    from batuta.twin.world import World


class Broker:
    """Between the nodes and the hub: it keeps tables, answers direct gets, and passes on what is published."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = Store()
        self.nodes: dict[str, Node] = {}
        self.sites: dict[str, list[Node]] = {}
        self.resting: dict[str, Rest] = {}
        """Nodes whose beats are known without being played."""
        self.hub: Hub | None = None
        self._row_bytes: dict[str, int] = {}
        self.decisions = self.writes = 0
        """Of all hubs that there were."""

    def heartbeat(self, node: Node, boot: int, sequence: int, serial: int, sent_at: int) -> None:
        """A request: without a hub process nobody answers, and one that is stalled answers later."""
        del serial
        if self.hub is not None and not self.hub.attention.holds_up(self._answer, node, boot, sequence, sent_at):
            self._answer(node, boot, sequence, sent_at)

    def _answer(self, node: Node, boot: int, sequence: int, sent_at: int) -> None:
        if self.hub is not None:
            newest = self.hub.hear_heartbeat(node.name)
            asks, number = self.hub.asks(node.name), (boot << 32) + sequence
            node.wire.send(ANSWER, ANSWER_BYTES, node.pulse.answered, boot, sent_at, newest, asks, number=number)

    def report(self, node: Node, boot: int, report: Report) -> None:
        """Kept by the broker even while no hub listens; latest arrival wins, as in any key-value bucket."""
        self.keep(report)
        number = (boot << 32) + report.sequence
        node.wire.send(RECEIPT, RECEIPT_BYTES, node.pulse.kept, boot, report.sequence, number=number)

    def keep(self, report: Report) -> None:
        self.store.put("observed", report.node, report)
        if self.hub is not None:
            self.hub.hear_report(report)

    def read_assignment(self, node: Node) -> None:
        node.wire.send(FOUND, self.row_bytes(node.name), node.hear_assignment, self.row(node.name))

    def look(self, node: Node, number: int) -> None:
        """The same, in turn with the beats."""
        row = self.row(node.name)
        node.wire.send(FOUND, self.row_bytes(node.name), node.hear_assignment, row, number=number)

    def row(self, node: str) -> Assignment | None:
        row: Assignment | None = self.store.get("decided", f"assignment.{node}")
        return row

    def row_bytes(self, node: str) -> int:
        """What a node's row weighs on its way down."""
        if node not in self._row_bytes:
            self._row_bytes[node] = assignment_bytes(self.row(node))
        return self._row_bytes[node]

    def publish_assignment(self, assignment: Assignment) -> None:
        self._row_bytes.pop(assignment.node, None)
        node = self.nodes.get(assignment.node)
        if node is not None:
            node.wire.send(PUSH, self.row_bytes(assignment.node), node.hear_assignment, assignment)

    def wake_all(self) -> None:
        for rest in list(self.resting.values()):
            rest.pulse.wake()

    def link_closed(self, node: str) -> None:
        """The broker saw a connection close."""
        if self.hub is not None:
            self.hub.hear_closing(node)
