"""What an instance is told of the accelerators that were granted to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batuta.core.decided import Grant, Instance
from batuta.kinds.base import Bytes
from batuta.kinds.container import ContainerUse
from batuta.runtimes.base import Order
from batuta.runtimes.container_order import variables
from batuta.runtimes.keeping import environment


def test_an_instance_is_told_its_cards(tmp_path: Path) -> None:
    cards = (Grant(kind="nvidia", card=1), Grant(kind="hailo", card=0, memory_bytes=Bytes(2048)))
    instance = Instance(
        namespace="default", application="app", component="read", revision=1, slot="0", epoch=1, accelerators=cards
    )
    told = environment(Order(instance=instance, directory=tmp_path, artifacts={}, broker={}))
    assert told["BATUTA_ACCELERATORS"] == "nvidia:1,hailo:0=2048"


def test_an_instance_is_told_where_the_flags_of_its_namespace_are(tmp_path: Path) -> None:
    instance = Instance(namespace="team", application="app", component="read", revision=1, slot="0", epoch=1)
    surroundings = {"inference": "http://127.0.0.1:8500"}
    told = environment(Order(instance=instance, directory=tmp_path, artifacts={}, broker=surroundings))
    assert told["BATUTA_FLAGS_URL"] == "http://127.0.0.1:8500/flags/team"
    nowhere = environment(Order(instance=instance, directory=tmp_path, artifacts={}, broker={}))
    assert nowhere["BATUTA_FLAGS_URL"] == ""


@pytest.mark.parametrize(("network", "is_told"), [("host", True), ("none", False), ("bridge", False)])
def test_a_container_is_told_it_where_it_can_reach_it(tmp_path: Path, network: Any, is_told: bool) -> None:
    use = ContainerUse(image="docker.io/library/a@sha256:" + "0" * 64, network=network)
    instance = Instance(
        namespace="team", application="app", component="read", revision=1, slot="0", epoch=1, container=use
    )
    order = Order(instance=instance, directory=tmp_path, artifacts={}, broker={"inference": "http://127.0.0.1:8500"})
    assert ("BATUTA_FLAGS_URL" in variables(order, use, 1)) is is_told
