"""What a hub answers to a heartbeat, serials aside: that it is not ours, or that it wants a report."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from batuta.fabric.clock import run_virtually

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("code", "told"), [("two_machines", True), ("a_word_of_a_newer_hub", False)])
def test_a_refused_heartbeat_renews_no_lease_and_its_reason_is_told_until_it_is_over(
    rig_in: Any, make_instance: Any, tmp_path: Path, code: str, told: bool
) -> None:
    rig = rig_in(tmp_path)

    async def story() -> None:
        await rig.open()
        await rig.assign(make_instance(lease_ms=5_000), make_instance("free"))
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready", "free-1-0": "ready"})
        rig.hub_refuses = code
        await rig.until(lambda: set(rig.machine.alive()) == {"default/a/free-1-0"}, 8)
        await rig.until(lambda: "hub_unreachable" in rig.codes(), 3)
        assert ("two_machines" in rig.codes()) is told
        await asyncio.sleep(600)
        assert rig.phases() == {"c-1-0": "waiting", "free-1-0": "ready"}
        rig.hub_refuses = ""
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready", "free-1-0": "ready"}, 5)
        await rig.until(lambda: rig.codes() == [], 3)
        await rig.leave()

    run_virtually(story())


def test_a_report_is_sent_when_the_hub_asks(rig_in: Any, make_instance: Any, tmp_path: Path) -> None:
    rig = rig_in(tmp_path)

    async def story() -> None:
        await rig.open()
        await rig.assign(make_instance())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        await asyncio.sleep(10)
        told = len(rig.reports)
        await asyncio.sleep(4)
        assert len(rig.reports) <= told + 1, "at rest it says little"
        rig.hub_asks = True
        told = len(rig.reports)
        await asyncio.sleep(5)
        assert len(rig.reports) >= told + 4
        await rig.leave()

    run_virtually(story())
