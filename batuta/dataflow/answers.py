"""What a frame is, where its answer goes, and by which name the answer is known everywhere.

The name is made from the frame alone: its consumer, the node that took it, its place in that node's inbox and the
instant at which it was kept. Whoever answers it, however often, gives the same name, and every store keeps one. The
instant is there because a node whose disk was replaced counts its places from one again.

A publisher that gives its message an `id` gives it the name itself: its topic and that id. Then a frame that it sent
twice, because its node died before saying that it had the first, is answered twice and known by one name, and the hub
keeps one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from batuta.kinds.topics import captures

if TYPE_CHECKING:
    from batuta.core.decided import Instance
    from batuta.kinds.application import Input

HEADER_ID = "Nats-Msg-Id"
HEADER_TOPIC = "Batuta-Topic"
HEADER_SOURCE = "Batuta-Source-Topic"
HEADER_INSTANCE = "Batuta-Instance"
HEADER_FORWARD = "Batuta-Forward"
HEADER_CLASS = "Batuta-Class"


class Place(NamedTuple):
    """Where a message stands, read from the subject by which it is acknowledged."""

    delivered: int
    """How often it was handed out, this time included."""
    sequence: int
    """Its place in the stream."""
    at_ns: int
    """The instant at which it was kept, by that broker's clock."""


class Route(NamedTuple):
    """How one input reads, and where its answers go."""

    input: Input
    output_topic: str | None
    forward: bool


def place_of(reply: str) -> Place:
    """`$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<n>.<ns>.<pending>`; newer brokers add domain and account."""
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"] or len(parts) < 9:
        raise ValueError(f"{reply!r} acknowledges nothing")
    first = 4 if len(parts) == 9 else 6
    return Place(int(parts[first]), int(parts[first + 1]), int(parts[first + 3]))


def answer_id(consumer: str, ingest: str, place: Place, topic: str = "", given: str | None = None) -> str:
    """`given` is the id that the publisher put into the message of `topic`, if it did."""
    return f"{consumer}:{topic}:{given}" if given is not None else f"{consumer}:{ingest}:{place.sequence}:{place.at_ns}"


def routes_of(instance: Instance) -> tuple[Route, ...]:
    topic = next((o.topic for o in instance.outputs if o.topic is not None), None)
    forward = any(o.forward == "hub" for o in instance.outputs)
    return tuple(Route(i, topic, forward) for i in instance.inputs)


def route_of(routes: tuple[Route, ...], topic: str) -> tuple[Route, str | None] | None:
    """The first input that reads `topic`, and the topic of the answer; None when this revision does not read it."""
    for route in routes:
        matched = captures(route.input.topic, topic)
        if matched is not None:
            return route, None if route.output_topic is None else filled(route.output_topic, matched)
    return None


def filled(template: str, matched: tuple[str, ...]) -> str:
    """`meters/{1}/reading` with what the wildcards matched. Admission has seen to it that every number has one."""
    return re.sub(r"\{(\d+)\}", lambda m: matched[int(m[1]) - 1], template)


def headers_of(  # noqa: PLR0917
    instance: Instance, route: Route, topic: str, source: str, name: str, by: str = ""
) -> dict[str, str]:
    """`by` is who answered, when that is another release beside this one."""
    headers = {HEADER_ID: name, HEADER_TOPIC: topic, HEADER_SOURCE: source, HEADER_INSTANCE: by or instance.name}
    if route.forward:
        headers |= {HEADER_FORWARD: "hub", HEADER_CLASS: "normal"}
    return headers
