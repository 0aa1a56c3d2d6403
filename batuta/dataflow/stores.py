"""How a node's broker is told to keep frames and answers: streams and consumers as values."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RePublish,
    RetentionPolicy,
    StreamConfig,
)

from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
ACK_WAIT_S = 2.0
"""After so long without a word, a frame is given to another worker."""
LENT_MAX = 10_000
DUPLICATES_S = 120.0
"""Within this, an answer given twice is kept once."""
ANSWERS_KEPT_S = 3_600.0
"""Answers that nobody forwards are kept for their names alone."""
FORWARDED_KEPT_S = 30 * 86_400.0
FORWARD = "forward"
FORWARD_WAIT_S = 3.0
"""A restarted node agent waits so long for what the one before it had in hand."""
MARK = "batuta capture"


class Room(NamedTuple):
    """How much of the node's disk may be taken."""

    frames_bytes: int = 512 * MIB
    answers_bytes: int = 64 * MIB
    """For each first level of output topics."""


def frames_store(room: Room) -> StreamConfig:
    """What MQTT clients publish with QoS 1 or 2. The broker would make this stream by itself, without bounds."""
    return StreamConfig(
        name=subjects.MQTT_KEPT_STREAM,
        subjects=[f"{subjects.MQTT_KEPT}.>"],
        retention=RetentionPolicy.INTEREST,
        discard=DiscardPolicy.NEW,
        max_bytes=room.frames_bytes,
    )


def answers_store(node: str, root: str, room: Room, *, forwards: bool) -> StreamConfig:
    everything = subjects.all_results(node, root)
    return StreamConfig(
        name=subjects.result_stream(node, root),
        subjects=[everything],
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        max_bytes=room.answers_bytes,
        max_age=FORWARDED_KEPT_S if forwards else ANSWERS_KEPT_S,
        duplicate_window=DUPLICATES_S,
        republish=RePublish(src=everything, dest=f"{root}.>"),
    )


def reading(name: str, topics: Sequence[str]) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=name,
        description=MARK,
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.NEW,
        ack_wait=ACK_WAIT_S,
        max_ack_pending=LENT_MAX,
        filter_subjects=[subjects.kept(s) for s in distinct(topics)],
        sample_freq="100%",
    )


def forwarding(node: str) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=subjects.reader(FORWARD, node),
        description="batuta forward",
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=FORWARD_WAIT_S,
        max_ack_pending=1024,
    )


def distinct(topics: Sequence[str]) -> list[str]:
    """The subjects of these topics without those that another one covers: the broker takes no filter twice."""
    found = sorted({s for topic in topics for s in subjects.subjects_of_topic_filter(topic)})
    return [one for one in found if not any(other != one and covers(other, one) for other in found)]


def covers(wide: str, narrow: str) -> bool:
    """Every subject that `narrow` matches is matched by `wide`."""
    wides, narrows = wide.split("."), narrow.split(".")
    for i, level in enumerate(wides):
        if level == ">":
            return len(narrows) > i
        if i >= len(narrows) or narrows[i] == ">":
            return False
        if level not in ("*", narrows[i]):
            return False
    return len(wides) == len(narrows)


def filters_of(config: ConsumerConfig) -> list[str]:
    one = config.filter_subject
    return sorted(config.filter_subjects or ([one] if one else []))
