"""What is so of versions is what the nodes of the twin measure, refuse and suffer."""

from __future__ import annotations

import pytest

from batuta.core.evidence import latency_bucket
from batuta.core.sample import CONFIDENCE_BINS, total
from batuta.errors import Refused
from batuta.kinds.application import Application, ApplicationSpec, Component, ProcessUse, Replicas
from batuta.kinds.base import Metadata, Millis
from batuta.kinds.manifest import parse
from batuta.kinds.truth import EFFECTS, WIRE, Truth
from batuta.twin.compose import compose
from batuta.twin.play import Play
from batuta.twin.rules import RULES
from batuta.twin.run import run
from batuta.twin.scenario import Edit, Machine, Scenario

READ = Truth(command="read", per_second=20)


def a_fleet(*truths: Truth, nodes: int = 6) -> Scenario:
    component = Component(name="read", process=ProcessUse(command=("read", "1")), replicas=Replicas(every_node=True))
    application = Application(metadata=Metadata(name="reader"), spec=ApplicationSpec(components=(component,)))
    return Scenario(
        name="truths",
        machines=tuple(
            Machine(name=f"node-{k}", site="berlin", hardware=("new", "new", "old")[k % 3]) for k in range(nodes)
        ),
        edits=(Edit(at_ms=0, apply=application),),
        truths=truths,
        duration_ms=120_000,
    )


def played(*truths: Truth) -> Play:
    play = Play(a_fleet(*truths), 1, RULES)
    play.run_to(110_000)
    return play


def samples(play: Play, hardware: str = "") -> list:
    assert play.broker.hub is not None
    return [
        i.measures.sample
        for name, report in play.broker.hub.known().observed.items()
        for i in report.instances
        if hardware in ("", play.nodes[name].plan.hardware) and i.measures is not None and i.measures.sample is not None
    ]


def test_what_is_measured_is_what_is_so():
    play = played(READ, Truth(command="read", hardware=("old",), errors=5, latency_ms=40, unsure=30, memory_percent=80))
    new, old = (total(samples(play, hardware)) for hardware in ("new", "old"))
    for sample, errors, unsure in ((new, 0.002, 0.0), (old, 0.05, 0.3)):
        came = sample.answered + sample.errors
        assert came > 20 * 80 * 2
        assert sample.errors / came == pytest.approx(errors, abs=0.003)
        assert sum(sample.latency.values()) == sum(sample.confidence) == sample.answered
        assert sum(sample.confidence[: CONFIDENCE_BINS // 3]) / came == pytest.approx(unsure, abs=0.02)
    below = sum(n for b, n in old.latency.items() if b <= latency_bucket(40))
    assert below / old.answered == pytest.approx(0.5, abs=0.01)
    assert (new.memory_bytes, old.memory_bytes) == (32 << 20, 64 * 2**20 * 80 // 100)


def test_nothing_is_measured_of_what_nobody_is_asked():
    assert samples(played()) == []
    assert samples(played(Truth(command="other", per_second=3))) == []


def test_what_a_machine_cannot_load_it_refuses_and_others_do_not():
    play = played(Truth(command="read", hardware=("old",), refused="no such instruction"))
    phases = {name: [x.phase for x in node.ledger.locals.values()] for name, node in play.nodes.items()}
    assert {name for name, found in phases.items() if found == ["refused"]} == {"node-2", "node-5"}
    assert all(found == ["ready"] for name, found in phases.items() if name not in ("node-2", "node-5"))
    assert run(play.scenario, 1).ok


def test_what_fails_after_a_while_fails_time_and_again():
    play = played(Truth(command="1", fails_after_ms=Millis(10_000)))
    assert all(x.starts >= 3 for node in play.nodes.values() for x in node.ledger.locals.values())


def test_a_run_with_measures_is_the_same_every_time():
    first = run(a_fleet(READ), 3)
    assert first.ok, first.broken
    assert run(a_fleet(READ), 3) == first


WRITTEN = """
apiVersion: batuta.dev/v1
kind: Scenario
metadata: {name: made}
spec:
  fleet: [{name: shop, nodes: 3, hardware: [{name: new, weight: 2}, {name: old}]}]
  truths:
  - {model: eyes, version: "2", hardware: [old], refused: no such instruction}
  - {command: read, perSecond: 20.5, latencyMs: 40, errors: 1.5, unsure: 10, agrees: 90, memoryPercent: 120,
     failsAfter: 40s}
"""


def test_truths_are_written_in_scenarios():
    scenario = compose(parse(WRITTEN)[0], 1)
    assert [m.hardware for m in scenario.machines] == ["new", "new", "old"]
    assert scenario.truths[1].fails_after_ms == 40_000
    assert {name for name in EFFECTS if getattr(scenario.truths[1], name) is None} == {"refused"}
    assert len(EFFECTS) == len(WIRE)


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        ("{perSecond: 3}", "spec.truths[0]"),
        ("{command: a, model: b, perSecond: 3}", "spec.truths[0]"),
        ("{command: a}", "spec.truths[0]"),
        ("{command: a, version: b, perSecond: 3}", "spec.truths[0].version"),
        ("{command: a, hardware: [odd], perSecond: 3}", "spec.truths[0].hardware[0]"),
        ("{command: a, perSecond: 0}", "spec.truths[0].perSecond"),
        ("{command: a, per_second: 2}", "spec.truths[0].per_second"),
        ("{command: a, errors: 101}", "spec.truths[0].errors"),
    ],
)
def test_truths_that_make_no_sense_are_refused(bad: str, path: str):
    text = WRITTEN[: WRITTEN.index("  - {model")] + f"  - {bad}\n"
    with pytest.raises(Refused) as refused:
        parse(text)
    assert [p.path for p in refused.value.problems] == [path]
