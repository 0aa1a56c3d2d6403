"""/metrics: Prometheus text, written by hand. Every count of the hub is here; nothing is measured for it alone."""

from __future__ import annotations

import os
import resource
from collections import Counter
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route

from batuta.core.liveness import link
from batuta.web import mesh_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request

    from batuta.hub.hub import Hub

HELP: Final = {
    "nodes": "Nodes by the state of their link.",
    "instances": "Instances by the phase that their node reports.",
    "assigned_instances": "Instances in the assignments of all nodes.",
    "decisions_total": "Decided rows that were committed, by what they are.",
    "passes_total": "Incremental passes of the loop.",
    "passes_full_total": "Passes that decided everything.",
    "incremental_differences_total": "Changes that only a full pass found; anything but 0 is a bug.",
    "turn_milliseconds": "How long the last turn of the loop took.",
    "links_denied": "Links that the broker refused, by reason, since the hub process began.",
    "flow_messages": "Messages of captured inboxes, by what became of them, as nodes report.",
    "hub_epoch": "Counts the lives of this hub.",
    "hub_resident_bytes": "Resident memory of the hub process.",
    "requests_refused_total": "Requests that the door refused, by why.",
    "fields_ignored_total": "Unknown fields left out of writes that asked for it by fieldValidation=Ignore.",
    "fields_warned_total": "The same by fieldValidation=Warn; the writer was told of each.",
    "audit_entries_total": "Entries of the audit, by how the write ended.",
    "audit_entries_lost_total": "Entries that could not be kept; those of accepted writes stopped the write.",
    "token_uses_unwritten_total": "Last uses of tokens that could not be written down yet.",
    "watches_dropped_total": "Watchers that were dropped, by why: they did not read, or came back too late.",
    "hub_cpu_seconds_total": "Processor time of the hub process.",
}


def metrics_routes(hub: Hub) -> list[Route]:
    async def metrics(_request: Request) -> Response:
        return Response(render(hub), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [Route("/metrics", metrics, methods=["GET"])]


def render(hub: Hub) -> str:
    state, now = hub.loop.state, hub.clock.now()
    links = Counter(dict.fromkeys(("online", "late", "offline", "never"), 0))
    links.update(link(state, node, now) for node in state.nodes)
    phases = Counter(str(said.phase) for report in state.observed.values() for said in report.instances)
    flows: Counter[str] = Counter()
    for report in state.observed.values():
        for flow in report.flows:
            flows.update(produced=flow.produced, delivered=flow.delivered, stored=flow.stored, shed=flow.shed)
    lines = [
        *_gauge("nodes", "link", links),
        *_gauge("instances", "phase", phases),
        *_plain("assigned_instances", sum(len(held) for held in state.held.values())),
        *_gauge("flow_messages", "fate", flows),
        *_gauge("links_denied", "reason", hub.links_denied()),
        *_plain("turn_milliseconds", hub.loop.lag_ms),
        *_plain("hub_epoch", hub.store.epoch),
        *_plain("hub_resident_bytes", resident_bytes()),
        *_plain("hub_cpu_seconds_total", sum(os.times()[:2]), "counter"),
        *_plain("incremental_differences_total", hub.counters["incremental_differences"], "counter"),
        *_counters(hub),
        *mesh_metrics.lines(state.observed.values(), _escaped),
    ]
    return "\n".join(lines) + "\n"


def _counters(hub: Hub) -> Iterable[str]:
    named: dict[str, list[tuple[str, int]]] = {}
    for name, label, count in hub.counters.items():
        if name != "incremental_differences":
            named.setdefault(f"{name}_total", []).append((label, count))
    for name, rows in named.items():
        yield from _head(name, "counter")
        for label, count in rows:
            yield f'batuta_{name}{{what="{_escaped(label)}"}} {count}' if label else f"batuta_{name} {count}"


def _gauge(name: str, label: str, rows: Mapping[str, int]) -> Iterable[str]:
    yield from _head(name, "gauge")
    for word, count in sorted(rows.items()):
        yield f'batuta_{name}{{{label}="{_escaped(word)}"}} {count}'


def _plain(name: str, value: float, kind: str = "gauge") -> Iterable[str]:
    yield from _head(name, kind)
    yield f"batuta_{name} {value:g}" if isinstance(value, float) else f"batuta_{name} {value}"


def _head(name: str, kind: str) -> Iterable[str]:
    if name in HELP:
        yield f"# HELP batuta_{name} {HELP[name]}"
    yield f"# TYPE batuta_{name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def resident_bytes() -> int:
    """Resident memory of this process; its peak where the system does not tell the present."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
