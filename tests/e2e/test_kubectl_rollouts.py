"""The real kubectl looks at rollouts, waits for them and watches them; and pauses them, when asked in raw words."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import wait_for
from tests.e2e.test_kubectl import HOW_TO_GET, KUBECTL, Kubectl, Running

if TYPE_CHECKING:
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.skipif(KUBECTL is None, reason=HOW_TO_GET)]

ROLLOUTS = "/apis/batuta.dev/v1/namespaces/default/rollouts"


def reader(word: str) -> str:
    command = json.dumps([sys.executable, "-u", "-c", f"import time\nprint({word!r})\ntime.sleep(86400)"])
    return f"""
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: reader}}
spec:
  rollout: {{waves: [1 node, 100%], approvals: true}}
  components:
  - name: run
    process: {{command: {command}, stopGrace: 1s}}
    replicas: {{everyNode: true}}
    resources: {{cpu: 50m, memory: 32Mi}}
"""


def test_rollouts_are_got_watched_awaited_and_paused(stage: Stage) -> None:
    stage.start_hub()
    for name in ("pi-1", "pi-2"):
        stage.start_node(name, "berlin")
    wait_for("the nodes", lambda: (stage.online("pi-1") and stage.online("pi-2")) or None, 120)
    kubectl = Kubectl(stage, (stage.hub_state / "hub" / "admin.token").read_text().strip())
    assert "No resources found" in kubectl("get", "rollouts")
    kubectl.apply(reader("one"))
    kubectl("wait", "--for=jsonpath={.status.state}=ok", "application/reader", "--timeout=120s")
    assert "not found" in kubectl("get", "rollout", "reader", status=1)
    watch = Running(kubectl, "get", "rollouts", "-w")
    try:
        kubectl.apply(reader("two"))
        kubectl("wait", "--for=jsonpath={.status.awaitsApproval}=true", "rollout/reader", "--timeout=120s")
        cells = kubectl.row("get", "rollouts")
        assert cells[:8] == ["reader", "2", "soaking", "1/2", "2", "1", "0", "0"]
        assert "waits for somebody to agree" in cells[9]
        wide = kubectl("get", "ro", "reader", "-o", "wide")
        assert "batuta rollout approve reader" in wide
        described = kubectl("describe", "rollout", "reader")
        assert "rollout_unapproved" in described
        explained = kubectl("explain", "rollout.spec")
        assert "onFailure" in explained
        assert kubectl.json("get", "rollout", "reader")["metadata"]["ownerReferences"][0]["name"] == "reader"

        kubectl("create", "--raw", f"{ROLLOUTS}/reader/pause", "-f", "-", said='{"reason": "lunch"}')
        assert "lunch" in kubectl("get", "rollouts", "reader")
        kubectl("create", "--raw", f"{ROLLOUTS}/reader/resume", "-f", "-", said="{}")
        kubectl("create", "--raw", f"{ROLLOUTS}/reader/approve", "-f", "-", said="{}")
        kubectl("wait", "--for=jsonpath={.status.phase}=done", "rollout/reader", "--timeout=120s")
        assert watch.until(r"reader +2 +done +2/2 +2 +2")[0].startswith("NAME")
    finally:
        watch.end()
    assert "not possible" in kubectl("delete", "rollout", "reader", status=1).lower()
    refused = kubectl("create", "--raw", f"{ROLLOUTS}/reader/pause", "-f", "-", said="{}", status=1)
    assert "release 2 is done" in refused
    kubectl("delete", "application", "reader")
    wait_for("the rollout to go", lambda: "No resources found" in kubectl("get", "rollouts") or None, 60)
