"""Resting is playing: beats that are known without being played give the same run as beats played one by one."""

from __future__ import annotations

import msgspec
import pytest

from batuta.kinds.manifest import parse
from batuta.twin.compose import compose
from batuta.twin.hub import Hub
from batuta.twin.rest import Rest
from batuta.twin.run import Verdict, run
from batuta.twin.scenario import Scenario
from batuta.twin.sketch import sketch

FLEET = """
apiVersion: batuta.dev/v1
kind: Scenario
metadata: {name: mixed}
spec:
  duration: 10m
  fleet:
  - {name: shop, nodes: 24, sites: 6, uplink: {latency: 80ms}, driftPpm: 300}
  - {name: core, nodes: 3}
  load:
  - name: app
    applications: 3
    instances: {least: 4, most: 12}
    component: {name: part, process: {command: [run]}}
  faults:
  - {fault: crash, nodes: 20%, at: 1m, until: 9m, for: 50s}
  - {fault: partition, site: [shop-site-2], at: 2m, for: 40s}
  - {fault: flapping, node: [shop-5], at: 4m, for: 30s, period: 5s}
  - {fault: reconnectStorm, at: 6m, for: 8s}
  - {fault: hubRestart, at: 8m, for: 4s}
  - {fault: skew, nodes: "5", at: 1m, until: 9m, by: 30s}
"""


def played(scenario: Scenario, seed: int, *, lazy: bool) -> Verdict:
    physics = msgspec.structs.replace(scenario.physics, lazy=lazy)
    return run(msgspec.structs.replace(scenario, physics=physics), seed)


def same(scenario: Scenario, seed: int) -> tuple[Verdict, Verdict]:
    resting, beating = (played(scenario, seed, lazy=lazy) for lazy in (True, False))
    events = {v.counts.pop("events") for v in (resting, beating)}
    assert resting == beating
    assert len(events) == 2, "nobody ever rested"
    return resting, beating


@pytest.mark.parametrize("seed", range(2_000, 2_012))
def test_resting_and_beating_give_the_same_run(seed):
    """The trace, what broke, when it converged, every message and every byte."""
    resting, beating = (played(sketch(seed), seed, lazy=lazy) for lazy in (True, False))
    # A turn in which nothing is decided leaves nothing behind: who rests may have been spared one (seed 2000).
    for spared in ("events", "decisions"):
        assert resting.counts.pop(spared) <= beating.counts.pop(spared)
    assert resting == beating


@pytest.mark.parametrize("seed", range(3))
def test_a_written_fleet_too_and_every_look_at_it(seed):
    resting, _ = same(compose(parse(FLEET)[0], seed), seed)
    assert resting.ok, resting.broken
    assert len(resting.looks) > 100


@pytest.mark.slow
def test_a_fleet_with_slow_hearts_too():
    """Of two thousand nodes each beats every two seconds."""
    text = FLEET.replace("nodes: 24, sites: 6", "nodes: 2000, sites: 100").replace("duration: 10m", "duration: 3m")
    text = text[: text.index("  faults:")] + "  faults:\n  - {fault: crash, nodes: 1%, at: 40s, until: 2m, for: 30s}\n"
    resting, _ = same(compose(parse(text)[0], 1), 1)
    assert resting.ok, resting.broken


def test_a_rest_that_tells_a_wrong_time_is_caught(monkeypatch):
    """The comparison can fail: a rest that ends with a heartbeat heard too late is seen in the trace."""
    real = Hub.correct

    def wrong(hub, node, last_seen, reported_at):
        real(hub, node, last_seen + 400, reported_at)

    monkeypatch.setattr(Hub, "correct", wrong)
    monkeypatch.setattr(Rest, "heard_by", lambda rest, at: at)
    scenario = compose(parse(FLEET)[0], 1)
    assert played(scenario, 1, lazy=True).trace != played(scenario, 1, lazy=False).trace
