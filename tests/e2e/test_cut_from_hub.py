"""A node that the hub lost sight of and its neighbour did not is cut off, not dead: what it runs stays where it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from batuta.demo.cable import Cable
from batuta.demo.stage import Stage, wait_for
from batuta.kinds import Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SLEEPER = f"""\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: sleeper}}
spec:
  components:
  - name: sleep
    process: {{command: [{sys.executable}, -c, "import time; time.sleep(3600)"], stopGrace: 1s}}
    resources: {{cpu: 10m, memory: 16Mi}}
    failover: {{after: 5s}}
"""


@pytest.fixture
def town(tmp_path: Path) -> Iterator[tuple[Stage, Cable]]:
    """`far` reaches the hub by a cable that can be cut, and `near` by none; both are at one site."""
    stage = Stage(tmp_path)
    cable = None
    try:
        stage.start_hub()
        cable = Cable(stage.leaf_address())
        stage.start_node("far", "lab", via=cable.start())
        stage.start_node("near", "lab")
        for name in ("far", "near"):
            wait_for(f"{name} online", lambda name=name: stage.online(name), 120)
        yield stage, cable
    finally:
        if cable is not None:
            cable.close()
        killed = stage.close()
    assert killed == [], "these did not end when asked to"


def test_nothing_moves_from_a_node_that_its_neighbour_hears(town: tuple[Stage, Cable]) -> None:
    stage, cable = town

    def keep_near_out(out: bool) -> None:
        stage.client.update(Node, "near", lambda n: replace(n, spec=replace(n.spec, unschedulable=out)))

    keep_near_out(True)
    stage.client.apply(SLEEPER)
    wait_for("the sleeper", lambda: [i for i in stage.instances("sleeper") if i["phase"] == "ready"] or None, 120)
    keep_near_out(False)
    # What a neighbour says of its own accord is up to a report old; the hub has to ask for it.
    cable.cut()
    wait_for("its silence", lambda: stage.node_status("far")["link"]["word"] == "offline" or None, 120)
    (kept,) = stage.instances("sleeper")
    assert kept["node"] == "far"
    (answer,) = stage.client.why("sleeper")
    assert "near hears it: it is cut from the hub, not dead" in str(answer)
    stage.kill_node("far")
    wait_for("the failover", lambda: {i["node"] for i in stage.instances("sleeper")} == {"near"} or None, 180)
