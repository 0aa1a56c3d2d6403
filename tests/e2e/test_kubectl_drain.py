"""`kubectl drain` against a real hub and two real nodes: what it empties, what it passes by, and what it is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import wait_for
from tests.e2e.test_kubectl import HOW_TO_GET, KUBECTL, Kubectl, application

if TYPE_CHECKING:
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.skipif(KUBECTL is None, reason=HOW_TO_GET)]


def test_a_node_is_emptied_and_works_again(stage: Stage) -> None:
    stage.start_hub()
    stage.start_node("pi-1", "berlin")
    wait_for("the node", lambda: stage.online("pi-1"), 60)
    kubectl = Kubectl(stage, (stage.hub_state / "hub" / "admin.token").read_text().strip())
    everywhere = application("watch").replace("count: 1", "everyNode: true")
    kubectl.apply(f"{application('walk')}\n---\n{everywhere}")
    kubectl("wait", "--for=condition=Ready", "app/walk", "app/watch", "--timeout=60s")
    assert re.search("Controlled By: +Application/walk", kubectl("describe", "pod", "walk.run-1-0"))

    # Nowhere to go: it says so again and again, and nothing is taken away.
    stuck = kubectl("drain", "pi-1", "--timeout=8s", status=1)
    assert re.search("walk.run-1-0 stays on pi-1 until it can be elsewhere: .+", stuck), stuck
    assert kubectl.json("get", "pod", "walk.run-1-0")["status"]["phase"] == "Running"
    assert kubectl.row("get", "node", "pi-1")[1] == "Ready,SchedulingDisabled"

    stage.start_node("pi-2", "berlin")
    wait_for("the other node", lambda: stage.online("pi-2"), 60)
    drained = kubectl("drain", "pi-1", "--timeout=80s")
    assert "node/pi-1 drained" in drained
    where = {p["metadata"]["name"]: p["spec"]["nodeName"] for p in kubectl.json("get", "pods")["items"]}
    assert where == {"walk.run-1-0": "pi-2", "watch.run-1-pi-1": "pi-1", "watch.run-1-pi-2": "pi-2"}
    assert kubectl.json("get", "nodes.batuta.dev", "pi-1")["spec"]["drain"] is True

    kubectl("uncordon", "pi-1")
    assert kubectl.row("get", "node", "pi-1")[1] == "Ready"
    assert kubectl.json("get", "nodes.batuta.dev", "pi-1")["spec"] == {"site": "berlin"}
    viewer = Kubectl(stage, stage.client.create_api_token("operator", ("default",), ttl_ms=60_000, name="o").token, "o")
    assert "Forbidden" in viewer("drain", "pi-2", "--timeout=8s", status=1)
