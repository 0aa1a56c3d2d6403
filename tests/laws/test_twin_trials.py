"""Trials in the twin: all laws hold while nodes have a model in shadow and in a split; the verdict is what is so."""

from __future__ import annotations

import pytest

from batuta.core.observed import Report
from batuta.core.rollout import Rollout as Row
from batuta.kinds.application import Application, ApplicationSpec, Component, Input, ModelUse, Replicas, Resources
from batuta.kinds.base import Bytes, Metadata, Millicores, Millis
from batuta.kinds.model import Model, ModelSpec, Needs, Variant, Version
from batuta.kinds.rolling import Rollout
from batuta.kinds.truth import Truth
from batuta.twin.play import Play
from batuta.twin.rules import RULES
from batuta.twin.run import run
from batuta.twin.scenario import Edit, Machine, Scenario

TRIED = Rollout(
    waves=("1 node", "50%", "100%"), soak_ms=Millis(15_000), shadow_ms=Millis(30_000), split="20%", least_answers=100,
    gates=("agreement.share >= 0.9", "errors.rate < 0.05"), concurrency=3,
)  # fmt: skip


def eyes() -> Model:
    versions = tuple(
        Version(
            version=v,
            variants=(
                Variant(
                    name="fp32", format="onnx", digest=f"sha256:{v * 64}", size_bytes=Bytes(1 << 20),
                    needs=Needs(memory_bytes=Bytes(64 << 20)),
                ),
            ),
        )
        for v in ("1", "2")
    )  # fmt: skip
    return Model(metadata=Metadata(name="eyes"), spec=ModelSpec(versions=versions))


def reader(version: str) -> Application:
    component = Component(
        name="read", model=ModelUse(name="eyes", version=version), inputs=(Input(topic="cameras/+/frame"),),
        replicas=Replicas(every_node=True),
        resources=Resources(cpu_millis=Millicores(100), memory_bytes=Bytes(64 << 20)),
    )  # fmt: skip
    return Application(metadata=Metadata(name="reader"), spec=ApplicationSpec(components=(component,), rollout=TRIED))


def a_fleet(agrees: float) -> Scenario:
    return Scenario(
        name="trials",
        machines=tuple(Machine(name=f"node-{k}", site="berlin", hardware="new") for k in range(8)),
        edits=(
            Edit(at_ms=0, apply=eyes()), Edit(at_ms=0, apply=reader("1")), Edit(at_ms=60_000, apply=reader("2")),
        ),
        truths=(
            Truth(model="eyes", per_second=20, errors=0.1),
            Truth(model="eyes", version="2", agrees=agrees),
        ),
        duration_ms=700_000,
    )  # fmt: skip


def end_of(agrees: float) -> tuple[Row, dict[str, Report]]:
    play = Play(a_fleet(agrees), 1, RULES)
    play.run_to(690_000)
    assert play.broker.hub is not None
    state = play.broker.hub.known()
    return state.rollouts["default/reader"], dict(state.observed)


@pytest.mark.parametrize(("agrees", "phase", "revision"), [(97.0, "done", 2), (60.0, "undone", 1)])
def test_one_that_agrees_arrives_and_one_that_does_not_goes(agrees: float, phase: str, revision: int) -> None:
    rollout, observed = end_of(agrees)
    assert rollout.phase == phase, rollout
    assert {i.name.split("-")[1] for report in observed.values() for i in report.instances} == {str(revision)}
    if phase == "undone":
        assert rollout.wave == 0
        assert rollout.switched == 0, "nobody ever had it whole"


@pytest.mark.parametrize("agrees", [97.0, 60.0])
def test_every_law_holds_meanwhile(agrees: float) -> None:
    played = run(a_fleet(agrees), 1)
    assert played.ok, played.broken
