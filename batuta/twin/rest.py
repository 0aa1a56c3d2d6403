"""Rest: what a calm node's beats come to, known without playing them.

While nothing disturbs a node and its link is clean, beat follows beat: the n-th goes out at a known instant, is under
way for as long as its number says, is answered, and says nothing that anybody decides by. So at any instant it is known
what was heard of the node, what it has heard, and what is under way; waking puts just that into the world. A law in the
tests says that resting and playing every beat give the same trace, verdicts and bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.twin.weights import ANSWER_BYTES, ASK_BYTES, BEAT_BYTES, RECEIPT_BYTES
from batuta.twin.world import ANSWER, BEAT, FOUND, LOOK, RECEIPT, REPORT

if TYPE_CHECKING:
    from batuta.twin.node import Node
    from batuta.twin.pulse import Pulse

CALM_MS: Final = 20_000
"""So long after the last trouble nothing of it is under way any more."""


def may_rest(pulse: Pulse) -> bool:
    """Is all as it would be had this node never been disturbed? Then what comes next is known."""
    node, world = pulse.node, pulse.world
    if not world.physics.lazy or node.trouble or world.now < node.calm_at or not node.wire.is_clean:
        return False
    every_ms, last = pulse.every_ms, pulse.beats
    longest_ms = node.wire.latency_ms[1]
    if node.jobs or any(local.phase == "stopping" for local in node.ledger.locals.values()):
        return False  # Somebody waits to hear that it is gone, and counts from when it was heard.
    if pulse.load.comes_to(node):
        return False  # Each of its reports says something else.
    if node.is_isolated or pulse.report_planned or not last or 4 * longest_ms >= min(every_ms, 2_000):
        return False
    hub, before = node.broker.hub, world.now - every_ms
    if hub is None or pulse.acknowledged != pulse.sequence or not pulse.sequence or pulse.beaten_at != before:
        return False
    heard = before + node.wire.took_ms(BEAT, pulse.number(last))
    return (
        pulse.contact == node.clock(before)
        and hub.newest_serial(node.name) == node.serial > 0
        and hub.heard_of(node.name) == heard
        and hub.follows(node.name, pulse.sequence)
    )


class Tally(NamedTuple):
    """Messages and bytes of a rest so far."""

    messages: int
    bytes_up: int
    bytes_down: int


class Rest:
    """One rest of one node, from the beat at which it began: that one is the first that is not played."""

    __slots__ = ("_first_report", "_reports_every_ms", "began", "counted", "every_ms", "first", "node", "pulse")

    def __init__(self, pulse: Pulse) -> None:
        physics = pulse.world.physics
        self.pulse = pulse
        self.node: Node = pulse.node
        self.began = pulse.world.now
        self.every_ms = pulse.every_ms
        self.first = pulse.beats + 1
        self.counted = Tally(0, 0, 0)
        """What of this rest was entered into the books of the wire already."""
        due = max(0, pulse.reported_at + physics.report_every_ms - self.began)
        self._first_report = self.began + self._whole(due) + physics.report_ms
        self._reports_every_ms = self._whole(physics.report_every_ms + physics.report_ms)
        broker = self.node.broker
        broker.resting[self.node.name] = self
        if broker.hub is not None:
            broker.hub.rests(self.node.name)

    def _whole(self, span_ms: int) -> int:
        """Up to the next beat."""
        return -(-span_ms // self.every_ms) * self.every_ms

    # --- Beats ---

    def beat(self, at: int) -> int:
        """The number of the last beat sent by an instant."""
        return self.first + (at - self.began) // self.every_ms

    def sent_at(self, beat: int) -> int:
        return self.began + (beat - self.first) * self.every_ms

    def _arrived_at(self, beat: int) -> int:
        return self.sent_at(beat) + self.node.wire.took_ms(BEAT, self.pulse.number(beat))

    def _answered_at(self, beat: int) -> int:
        return self._arrived_at(beat) + self.node.wire.took_ms(ANSWER, self.pulse.number(beat))

    def heard_by(self, at: int) -> int:
        """When the hub last heard it, as of an instant."""
        beat = self.beat(at)
        arrived = self._arrived_at(beat)
        return arrived if arrived <= at else self._arrived_at(beat - 1)

    def contact_at(self, at: int) -> int:
        """The node's contact with the hub, on its own clock, as of an instant."""
        beat = self.beat(at)
        if self._answered_at(beat) > at:
            beat -= 1
        return self.node.clock(self.sent_at(beat))

    # --- Reports ---

    def _reports(self, at: int) -> int:
        """How many reports were sent in this rest by an instant."""
        since = at - self._first_report
        return 0 if since < 0 else 1 + since // self._reports_every_ms

    def _reported_at(self, k: int) -> int:
        """When the k-th of them was sent, from 1."""
        return self._first_report + (k - 1) * self._reports_every_ms

    # --- Books ---

    def tally(self, at: int) -> Tally:
        """What went over the wire in this rest by an instant."""
        node, pulse = self.node, self.pulse
        last = self.beat(at)
        beats = last - self.first + 1
        answers = beats if self._arrived_at(last) <= at else beats - 1
        reports = self._reports(at)
        receipts = reports
        if reports:
            number = pulse.number(pulse.sequence + reports)
            receipts -= self._reported_at(reports) + node.wire.took_ms(REPORT, number) > at
        looks = _congruent(last, pulse.looks_every) - _congruent(self.first - 1, pulse.looks_every)
        found = looks
        if looks and pulse.looks(last):
            found -= self.sent_at(last) + node.wire.took_ms(LOOK, pulse.number(last)) > at
        return Tally(
            beats + answers + reports + receipts + looks + found,
            beats * BEAT_BYTES + reports * pulse.report_bytes + looks * ASK_BYTES,
            answers * ANSWER_BYTES + receipts * RECEIPT_BYTES + found * node.broker.row_bytes(node.name),
        )

    def enter(self) -> None:
        """Brings the books of the wire up to now."""
        wire, before = self.node.wire, self.counted
        self.counted = now = self.tally(self.pulse.world.now)
        wire.messages += now.messages - before.messages
        wire.bytes_up += now.bytes_up - before.bytes_up
        wire.bytes_down += now.bytes_down - before.bytes_down

    # --- Waking ---

    def end(self) -> None:
        """Puts into the world what is now known to be so, and what is under way."""
        node, pulse, now = self.node, self.pulse, self.pulse.world.now
        self.enter()
        del node.broker.resting[node.name]
        last = self.beat(now)
        pulse.contact = self.contact_at(now)
        heard = self.heard_by(now)
        pulse.beats, pulse.beaten_at, pulse.heard_last = last, self.sent_at(last), self.sent_at(last)
        self._wake_beats(last)
        reported_at = self._wake_reports()
        hub = node.broker.hub
        if hub is not None:
            hub.correct(node.name, heard, reported_at)
        pulse.go_on(self.sent_at(last + 1) - now)

    def _wake_beats(self, last: int) -> None:
        node, pulse, world = self.node, self.pulse, self.pulse.world
        number, now, wire = pulse.number(last), world.now, node.wire
        sent_at = node.clock(self.sent_at(last))
        arrives, answered = self._arrived_at(last), self._answered_at(last)
        if arrives > now:
            beat = (node, node.boots, last, node.serial, sent_at)
            world.first(arrives - now, wire.arrive, node.broker.heartbeat, beat)
        elif answered > now:
            world.first(answered - now, wire.arrive, pulse.answered, (node.boots, sent_at, node.serial))
        if pulse.looks(last):
            looked = self.sent_at(last) + wire.took_ms(LOOK, number)
            found = looked + wire.took_ms(FOUND, number)
            if looked > now:
                world.first(looked - now, wire.arrive, node.broker.look, (node, number))
            elif found > now:
                row = node.broker.row(node.name)
                world.first(found - now, wire.arrive, node.hear_assignment, (row,))

    def _wake_reports(self) -> int | None:
        """Returns when the last report of this rest reached the hub, if one did."""
        node, pulse, world = self.node, self.pulse, self.pulse.world
        physics, now, wire = world.physics, world.now, node.wire
        base, sent = pulse.sequence, self._reports(now)
        planned = self._reported_at(sent + 1)
        if planned - physics.report_ms <= now:
            pulse.report_planned = True
            world.first(planned - now, pulse.report, node.boots)
        if not sent:
            return None
        pulse.sequence = pulse.acknowledged = base + sent
        pulse.reported_at = at = self._reported_at(sent)
        number = pulse.number(pulse.sequence)
        arrives = at + wire.took_ms(REPORT, number)
        receipt = arrives + wire.took_ms(RECEIPT, number)
        report = pulse.said_at(pulse.sequence, at)
        if receipt > now:
            pulse.acknowledged -= 1
        if arrives <= now:
            node.broker.keep(report)
            if receipt > now:
                world.first(receipt - now, wire.arrive, pulse.kept, (node.boots, pulse.sequence))
            return arrives
        world.first(arrives - now, wire.arrive, node.broker.report, (node, node.boots, report))
        if sent == 1:
            return None
        at = self._reported_at(sent - 1)
        node.broker.keep(pulse.said_at(pulse.sequence - 1, at))
        return at + wire.took_ms(REPORT, pulse.number(pulse.sequence - 1))


def _congruent(n: int, every: int) -> int:
    """How many of 1 … n are looked with: the first of every so many."""
    return 0 if n < 1 else (n - 1) // every + 1
