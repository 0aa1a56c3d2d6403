"""Models that are tried beside what runs, as it is decided: who has them how, what is counted, and what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from batuta.core.decided import Beside
from batuta.core.evidence import latency_bucket
from batuta.core.load import load_of
from batuta.core.observed import InstanceReport, Measures
from batuta.core.reasons import Reason
from batuta.core.sample import Sample
from batuta.core.state import Change
from batuta.core.view_rollout import rollout_status
from batuta.kinds.base import Millis
from batuta.kinds.rolling import Rollout
from tests.core.fleets import APP, component, model, node, report
from tests.core.rolling_world import World, rolled

if TYPE_CHECKING:
    from batuta.core.decided import Instance

NAMES = tuple(f"n{i:02}" for i in range(6))
TRIED = Rollout(
    waves=("1 node", "100%"), soak_ms=Millis(10_000), shadow_ms=Millis(30_000), split="25%",
    gates=("agreement.share >= 0.9", "errors.rate < 0.5"),
)  # fmt: skip


class Models(World):
    """Nodes that run models: version 1 or 2, alone or beside each other."""

    agreement = 0.97
    """How often version 2 says what version 1 says."""

    def _obey(self) -> None:
        rows = []
        for name, assignment in self.state.assignments.items():
            before = self.state.observed.get(name)
            if before is None or name in self.away:
                continue
            known = {(i.name, i.epoch): i for i in before.instances}
            both = list(assignment.instances) + [i.newcomer for i in assignment.instances if i.newcomer]
            assert len({i.name for i in both}) == len(both)
            found = tuple(self._tell(name, i, known.get((i.name, i.epoch))) for i in both)
            rows.append(
                Change("observed", name, msgspec.structs.replace(before, serial=assignment.serial, instances=found))
            )
        self.state = self.state.with_changes(rows)
        ready = {n for n in self.names if any(self._is_ready(n, h.instance) for h in self.held_at(n))}
        self.least_ready = min(self.least_ready, len(ready))

    def _tell(self, name: str, instance: Instance, was: InstanceReport | None) -> InstanceReport:
        self.ran.add((name, way(instance)))
        if self.refuses(name, instance):
            reason = Reason(code="golden_differs", subject="instance/x", detail="outputs differ")
            return InstanceReport(
                name=instance.name, epoch=instance.epoch, phase="refused", since=self.now, reason=reason
            )
        answered = 0 if was is None or was.measures is None or was.measures.sample is None else (
            was.measures.sample.answered + 100
        )  # fmt: skip
        shadow = instance.beside is not None and instance.beside.mode == "shadow"
        sample = Sample(
            answered=answered, latency={latency_bucket(5.0): answered}, compared=answered if shadow else 0,
            agreed=int(answered * self.agreement) if shadow else 0, instance_ms=answered * 10,
        )  # fmt: skip
        return InstanceReport(
            name=instance.name, epoch=instance.epoch, phase="ready" if was is not None else "starting",
            since=self.now, starts=1, measures=Measures(sample=sample),
        )  # fmt: skip

    def held_at(self, name: str) -> list:
        return [h for h in self.state.held.get(APP, ()) if h.node == name]

    def ways(self) -> dict[str, set[str]]:
        """By way of having a version: the nodes."""
        found: dict[str, set[str]] = {}
        for h in self.state.held[APP]:
            for instance in (h.instance, h.instance.newcomer):
                if instance is not None:
                    found.setdefault(way(instance), set()).add(h.node)
        return found


def way(instance: Instance) -> str:
    assert instance.model is not None
    return f"{instance.model.version} {instance.beside.mode if instance.beside is not None else 'whole'}"


def version(which: str, rollout: Rollout = TRIED, **more) -> Change:
    made = component(model=which, **({"count": None, "every_node": True} | more))
    return rolled(made, rollout=rollout)


def started(rollout: Rollout = TRIED, names: tuple[str, ...] = NAMES, **more) -> Models:
    world = Models(model("1", "2"), version("1", rollout, **more), names=names)
    for _ in range(4):
        world.step()
    world.least_ready = len(world.names)
    return world


def test_a_version_is_in_shadow_then_answers_its_share_then_is_switched_in() -> None:
    world = started()
    world.change(version("2"))
    seen: list[tuple[tuple[str, int], ...]] = []

    def done() -> bool:
        now = tuple(sorted((what, len(nodes)) for what, nodes in world.ways().items()))
        if not seen or seen[-1] != now:
            seen.append(now)
        return world.is_("done")()

    world.until(done, steps=400)
    assert [dict(each) for each in seen] == [
        {"1 whole": 6},
        {"1 whole": 6, "2 shadow": 1},
        {"1 whole": 6, "2 split": 1},
        {"1 whole": 6, "2 whole": 1},
        {"1 whole": 5, "2 whole": 1},
        {"1 whole": 5, "2 whole": 1, "2 shadow": 5},
        {"1 whole": 5, "2 whole": 1, "2 split": 5},
        {"1 whole": 5, "2 whole": 6},
        {"2 whole": 6},
    ]
    assert world.least_ready == 6, "the old one serves until the new one is ready"
    assert world.step() == []


def test_the_new_one_is_beside_the_old_one_in_its_slot_and_claims_neither_port_nor_topic_of_its_own() -> None:
    world = started()
    world.change(version("2"))
    world.until(world.is_("soaking"))
    ((held,),) = ([h for h in world.state.held[APP] if h.instance.newcomer is not None],)
    newcomer = held.instance.newcomer
    assert newcomer is not None
    assert newcomer.beside == Beside(mode="shadow", share=1.0)
    assert (newcomer.slot, newcomer.component) == (held.instance.slot, held.instance.component)
    assert newcomer.revision > held.instance.revision
    assert newcomer.serve is None
    assert newcomer.fallback is None
    assert (
        load_of(held.instance).memory_bytes
        > load_of(msgspec.structs.replace(held.instance, newcomer=None)).memory_bytes
    )
    said = rollout_status(world.state, APP, world.now)
    assert said["trial"] == {"mode": "shadow", "share": 1.0, "forMs": 30_000}


def test_one_that_says_otherwise_is_stopped_in_shadow_and_nobody_ever_has_it() -> None:
    world = started()
    world.agreement = 0.1
    world.change(version("2"))
    world.until(world.is_("undone"), steps=200)
    assert world.ways() == {"1 whole": set(NAMES)}
    assert {what for _, what in world.ran} == {"1 whole", "2 shadow"}
    assert len({name for name, what in world.ran if what == "2 shadow"}) == 1
    reason = world.rollout.reason
    assert reason is not None
    assert reason.code == "gate_broken"
    assert "agreement.share" in reason.detail
    assert world.least_ready == 6


def test_one_that_is_refused_in_shadow_turns_to_other_nodes_and_leaves_none_behind() -> None:
    world = started()
    world.refuses = lambda _name, instance: way(instance).startswith("2")
    world.change(version("2"))
    world.until(world.is_("undone"), steps=200)
    assert len(world.rollout.turned_down) == 3
    assert world.ways() == {"1 whole": set(NAMES)}
    assert not any("whole" in what for _, what in world.ran if what.startswith("2"))


def test_where_there_is_no_room_for_both_the_node_is_passed_by() -> None:
    world = started(names=())
    names = ("big", "small")
    world.names = names
    world.change(*(node(name) for name in names))
    for name, memory in (("big", 1024), ("small", 100)):
        world.change(Change("observed", name, report(name, memory=memory)))
    from tests.core.fleets import heard

    world.change(*(heard(name, world.now) for name in names))
    for _ in range(5):
        world.step()
    assert world.ways() == {"1 whole": set(names)}
    tried = msgspec.structs.replace(TRIED, waves=("100%",))
    world.change(version("2", tried))
    world.until(lambda: "2 shadow" in world.ways())
    assert world.ways()["2 shadow"] == {"big"}
    assert "no_room_beside" in world.step()
    world.until(world.is_("done"), steps=300)
    world.until(lambda: world.ways() == {"2 whole": set(names)}, steps=100)


def test_a_pause_leaves_it_where_it_is_and_an_abort_takes_it_away() -> None:
    from batuta.core import rollout as rolling

    world = started()
    world.change(version("2"))
    world.until(world.is_("soaking"))
    world.ask(rolling.paused(world.rollout, world.now, Reason(code="rollout_paused", subject="x")))
    for _ in range(50):
        world.step()
    assert len(world.ways()["2 shadow"]) == 1
    world.ask(rolling.aborted(world.rollout, world.now, Reason(code="rollout_aborted", subject="x")))
    world.step()
    assert world.ways() == {"1 whole": set(NAMES)}


def test_a_newer_release_takes_its_place_in_the_trial() -> None:
    world = started()
    world.change(version("2"))
    world.until(world.is_("soaking"))
    world.change(version("2", memory=65))
    world.until(world.is_("done"), steps=400)
    assert world.ways() == {"2 whole": set(NAMES)}


def test_whoever_was_away_in_its_trial_has_it_whole_when_it_is_back() -> None:
    world = started()
    world.away = {"n00", "n03"}
    world.change(version("2"))
    world.until(world.is_("done"), steps=400)
    world.away = set()
    world.until(lambda: world.ways() == {"2 whole": set(NAMES)}, steps=100)
    assert not {("n00", "2 shadow"), ("n03", "2 shadow")} & world.ran


@pytest.mark.parametrize("more", [{"never_twice": True}])
def test_what_may_not_be_there_twice_is_not_tried(more: dict) -> None:
    world = started(**more)
    world.change(version("2", **more))
    world.until(world.is_("done"), steps=400)
    assert {what for _, what in world.ran} == {"1 whole", "2 whole"}


def test_replicas_that_are_counted_are_tried_where_they_are() -> None:
    world = started(count=3, every_node=None)
    before = {h.node for h in world.state.held[APP]}
    world.change(version("2", count=3, every_node=None))
    world.until(lambda: len(world.ways().get("2 shadow", ())) == 2, steps=200)
    assert world.ways()["2 shadow"] <= before
    world.until(world.is_("done"), steps=400)
    assert len(world.state.held[APP]) == 3


def test_without_waves_all_are_tried_at_once_and_then_switched_one_by_one() -> None:
    tried = msgspec.structs.replace(TRIED, waves=None, split=None)
    world = started(tried)
    world.change(version("2", tried))
    world.until(lambda: world.ways() == {"1 whole": set(NAMES), "2 shadow": set(NAMES)}, steps=50)
    most = 0

    def done() -> bool:
        nonlocal most
        now = world.ways()
        most = max(most, len(now.get("1 whole", set()) & now.get("2 whole", set())))
        return world.is_("done")()

    world.until(done, steps=300)
    assert world.ways() == {"2 whole": set(NAMES)}
    assert most == 1
    assert world.least_ready == 6


def test_what_only_changes_a_program_is_not_tried_and_asks_nobody_whether_it_agrees() -> None:
    def both(command: str, rollout: Rollout) -> Change:
        reads = component(model="1", count=None, every_node=True)
        return rolled(reads, component(name="send", command=command), rollout=rollout)

    tried = msgspec.structs.replace(TRIED, gates=("agreement.share >= 0.9",))

    class Mixed(Models):
        def _tell(self, name: str, instance: Instance, was: InstanceReport | None) -> InstanceReport:
            if instance.model is None:
                phase = "ready" if was is not None else "starting"
                return InstanceReport(name=instance.name, epoch=instance.epoch, phase=phase, since=self.now, starts=1)
            return super()._tell(name, instance, was)

    world = Mixed(model("1", "2"), both("one", tried), names=NAMES)
    for _ in range(4):
        world.step()
    world.change(both("two", tried))
    world.until(world.is_("done"), steps=200)
    assert all(h.instance.newcomer is None for h in world.state.held[APP])
