"""The streams of a site: what comes in from devices, and what components answer.

A device's message is taken by the broker it speaks to, its *ingest* node. With QoS 1 or 2 the broker keeps it in its
own MQTT stream and only then acknowledges; a component reads it there, through a durable consumer that its nodes
share. So an acknowledged message is on exactly one node, is worked on by any node of the site, and is given to another
worker when one dies. QoS 0 is the sender's word that a loss is fine: it is heard live (`is_live_only` tells), and
never again.

A result is kept at the ingest node of its input, under an identity made from the input's number. The second of two
equal results is recognised there, so it goes out once, however often the input was worked on. The stream that keeps
results also says them under their plain subject, so every MQTT and NATS client of the site hears them.

What a site does not do: an MQTT client that subscribes with QoS 1 or 2 hears QoS 1 and 2 *devices* of its own broker
only (QoS 0 devices, and all results, from every node). Subscribe with QoS 0 to hear all devices of the site, live. The
broker's only other way is a copy of every kept message on every node, which is what a camera site cannot afford.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.nats_reading import translated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.client import Client

MIB: Final = 1 << 20
SECOND_NS: Final = 1_000_000_000
TIMEOUT_S: Final = 5.0

# How long a result's identity is remembered. Longer than any input is worked on, retries and a restart included.
DEDUPLICATION_S: Final = 300
# How long a worker may be silent about an input before another one gets it.
ACK_WAIT_S: Final = 2.0

QOS_HEADER: Final = "Nmqtt-Pub"


@dataclass(frozen=True, slots=True)
class SiteLimits:
    """How much one node keeps for its site. What is full drops its oldest; readers see the gap in the numbers."""

    inbox_bytes_max: int = 256 * MIB
    results_bytes_max: int = 64 * MIB
    results_age_max_s: int = 3600


async def ensure_inbox(client: Client, limits: SiteLimits = SiteLimits()) -> None:
    """The stream in which the local broker keeps what MQTT clients publish, with a bound that the broker leaves out.

    Made before the first client connects, or bounded when it is there already.
    """
    await _ensure(
        client,
        subjects.MQTT_KEPT_STREAM,
        {
            "subjects": [f"{subjects.MQTT_KEPT}.>"],
            # Kept for as long as some reader has not acknowledged; without a reader, not at all.
            "retention": "interest",
            "max_bytes": limits.inbox_bytes_max,
            "discard": "old",
        },
    )


async def ensure_results(
    client: Client,
    node: str,
    root: str,
    limits: SiteLimits = SiteLimits(),
) -> None:
    """The stream that keeps the results of one first level, such as `meters`, at `node`, and says them to the site.

    One per first level, because a stream that says again what it keeps must not hear itself.
    """
    await _ensure(
        client,
        subjects.result_stream(node, root),
        {
            "subjects": [subjects.all_results(node, root)],
            "retention": "limits",
            "max_bytes": limits.results_bytes_max,
            "max_age": limits.results_age_max_s * SECOND_NS,
            "discard": "old",
            "duplicate_window": DEDUPLICATION_S * SECOND_NS,
            "republish": {"src": subjects.all_results(node, root), "dest": f"{root}.>"},
        },
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Where one component reads at one node: a stream, its durable consumer, and what it lets through."""

    ingest: str
    stream: str
    consumer: str
    filters: tuple[str, ...]

    def api(self, verb: str) -> str:
        """A request to the node's own JetStream, from anywhere in the site."""
        return f"$JS.{subjects.node_domain(self.ingest)}.API.{verb}.{self.stream}.{self.consumer}"

    @property
    def next_subject(self) -> str:
        """Where a worker asks for work, with an inbox of its own.

        What comes there bears the subject it was kept under, so a client that tells answers apart by subject, as the
        request call of nats-py does, would not know it.
        """
        return self.api("CONSUMER.MSG.NEXT")


def device_source(ingest: str, component: str, topics: tuple[str, ...]) -> Source:
    """What devices publish at `ingest` with QoS 1 or 2."""
    plain = (s for topic in topics for s in subjects.subjects_of_topic_filter(topic))
    filters = tuple(subjects.kept(s) for s in plain)
    return Source(ingest, subjects.MQTT_KEPT_STREAM, subjects.reader(component, ingest), filters)


def result_source(ingest: str, component: str, root: str, topics: tuple[str, ...]) -> Source:
    """What other components answered, below one first level, and is kept at `ingest`."""
    plain = (s for topic in topics for s in subjects.subjects_of_topic_filter(topic))
    filters = tuple(subjects.result(ingest, s) for s in plain if s.split(".", 1)[0] in (root, "*", ">"))
    return Source(ingest, subjects.result_stream(ingest, root), subjects.reader(component, ingest), filters)


async def ensure_source(
    client: Client, source: Source, *, ack_wait_s: float = ACK_WAIT_S, lent_max: int = 256, attempts_max: int = -1
) -> None:
    """The durable consumer behind a source: made, or brought to these settings. Any node of the site may do it."""
    config = {
        "durable_name": source.consumer,
        "filter_subjects": list(source.filters),
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * SECOND_NS),
        "deliver_policy": "all",
        "max_ack_pending": lent_max,
        "max_deliver": attempts_max,
    }
    await _api(client, source.api("CONSUMER.DURABLE.CREATE"), {"stream_name": source.stream, "config": config})


async def remove_source(client: Client, source: Source) -> None:
    """Ends a source: what only it kept is let go."""
    answer = await _ask(client, source.api("CONSUMER.DELETE"), {})
    if (error := answer.get("error")) and error.get("code") != 404:
        raise FabricUnavailable(f"{source.consumer}: {error.get('description')}")


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits at a source."""

    waiting: int
    """Not yet given to anyone."""
    lent: int
    """Given out, not acknowledged."""
    redelivered: int


async def backlog(client: Client, source: Source) -> Backlog:
    answer = await _api(client, source.api("CONSUMER.INFO"), {})
    return Backlog(int(answer["num_pending"]), int(answer["num_ack_pending"]), int(answer["num_redelivered"]))


def pull(batch: int, expires_s: float, pulse_s: float = 0.0) -> bytes:
    """The body of a request to `Source.next_subject`. With `pulse_s` the broker keeps saying that it is there."""
    body: dict[str, Any] = {"batch": batch, "expires": int(expires_s * SECOND_NS)}
    if pulse_s:
        body["idle_heartbeat"] = int(pulse_s * SECOND_NS)
    return json.dumps(body).encode()


def result_id(ingest: str, component: str, sequence: int, output: int = 0) -> str:
    """The identity of a result: which input it answers, whose answer it is, and which of several."""
    return f"{ingest}:{component}:{sequence}:{output}"


def is_live_only(headers: Mapping[str, str] | None) -> bool:
    """Whether a message heard live is kept nowhere: QoS 0 from a device, or plain NATS. Others come by a source too."""
    return (headers or {}).get(QOS_HEADER, "0") == "0" and "Nats-Stream" not in (headers or {})


async def _ensure(client: Client, stream: str, config: dict[str, Any]) -> None:
    whole = {"name": stream, "storage": "file", "num_replicas": 1} | config
    answer = await _ask(client, f"$JS.API.STREAM.CREATE.{stream}", whole)
    if (answer.get("error") or {}).get("err_code") == 10058:
        answer = await _ask(client, f"$JS.API.STREAM.UPDATE.{stream}", whole)
    if error := answer.get("error"):
        raise FabricUnavailable(f"the broker refuses stream {stream}: {error.get('description')}")


async def _api(client: Client, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await _ask(client, subject, body)
    if error := answer.get("error"):
        raise FabricUnavailable(f"{subject}: {error.get('description')}")
    return answer


async def _ask(client: Client, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    with translated(subject):
        message = await client.request(subject, json.dumps(body).encode(), timeout=TIMEOUT_S)
    decoded: dict[str, Any] = json.loads(message.data)
    return decoded
