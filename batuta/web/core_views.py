"""The core views: namespaces, nodes, pods and events, so that `kubectl get nodes` and `kubectl logs` mean something."""

from __future__ import annotations

import hashlib
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.hub.questions import instances_of
from batuta.kinds.base import API_VERSION, Ref, encode_hook
from batuta.web.ages import age, instant_ms, timestamp
from batuta.web.core_nodes import NODE_COLUMNS, node_cells, node_sketches
from batuta.web.sources import ABSENT, AGE, NAME, Column
from batuta.web.views import Sketch, View

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.core.decided import Instance
    from batuta.core.observed import InstanceReport
    from batuta.hub.feed import Row
    from batuta.hub.hub import Hub

POD_COLUMNS = (
    NAME, Column("Ready"), Column("Status"), Column("Restarts"), AGE,
    Column("IP", priority=1), Column("Node", priority=1), Column("Application", priority=1),
)  # fmt: skip
EVENT_COLUMNS = (Column("Last Seen"), Column("Type"), Column("Reason"), Column("Object"), Column("Message"))
INVOLVED = tuple(f"involvedObject.{f}" for f in ("kind", "namespace", "name", "uid", "apiVersion"))


def core_views(hub: Hub) -> list[View]:
    return [
        View(
            hub, "Namespace", namespace_sketches, namespace_cells, (NAME, Column("Status"), AGE),
            namespaced=False, short_names=("ns",), selectable=("status.phase",),
        ),
        View(
            hub, "Node", node_sketches, node_cells, NODE_COLUMNS,
            namespaced=False, short_names=("no",), verbs=("get", "list", "patch", "watch"),
            selectable=("spec.unschedulable",),
        ),
        View(
            hub, "Pod", pod_sketches, pod_cells, POD_COLUMNS,
            namespaced=True, short_names=("po",), categories=("all",), selectable=("spec.nodeName", "status.phase"),
        ),
        View(
            hub, "Event", EventSketches(), event_cells, EVENT_COLUMNS,
            namespaced=True, short_names=("ev",), selectable=(*INVOLVED, "type", "reason", "source"),
        ),
    ]  # fmt: skip


# --- Namespaces -------------------------------------------------------------------------------------------------------


def namespace_sketches(hub: Hub) -> Iterator[Sketch]:
    """A namespace is there as soon as something is declared in it; `default` always is."""
    since: dict[str, str] = {"default": timestamp(hub.started_at) or ""}
    for resource in hub.loop.state.desired.values():
        if resource.namespaced:
            name, born = resource.ref.namespace, resource.metadata.creation_timestamp or ""
            since[name] = min(since.get(name, born), born)
    for name, born in sorted(since.items()):
        labels = {"kubernetes.io/metadata.name": name}
        metadata = {"name": name, "uid": _uid("namespace", name), "creationTimestamp": born, "labels": labels}
        document = {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata, "status": {"phase": "Active"}}
        yield Sketch("", name, (born,), partial(dict, document))


def namespace_cells(document: Mapping[str, Any], now: int) -> list[Any]:
    metadata = document["metadata"]
    return [metadata["name"], document["status"]["phase"], age(instant_ms(metadata["creationTimestamp"]), now)]


# --- Pods: instances --------------------------------------------------------------------------------------------------


def pod_sketches(hub: Hub) -> Iterator[Sketch]:
    """One for each instance in an assignment. The newest holder of a slot has the plain name."""
    state = hub.loop.state
    for key, held in state.held.items():
        application = state.get(Ref("applications", *key.split("/")))
        owner = application.metadata.uid if application is not None else None
        newest = {h.instance.name: h.instance.epoch for h in sorted(held, key=lambda h: h.instance.epoch)}
        for node, instance in held:
            report = state.observed.get(node)
            reported = report.instances if report is not None else ()
            said = next((i for i in reported if (i.name, i.epoch) == (instance.name, instance.epoch)), None)
            name = pod_name(instance.name)
            if newest[instance.name] != instance.epoch:
                name = f"{name}.{node}"
            address = report.address if report is not None else ""
            mark = (node, instance, said, address, owner)
            yield Sketch(
                instance.namespace, name, mark, partial(_pod, name, node, instance, said, address, owner=owner)
            )


def pod_name(instance: str) -> str:
    """`meter-reader.read-1-berlin-0` for `default/meter-reader/read-1-berlin-0`: no part of it can hold a dot."""
    return ".".join(instance.split("/")[1:])


def _pod(
    name: str, node: str, instance: Instance, said: InstanceReport | None, address: str, *, owner: str | None
) -> dict[str, Any]:
    ready = said is not None and said.phase == "ready"
    phase = "Pending" if said is None or said.phase in ("waiting", "fetching", "proving", "starting") else "Running"
    if said is not None and said.phase == "refused":
        phase = "Failed"
    since = timestamp(said.since) if said is not None else None
    image = (
        f"{instance.model.name}:{instance.model.version}" if instance.model is not None
        else instance.container.image if instance.container is not None
        else " ".join(instance.process.command[:1]) if instance.process is not None
        else ""
    )  # fmt: skip
    resources = {
        "cpu": msgspec.to_builtins(instance.cpu_millis, enc_hook=encode_hook),
        "memory": msgspec.to_builtins(instance.memory_bytes, enc_hook=encode_hook),
    }
    waiting = {"reason": _camel(said.reason.code), "message": str(said.reason)} if said and said.reason else {}
    container_state = (
        {"running": {"startedAt": since}} if phase == "Running" and (ready or not waiting)
        else {"waiting": waiting or {"reason": (said.phase if said else "assigned").title()}}
    )  # fmt: skip
    conditions = [
        {"type": kind, "status": str(holds), "lastTransitionTime": since, **(waiting if not holds else {})}
        for kind, holds in (("PodScheduled", True), ("Ready", ready), ("ContainersReady", ready))
    ]
    labels = {
        "app.kubernetes.io/name": instance.application,
        "app.kubernetes.io/component": instance.component,
        "batuta.dev/revision": str(instance.revision),
        "batuta.dev/slot": instance.slot,
    }
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": instance.namespace,
            "uid": _uid("pod", instance.name, str(instance.epoch)),
            "creationTimestamp": since,
            "labels": labels,
            "annotations": {"batuta.dev/instance": instance.name, **_bound(instance, node)},
            "ownerReferences": [_owner(instance, owner)] if owner else [],
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Always",
            "containers": [{"name": instance.component, "image": image, "resources": {"requests": resources}}],
        },
        "status": {
            "phase": phase,
            "startTime": since,
            "hostIP": address.rpartition(":")[0],
            "podIP": address.rpartition(":")[0],
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": instance.component,
                    "image": image,
                    "imageID": instance.model.variant.digest if instance.model is not None else "",
                    "ready": ready,
                    "started": ready,
                    "restartCount": max(said.starts - 1, 0) if said is not None else 0,
                    "state": container_state,
                }
            ],
        },
    }


def _owner(instance: Instance, uid: str) -> dict[str, Any]:
    """Whose it is. `kubectl drain` evicts nothing that nobody would start again elsewhere."""
    named = {"apiVersion": API_VERSION, "kind": "Application", "name": instance.application, "uid": uid}
    return {**named, "controller": True, "blockOwnerDeletion": False}


def _bound(instance: Instance, node: str) -> dict[str, str]:
    """What is for every node belongs to this one: Kubernetes marks such pods so, and `kubectl drain` passes them by."""
    return {"kubernetes.io/config.mirror": "everyNode"} if instance.slot == node else {}


def pod_cells(document: Mapping[str, Any], now: int) -> list[Any]:
    metadata, status = document["metadata"], document["status"]
    (container,) = status["containerStatuses"]
    word = container["state"].get("waiting", {}).get("reason") or status["phase"]
    return [
        metadata["name"],
        f"{int(container['ready'])}/1",
        word,
        str(container["restartCount"]),
        age(instant_ms(metadata["creationTimestamp"]), now),
        status["podIP"] or ABSENT,
        document["spec"]["nodeName"],
        metadata["labels"]["app.kubernetes.io/name"],
    ]


def instance_of(hub: Hub, namespace: str, name: str) -> tuple[str, str] | None:
    """Node and instance of a pod."""
    app, _, rest = name.partition(".")
    slot, _, node = rest.partition(".")
    found = instances_of(hub.loop.state, f"{namespace}/{app}", "", slot)
    chosen = [pair for pair in found if not node or pair[0] == node]
    if len(chosen) > 1:
        holders = [h for h in hub.loop.state.held.get(f"{namespace}/{app}", ()) if h.instance.name.endswith(f"/{slot}")]
        newest = max(holders, key=lambda h: h.instance.epoch, default=None)
        chosen = [(newest.node, newest.instance.name)] if newest is not None else chosen
    return chosen[0] if chosen else None


# --- Events: reasons --------------------------------------------------------------------------------------------------


class EventSketches:
    """Every Reason that is so now. A Reason is a state, so it is here as long as it holds, and counts as one."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, tuple[Sketch, ...]]] = {}
        """By the key of what they are about, with the status that they were read from."""

    def __call__(self, hub: Hub) -> Iterator[Sketch]:
        before, self._known = self._known, {}
        for plural in ("applications", "nodes"):
            for key, row in hub.feed.rows(plural).items():
                known = before.get(key)
                if known is None or known[0] is not row.status:
                    known = (row.status, tuple(_events_of(row)))
                self._known[key] = known
                yield from known[1]


def _events_of(row: Row) -> Iterator[Sketch]:
    for document in _event_documents(msgspec.json.decode(row.body)):
        metadata = document["metadata"]
        yield Sketch(metadata["namespace"], metadata["name"], (row.status,), partial(dict, document))


def _event_documents(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    status, metadata = document["status"], document["metadata"]
    involved = {
        "kind": document["kind"],
        "apiVersion": document["apiVersion"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    if metadata.get("namespace"):
        involved["namespace"] = metadata["namespace"]
    for reason in (*status.get("reasons", ()), *status.get("problems", ())):
        yield _event(involved, reason, status)
    link = status.get("link") or {}
    if link.get("word") in ("late", "offline", "never"):
        subject = f"node/{metadata['name']}"
        reason = {"code": f"link_{link['word']}", "subject": subject, "sentence": link["reason"]}
        yield _event(involved, reason, {"since": link.get("since")})


def _event(involved: Mapping[str, str], reason: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    namespace = involved.get("namespace", "default")
    message = reason["sentence"] + (f". {reason['next']}" if reason.get("next") else "")
    mark = hashlib.sha256(f"{reason['code']} {reason['subject']}".encode()).hexdigest()[:16]
    since = timestamp(status.get("since"))
    return {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {
            "name": f"{involved['name']}.{mark}",
            "namespace": namespace,
            "uid": _uid("event", involved["uid"], mark),
            "creationTimestamp": since,
        },
        "involvedObject": dict(involved),
        "reason": _camel(reason["code"]),
        "message": message,
        "type": "Normal" if reason.get("waits") else "Warning",
        "count": 1,
        "firstTimestamp": since,
        "lastTimestamp": since,
        "source": {"component": "batuta"},
    }


def event_cells(document: Mapping[str, Any], now: int) -> list[Any]:
    involved = document["involvedObject"]
    return [
        age(instant_ms(document["lastTimestamp"]), now),
        document["type"],
        document["reason"],
        f"{involved['kind'].lower()}/{involved['name']}",
        document["message"],
    ]


def _camel(code: str) -> str:
    return "".join(part.title() for part in code.split("_"))


def _uid(*parts: str) -> str:
    """The same for the same thing, always."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "batuta.dev/" + "/".join(parts)))
