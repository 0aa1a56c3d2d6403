"""What an instance is told of the accelerators that were granted to it."""

from __future__ import annotations

from pathlib import Path

from batuta.core.decided import Grant, Instance
from batuta.kinds.base import Bytes
from batuta.runtimes.base import Order
from batuta.runtimes.keeping import environment


def test_an_instance_is_told_its_cards(tmp_path: Path) -> None:
    cards = (Grant(kind="nvidia", card=1), Grant(kind="hailo", card=0, memory_bytes=Bytes(2048)))
    instance = Instance(
        namespace="default", application="app", component="read", revision=1, slot="0", epoch=1, accelerators=cards
    )
    told = environment(Order(instance=instance, directory=tmp_path, artifacts={}, broker={}))
    assert told["BATUTA_ACCELERATORS"] == "nvidia:1,hailo:0=2048"
