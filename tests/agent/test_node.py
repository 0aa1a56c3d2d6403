"""The node's loop in virtual time: with and without a hub, through crashes, cuts, damage and clocks that jump."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.core.decided import ModelOrder
from batuta.core.lease import LAPSED_GRACE_MS
from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.clock import run_virtually
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant
from batuta.runtimes.simulated import Script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # There is no socket here: one that is found now was left by another test of this process, and is told.
    pytest.mark.filterwarnings("default:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]


def play(story: Callable[[], Any]) -> None:
    run_virtually(story())


@pytest.fixture
def rig(rig_in: Any, tmp_path: Path) -> Any:
    return rig_in(tmp_path)


@pytest.fixture
def one(make_instance: Any) -> Any:
    return make_instance


def test_an_assignment_runs_and_is_reported(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.reports and rig.report.instances and rig.report.instances[0].phase == "ready")
        assert rig.report.serial == 1
        assert rig.report.instances[0].starts == 1
        assert rig.report.instances[0].since >= 1_790_000_000_000
        await rig.assign()
        await rig.until(lambda: rig.phases() == {} and not rig.report.instances)
        assert rig.machine.alive() == {}
        await rig.leave()

    play(story)


def test_a_node_at_rest_reports_every_fifteen_seconds_and_no_more(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        await asyncio.sleep(5)
        before = len(rig.reports)
        await asyncio.sleep(150)
        assert 9 <= len(rig.reports) - before <= 11
        assert rig.report.address, "what only rides along is there all the same"
        await rig.leave()

    play(story)


def test_an_older_assignment_changes_nothing(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one(), serial=7)
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        await rig.assign(serial=3)
        await asyncio.sleep(400)
        assert rig.phases() == {"c-1-0": "ready"}
        assert rig.node.loop.stale_orders > 0
        await rig.leave()

    play(story)


def test_an_assignment_that_cannot_be_read_is_told_and_the_last_one_kept(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        key = subjects.assignment_key("pi")
        await rig.hub.table("decided").put(key, b'{"node":"pi","site":"home","serial":9,"fromTheFuture":1}')
        await rig.until(lambda: "order_unreadable" in rig.codes())
        assert rig.phases() == {"c-1-0": "ready"}
        await rig.assign(one(revision=2), serial=10)
        await rig.until(lambda: rig.phases() == {"c-2-0": "ready"} and rig.codes() == [])
        await rig.leave()

    play(story)


def test_a_cold_boot_with_no_hub_brings_everything_back_from_the_ledger(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one("a"), one("b"))
        rig.start()
        await rig.until(lambda: rig.phases() == {"a-1-0": "ready", "b-1-0": "ready"})
        await rig.until(lambda: rig.node.ledger.writes >= 1 and rig.node.loop._dirty_since is None)
        await rig.kill()
        rig.machine.crash()
        rig.machine_boot = "boot-2"
        rig.broker.cut("pi")
        rig.start()
        await rig.until(lambda: rig.phases() == {"a-1-0": "ready", "b-1-0": "ready"}, 5)
        assert set(rig.machine.starts.values()) == {2}
        assert [local.failures for local in rig.node.loop.locals.values()] == [0, 0], "a power cut is nobody's failure"
        rig.broker.heal("pi")
        await rig.until(lambda: rig.reports and rig.report.boot == "run-2", 10)
        await rig.leave()

    play(story)


def test_kill_9_of_the_agent_starts_nothing_twice(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        for _ in range(3):
            await rig.kill()
            rig.start()
            await asyncio.sleep(5)
            assert rig.phases() == {"c-1-0": "ready"}
        assert rig.machine.starts == {"default/a/c-1-0": 1}
        assert rig.report.instances[0].starts == 1
        await rig.leave()

    play(story)


def test_killed_at_any_instant_of_a_start_it_never_runs_twice(rig: Any, one: Any) -> None:
    async def story() -> None:
        rig.machine.scripts["c"] = Script(start_ms=300, ready_after_ms=300)
        await rig.open()
        await rig.assign(one())
        for after_ms in range(0, 900, 60):
            rig.start()
            await asyncio.sleep(after_ms / 1000)
            await rig.kill()
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        assert rig.machine.most_at_once == {("default/a", "c", "0"): 1}
        await rig.leave()

    play(story)


def test_a_cut_is_told_by_its_neighbours_not_by_its_instances(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        rig.broker.cut("pi")
        await rig.assign(one(), one("d"))
        await asyncio.sleep(3600)
        assert rig.phases() == {"c-1-0": "ready"}
        assert "hub_unreachable" in [r.code for r in rig.node.loop.report(0).problems]
        rig.broker.heal("pi")
        healed_at = asyncio.get_running_loop().time()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready", "d-1-0": "ready"}, 3)
        await rig.until(lambda: rig.codes() == [] and len(rig.report.instances) == 2, 3)
        assert asyncio.get_running_loop().time() - healed_at < 3
        assert rig.machine.starts["default/a/c-1-0"] == 1
        await rig.leave()

    play(story)


def test_a_missed_assignment_is_noticed_by_the_next_heartbeat(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        rig.start()
        await asyncio.sleep(5)
        # Written behind the watch's back: no message ever tells of it.
        table = rig.node.parts.fabric.table("decided")
        rows = rig.broker.rows("decided")
        await rig.assign(one())
        rig.node.loop._news.clear()
        assert table is not None
        assert rows is not None
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"}, 3)
        await rig.leave()

    play(story)


def test_a_lease_lapses_without_contact_and_is_renewed_with_it(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one(lease_ms=5_000))
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        await asyncio.sleep(60)
        assert rig.machine.starts == {"default/a/c-1-0": 1}
        rig.broker.cut("pi")
        cut_at = asyncio.get_running_loop().time()
        await rig.until(lambda: rig.machine.alive() == {}, 10)
        assert asyncio.get_running_loop().time() - cut_at <= (5_000 + LAPSED_GRACE_MS) / 1000 + 0.2
        await asyncio.sleep(3600)
        assert rig.machine.alive() == {}
        rig.broker.heal("pi")
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"}, 5)
        await rig.leave()

    play(story)


def test_a_lease_survives_a_crash_of_the_agent_and_what_had_it_is_started_again_under_it(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one(lease_ms=5_000))
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        await asyncio.sleep(3)
        rig.broker.cut("pi")
        await rig.kill()
        assert rig.machine.alive() == {}, "nobody counts its lease"
        rig.start()
        await asyncio.sleep(1)
        assert rig.machine.starts == {"default/a/c-1-0": 2}, "the hub is cut off, and the last contact is young enough"
        assert rig.phases() == {"c-1-0": "ready"}
        await rig.until(lambda: rig.machine.alive() == {}, 5)
        await rig.kill()
        rig.start()
        await asyncio.sleep(60)
        assert rig.machine.alive() == {}
        await rig.leave()

    play(story)


def test_an_agent_that_is_replaced_stops_in_order_what_has_a_lease_and_nothing_else(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one("leased", lease_ms=5_000), one("free"))
        rig.start()
        await rig.until(lambda: rig.phases() == {"free-1-0": "ready", "leased-1-0": "ready"})
        await rig.leave()
        assert [s[1:] for s in rig.machine.story if s[1] != "started"] == [("stopped", "default/a/leased-1-0")]
        rig.start()
        await rig.until(lambda: rig.phases() == {"free-1-0": "ready", "leased-1-0": "ready"}, 5)
        assert rig.machine.starts == {"default/a/free-1-0": 1, "default/a/leased-1-0": 2}
        await rig.leave()

    play(story)


@pytest.mark.parametrize("ahead_s", [86_400, -86_400, 50 * 365 * 86_400])
def test_a_clock_that_jumps_is_told_and_moves_no_wait_and_no_lease(rig: Any, one: Any, ahead_s: int) -> None:
    async def story() -> None:
        rig.machine.scripts["fails"] = Script(refuses="command_missing")
        await rig.open()
        await rig.assign(one(lease_ms=5_000), one("fails"))
        rig.start()
        await rig.until(lambda: rig.phases().get("c-1-0") == "ready")
        await asyncio.sleep(100)
        failing = "default/a/fails-1-0"
        tries = len([s for s in rig.machine.story if s[1:] == ("refused", failing)])
        rig.clock.ahead_ms = ahead_s * 1000
        await rig.until(lambda: "clock_jumped" in rig.codes(), 3)
        assert abs(rig.report.at - rig.clock.now()) < 5_000, "reports speak the clock's new time"
        await asyncio.sleep(100)
        assert rig.machine.starts == {"default/a/c-1-0": 1}, "its lease was not touched"
        again = len([s for s in rig.machine.story if s[1:] == ("refused", failing)])
        assert 0 <= again - tries <= 2, "backing off went on as before"
        since = next(i.since for i in rig.report.instances if i.name == "default/a/c-1-0")
        assert 190_000 < rig.clock.now() - since < 210_000, "it has been ready for as long as it has"
        await asyncio.sleep(700)
        assert "clock_jumped" not in rig.codes()
        await rig.leave()

    play(story)


def test_a_jump_while_the_agent_was_away_moves_nothing_either(rig: Any, one: Any) -> None:
    async def story() -> None:
        rig.machine.scripts["c"] = Script(refuses="command_missing")
        await rig.open()
        await rig.assign(one())
        rig.start()
        await asyncio.sleep(30)
        failures = rig.node.loop.locals["default/a/c-1-0"].failures
        assert failures >= 4
        await rig.leave()
        rig.clock.ahead_ms = -86_400_000
        rig.start()
        await asyncio.sleep(40)
        assert rig.node.loop.locals["default/a/c-1-0"].failures in (failures + 1, failures + 2)
        await rig.leave()

    play(story)


def test_a_corrupt_ledger_stops_nothing_and_is_reported(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        await rig.leave()
        for name in ("ledger", "ledger.old"):
            (rig.home / name).write_bytes(b"\0" * 500)
        rig.broker.cut("pi")
        rig.start()
        await asyncio.sleep(30)
        assert rig.phases() == {}
        assert set(rig.machine.alive()) == {"default/a/c-1-0"}, "what runs is not stopped for want of a memory"
        rig.broker.heal("pi")
        await rig.until(lambda: rig.reports and "ledger_corrupt" in rig.codes(), 10)
        await rig.until(lambda: rig.report.serial == 1, 10)
        await rig.leave()

    play(story)


def test_after_the_ledger_was_lost_what_still_runs_is_found_again(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        await rig.leave()
        for path in rig.home.glob("ledger*"):
            path.unlink()
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"}, 30)
        assert rig.machine.starts == {"default/a/c-1-0": 1}
        assert rig.machine.most_at_once == {("default/a", "c", "0"): 1}
        await rig.leave()

    play(story)


def test_a_model_waits_for_its_artifact_and_runs_only_the_right_bytes(rig: Any, one: Any) -> None:
    data = b"model" * 50_000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    variant = Variant(name="fp32", format="onnx", digest=digest, size_bytes=Bytes(len(data)))
    wanted = {"process": None, "model": ModelOrder(name="m", version="1", variant=variant)}

    async def story() -> None:
        await rig.open()
        rig.files[digest] = b"other" * 50_000
        await rig.assign(one(**wanted))
        rig.start()
        await asyncio.sleep(10)
        assert rig.machine.starts == {}
        assert rig.phases() == {"c-1-0": "backoff"}
        assert rig.report.instances[0].reason.code == "digest_mismatch"
        assert 3 <= rig.node.artifacts.refused <= 5, "tried again, ever more slowly"
        rig.files[digest] = data
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"}, 30)
        await rig.until(lambda: rig.report.artifacts == (digest,), 1)
        # On the disk of a machine that lost power, a bit is no longer what it was.
        await rig.leave()
        rig.machine.crash()
        rig.machine_boot = "boot-2"
        path = rig.node.artifacts.path(digest)
        path.chmod(0o600)
        path.write_bytes(b"0" + data[1:])
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"}, 30)
        assert path.read_bytes() == data
        assert rig.node.artifacts.refused == 1
        await rig.leave()

    play(story)


def test_changes_are_told_within_200_ms_together_and_quiet_costs_four_reports_a_minute(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        rig.start()
        await asyncio.sleep(20)
        before = len(rig.reports)
        await asyncio.sleep(60)
        assert len(rig.reports) - before == 4
        before, at = len(rig.reports), asyncio.get_running_loop().time()
        await rig.assign(*(one(f"c{n}") for n in range(50)))
        await rig.until(lambda: len(rig.reports) > before)
        assert asyncio.get_running_loop().time() - at <= 0.25
        await asyncio.sleep(1)
        assert {i.phase for i in rig.report.instances} == {"ready"}
        assert len(rig.reports) - before <= 3, "fifty starts, a handful of reports"
        await rig.leave()

    play(story)


def test_a_report_that_did_not_arrive_is_followed_by_a_newer_one(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        rig.start()
        await asyncio.sleep(5)
        rig.broker.cut("pi")
        await asyncio.sleep(100)
        rig.broker.heal("pi")
        await rig.until(lambda: rig.report.sequence > 5, 2)
        assert rig.node.reporter.unsent > 0
        await rig.leave()

    play(story)


def test_a_quiet_node_writes_nothing_to_its_disk(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one(), one("leased", lease_ms=10_000))
        rig.start()
        await asyncio.sleep(30)
        before = rig.node.ledger.writes
        assert before <= 4
        await asyncio.sleep(1800)
        assert rig.node.ledger.writes == before
        await rig.leave()

    play(story)


def test_an_orderly_stop_stops_all_and_the_next_start_brings_it_back(rig: Any, one: Any) -> None:
    async def story() -> None:
        rig.machine.scripts["c"] = Script(stop_ms=2_000)
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        rig.node.end()
        await rig.task
        await rig.node.stop()
        assert rig.machine.alive() == {}
        assert rig.report.instances[0].phase == "waiting"
        rig.broker.cut("pi")
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"}, 5)
        await rig.leave()

    play(story)


def test_questions_are_answered_and_refused_in_words(rig: Any, one: Any) -> None:
    async def story() -> None:
        await rig.open()
        await rig.assign(one())
        rig.start()
        await rig.until(lambda: rig.phases() == {"c-1-0": "ready"})
        log = rig.home / "instances" / "default" / "a" / "c-1-0" / "log"
        log.mkdir(parents=True)
        (log / "stdout.log").write_text("one\ntwo\nthree\n")

        async def ask(verb: str, **said: Any) -> Any:
            answer = await rig.hub.request(subjects.tell("pi", verb), msgspec.json.encode(said))
            return msgspec.json.decode(answer)

        piece = await ask("log", instance="default/a/c-1-0", tail=2)
        assert piece["text"] == "two\nthree\n"
        with (log / "stdout.log").open("a") as file:
            file.write("four\n")
        (log / "stderr.log").write_text("oh\n")
        piece = await ask("log", instance="default/a/c-1-0", offset=piece["offset"])
        assert piece["text"] == "four\noh\n"
        assert "text" not in await ask("log", instance="default/a/c-1-0", offset=piece["offset"])
        assert (await ask("log", instance="../../../etc"))["error"]
        assert (await ask("log", instance="default/a/none-1-0"))["error"] == "not_found"
        assert (await ask("dance"))["error"]
        assert (await ask("doctor"))["serial"] == 1
        await rig.leave()
        with pytest.raises(FabricUnavailable):
            await ask("ping")

    play(story)
