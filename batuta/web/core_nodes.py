"""The core view of nodes: machines as Kubernetes clients expect them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.web.ages import age, instant_ms, timestamp
from batuta.web.sources import ABSENT, AGE, NAME, Column
from batuta.web.views import Sketch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.hub.feed import Row
    from batuta.hub.hub import Hub

NODE_COLUMNS = (
    NAME, Column("Status"), Column("Roles"), AGE, Column("Version"), Column("Internal-IP", priority=1),
    Column("Site", priority=1), Column("OS-Image", priority=1), Column("Kernel-Version", priority=1),
    Column("Container-Runtime", priority=1),
)  # fmt: skip
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def node_sketches(hub: Hub) -> Iterator[Sketch]:
    for row in hub.feed.rows("nodes").values():
        yield Sketch("", row.ref.name, (row.head, row.spec, row.status), partial(_drawn, row))


def _drawn(row: Row) -> dict[str, Any]:
    return core_node(msgspec.json.decode(row.body))


def core_node(document: Mapping[str, Any]) -> dict[str, Any]:
    metadata, spec, status = document["metadata"], document["spec"], document["status"]
    inventory = status.get("inventory") or {}
    architecture = ARCHITECTURES.get(inventory.get("architecture", ""), inventory.get("architecture", ""))
    name, site = metadata["name"], spec["site"]
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        "topology.kubernetes.io/zone": site,
        **(metadata.get("labels") or {}),
    }
    kept = {key: metadata[key] for key in ("name", "uid", "creationTimestamp", "annotations") if key in metadata}
    capacity = {
        "cpu": inventory.get("cpu", "0"),
        "memory": inventory.get("memory", "0"),
        "ephemeral-storage": inventory.get("disk", "0"),
        "pods": "1000",
    }
    host = str(status.get("address", "")).rpartition(":")[0]
    addresses = [{"type": "Hostname", "address": inventory.get("hostname") or name}]
    if host:
        addresses.insert(0, {"type": "InternalIP", "address": host})
    core_spec: dict[str, Any] = {"providerID": f"batuta://{site}/{name}"}
    if spec.get("unschedulable") or spec.get("drain"):
        core_spec["unschedulable"] = True
    if spec.get("taints"):
        core_spec["taints"] = [{"effect": "NoSchedule", **taint} for taint in spec["taints"]]
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {**kept, "labels": labels},
        "spec": core_spec,
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [_ready(status)],
            "addresses": addresses,
            "nodeInfo": {
                "architecture": architecture,
                "operatingSystem": "linux",
                "osImage": inventory.get("os", ""),
                "kernelVersion": inventory.get("kernel", ""),
                "kubeletVersion": f"batuta-{inventory.get('agentVersion') or 'unknown'}",
                "kubeProxyVersion": "",
                "containerRuntimeVersion": ",".join(inventory.get("runtimes") or ()),
                "machineID": "",
                "systemUUID": metadata.get("uid", ""),
                "bootID": "",
            },
        },
    }


def _ready(status: Mapping[str, Any]) -> dict[str, Any]:
    """Ready is what the link says; what else ails a node is in its own status, and in events."""
    link = status["link"]
    word = {"online": "True", "late": "True"}.get(link["word"], "Unknown")
    since = timestamp(link.get("since"))
    return {
        "type": "Ready",
        "status": word,
        "reason": f"Link{link['word'].title()}",
        "message": link["reason"],
        "lastHeartbeatTime": timestamp(status.get("reportedAt")) if word != "True" else since,
        "lastTransitionTime": since,
    }


def node_cells(document: Mapping[str, Any], now: int) -> list[Any]:
    metadata, status = document["metadata"], document["status"]
    word = "Ready" if status["conditions"][0]["status"] == "True" else "NotReady"
    if document["spec"].get("unschedulable"):
        word += ",SchedulingDisabled"
    machine = status["nodeInfo"]
    address = next((a["address"] for a in status["addresses"] if a["type"] == "InternalIP"), ABSENT)
    return [
        metadata["name"],
        word,
        ABSENT,
        age(instant_ms(metadata.get("creationTimestamp")), now),
        machine["kubeletVersion"],
        address,
        metadata["labels"]["topology.kubernetes.io/zone"],
        machine["osImage"] or ABSENT,
        machine["kernelVersion"] or ABSENT,
        machine["containerRuntimeVersion"] or ABSENT,
    ]
