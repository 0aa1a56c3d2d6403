"""What the nodes of a site share: how it reaches a node, and what it goes on with when nobody answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from batuta.agent.ledger import Ledger, Page
from batuta.core.decided import Assignment, Capture, Commons
from batuta.fabric import subjects
from batuta.fabric.clock import run_virtually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # There is no socket here: one that is found now was left by another test of this process, and is told.
    pytest.mark.filterwarnings("default:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def rig(rig_in: Any, tmp_path: Path) -> Any:
    return rig_in(tmp_path)


def test_what_the_site_shares_is_asked_for_when_it_changed_and_kept_in_the_ledger(rig: Any, make_instance: Any) -> None:
    def shared(serial: int, *topics: str) -> Commons:
        return Commons(site="home", serial=serial, captures=(Capture(consumer="default_a_c", topics=topics),))

    async def story() -> None:
        await rig.open()
        await rig.assign(make_instance())
        rig.commons = shared(7, "a/b")
        rig.start()
        await rig.until(lambda: rig.shared == [shared(7, "a/b")])
        # Told of a change by the hub; then, because nobody told of it, by the answer to a heartbeat.
        rig.commons = shared(8, "a/c")
        await rig.hub.publish(subjects.site_changed("home"), b"")
        await rig.until(lambda: rig.shared[1:] == [shared(8, "a/c")], 0.5)
        rig.commons = shared(9)
        await rig.until(lambda: rig.shared[2:] == [shared(9)], 3)
        await rig.kill()
        rig.broker.cut("pi")
        rig.start()
        await rig.until(lambda: rig.shared[3:] == [shared(9)])
        rig.commons = shared(10, "a/d")
        rig.broker.heal("pi")
        await rig.until(lambda: rig.shared[4:] == [shared(10, "a/d")])
        assert rig.codes() == []
        await rig.leave()

    run_virtually(story())


def test_a_ledger_of_an_earlier_version_says_what_to_store_until_the_hub_does(rig: Any) -> None:
    async def story() -> None:
        await rig.open()
        capture = Capture(consumer="default_a_c", topics=("a/b",))
        order = Assignment(node="pi", site="home", serial=1, captures=(capture,), watched=("a/b",))
        Ledger(rig.home, "pi").open()
        Ledger(rig.home, "pi").write(Page(assignment=order, machine_boot=rig.machine_boot))
        rig.broker.cut("pi")
        rig.start()
        await rig.until(lambda: [c.captures for c in rig.shared] == [(capture,)])
        rig.commons = Commons(site="home", serial=3)
        rig.broker.heal("pi")
        await rig.until(lambda: rig.shared[1:] == [rig.commons])
        await rig.leave()

    run_virtually(story())
