"""A region that gives a model to the shops below it: real processes, each shop behind thin cables of its own."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from batuta.demo.cable import Cable
from batuta.demo.stage import wait_for
from batuta.fabric.broker import free_port
from batuta.kinds.manifest import parse
from batuta.model_push import push
from tests.e2e.test_delivery import PATIENCE_S, READER, Site, model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REGION = "127.0.0.2"
"""Where shops see the region: at this end of their cable. Nothing else listens there."""
MBIT = 16e6
SITES = """
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: north}
spec: {depot: {port: PORT}}
---
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: shop}
spec: {parent: north}
"""


class Country(Site):
    """Two nodes of a region at a good line, and two of a shop: one thin cable to the hub, and one to the region."""

    def __init__(self, stage: Stage) -> None:  # the base class builds another topology
        self.stage, self.names = stage, ("north-0", "shop-0", "shop-1")
        stage.start_hub()
        port = free_port("127.0.0.1", 27_424)
        for resource in parse(SITES.replace("PORT", str(port))):
            stage.client.apply([resource])
        leaf = stage.leaf_address()
        self.cable = Cable(leaf, bits_per_s=MBIT, delay_s=0.02)
        self.to_north = Cable(leaf)
        self.to_region = Cable(("127.0.0.1", port), bits_per_s=MBIT, delay_s=0.02, at=(REGION, port))
        self.port = port
        stage.start_node("north-0", "north", via=self.to_north.start(), more=("--advertise", REGION))
        shop = self.cable.start()
        for name in ("shop-0", "shop-1"):
            stage.start_node(name, "shop", via=shop)
        for name in self.names:
            wait_for(name, lambda name=name: stage.online(name), PATIENCE_S)  # type: ignore[misc]
        wait_for("the depot", lambda: self.told_of("north-0", "depot")["address"] or None, PATIENCE_S)
        self.to_region.start()

    def told_of(self, name: str, about: str) -> dict[str, Any]:
        found: dict[str, Any] = self.doctor(name)[about]
        return found

    def close(self) -> None:
        for cable in (self.to_north, self.to_region):
            cable.close()


@pytest.fixture
def country(stage: Stage) -> Iterator[Callable[[], Country]]:
    made: list[Country] = []

    def make() -> Country:
        made.append(Country(stage))
        return made[-1]

    try:
        yield make
    finally:
        stage.close()
        for each in made:
            each.cable.close()
            each.close()


def test_the_shop_takes_the_file_from_the_region_and_nothing_of_it_from_the_hub(
    country: Callable[[], Country], tmp_path: Path
) -> None:
    land = country()
    digest, size = land.push(model(tmp_path / "m.onnx", 12, 4))
    before = {"north": land.to_north.bytes_carried, "shop": land.cable.bytes_carried}
    land.stage.client.apply(READER.format(name="reader", version="1", priority=0))
    land.all_have(digest)
    north, shops = land.told("north-0"), [land.told(name) for name in ("shop-0", "shop-1")]
    assert (north["hubBytes"], north["regionBytes"]) == (size, 0)
    # On a machine that is too busy to answer within ten seconds the hub is asked for some of it; mostly it is none.
    doctors = [land.doctor(name) for name in ("shop-0", "shop-1")]
    assert sum(shop["hubBytes"] for shop in shops) < 0.1 * size, doctors
    # Each chunk crossed to the shop once, whichever of its nodes asked for it.
    assert 0.9 * size <= sum(shop["regionBytes"] for shop in shops) < 1.05 * size
    assert land.cable.bytes_carried - before["shop"] < 0.2 * size, "orders, heartbeats and lists of chunks"
    assert land.to_north.bytes_carried - before["north"] < 1.1 * size
    assert land.to_region.bytes_carried < 1.1 * size
    assert [shop["refused"] for shop in shops] == [0, 0]


def test_a_region_that_is_cut_off_and_dies_costs_a_moment_and_with_the_hub_gone_the_region_does(
    country: Callable[[], Country], tmp_path: Path
) -> None:
    land = country()
    stage = land.stage
    digest, _ = land.push(model(tmp_path / "m.onnx", 8, 5))
    stage.client.apply(READER.format(name="reader", version="1", priority=0))
    land.arrives("shop-0", digest, 10)
    land.to_region.cut()
    stage.kill_node("north-0")
    land.names = ("shop-0", "shop-1")
    land.all_have(digest)
    assert sum(land.told(name)["hubBytes"] for name in land.names) > 0
    assert all(land.told(name)["refused"] == 0 for name in land.names)

    # Back again, it has the next version whole before the hub dies; the shop asked for nothing of it until then.
    land.to_region.mend()
    stage.restart_node("north-0")
    wait_for("north-0", lambda: stage.online("north-0"), PATIENCE_S)
    second = model(tmp_path / "n.onnx", 8, 6)
    digest = push(stage.client, second, name="layers", version="2").digest
    land.cable.cut()
    stage.client.apply(READER.format(name="reader", version="2", priority=0))
    wait_for("the region", lambda: land.has("north-0", digest), PATIENCE_S)
    assert hashlib.sha256((land.artifacts("north-0") / "sha256" / digest[7:]).read_bytes()).hexdigest() == digest[7:]
    land.cable.mend()
    land.all_have(digest)
