"""Containers in placement: which nodes come into question, what they take there, and who must have signed them."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.lease import grace_ms
from batuta.core.observed import Vitals
from batuta.kinds.base import Bytes, Metadata, Millis
from batuta.kinds.container import Archive, ContainerUse, Publish
from batuta.kinds.policy import Policy, PolicySpec
from batuta.kinds.program import Probe
from batuta.twin.run import run
from batuta.twin.scenario import Edit, Expectation, Fault, Machine, Scenario
from tests.core.fleets import MIB, application, component, decided, machines, places, settled, state_of

DIGEST = f"sha256:{'a' * 64}"
BUNDLE = f"sha256:{'b' * 64}"
KEY = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
ARCHIVE = Archive(digest=DIGEST, size_bytes=Bytes(100 * MIB))
EVERYTHING = ("process", "onnx", "container")


def box(name="box", *, archive=ARCHIVE, memory=64, count=1, **use):
    made = ContainerUse(image=f"reg.example/box@{DIGEST}", archive=archive, **use)
    return msgspec.structs.replace(component(name, count=count, memory=memory), process=None, container=made)


def guard():
    kind = Policy(metadata=Metadata(name="signed"), spec=PolicySpec(require_signer=(KEY,)))
    return type(application())("desired", kind.ref.key, kind)


def running(state):
    return [i for a in state.assignments.values() for i in a.instances]


def details(decision):
    return " ".join(str(reason) for reasons in decision.reasons.values() for reason in reasons)


def test_it_goes_where_an_engine_is():
    rows = [*machines("a"), *machines("b", runtimes=EVERYTHING)]
    state = settled(state_of(rows, application(box())))
    assert places(state) == [("box-1-0", "b")]
    (instance,) = running(state)
    assert (instance.runtime, instance.artifacts) == ("container", (DIGEST,))


def test_without_an_engine_anywhere_the_nodes_say_so():
    _, decision = decided(state_of(machines("a"), application(box())))
    assert "1 runtime_missing" in details(decision)


def test_it_is_not_for_every_processor():
    _, decision = decided(state_of(machines("a", runtimes=EVERYTHING), application(box(architectures=("amd64",)))))
    assert "1 architecture_wrong" in details(decision)


def test_its_published_and_probed_ports_are_its_own():
    one = box("one", network="bridge", publish=(Publish(port=80, to=8080),))
    two = box("two", ready=Probe(tcp=8080))
    _, decision = decided(state_of(machines("a", runtimes=EVERYTHING), application(one, two)))
    assert "1 port_claimed" in details(decision)


def test_its_archive_needs_room_twice_until_it_is_there():
    def with_free(mib, **more):
        vitals = Vitals(disk_free_bytes=Bytes(mib * MIB))
        return decided(state_of(machines("a", runtimes=EVERYTHING, vitals=vitals, **more), application(box())))[1]

    assert "1 disk_short" in details(with_free(150))
    assert "disk_short" not in details(with_free(250))
    assert "disk_short" not in details(with_free(150, artifacts=(DIGEST,)))


def test_its_memory_counts_and_its_grace_is_asked_for():
    state = settled(state_of(machines("a", runtimes=EVERYTHING, memory=100), application(box(count=2, memory=60))))
    assert len(running(state)) == 1
    (instance,) = running(
        settled(state_of(machines("a", runtimes=EVERYTHING), application(box(stop_grace_ms=Millis(1_234)))))
    )
    assert grace_ms(instance, 0, None) == 1_234


def test_where_a_signer_is_asked_for_the_archive_must_have_signatures():
    rows = machines("a", runtimes=EVERYTHING)
    for unsigned in (box(), box(archive=None)):
        _, decision = decided(state_of(rows, guard(), application(unsigned)))
        assert "signature" in details(decision) or "signed" in details(decision)
    signed = msgspec.structs.replace(ARCHIVE, signatures=(BUNDLE,))
    (instance,) = running(settled(state_of(rows, guard(), application(box(archive=signed)))))
    assert (instance.signers, instance.artifacts) == (((KEY,),), (DIGEST, BUNDLE))
    (instance,) = running(settled(state_of(rows, application(box(archive=signed)))))
    assert (instance.signers, instance.artifacts) == ((), (DIGEST,))


def test_another_image_is_another_revision_and_another_count_is_not():
    rows = machines("a", runtimes=EVERYTHING)
    state = settled(state_of(rows, application(box())))
    state = settled(state.with_changes([application(box(count=2))]))
    assert [i.revision for i in running(state)] == [1, 1]
    state = settled(state.with_changes([application(box(count=2, args=("other",)))]))
    assert [i.revision == 1 for i in running(state)] == [False, False]


@pytest.mark.parametrize("seed", range(5))
def test_in_the_twin_they_are_healed_as_processes_are_and_only_where_an_engine_is(seed):
    scenario = Scenario(
        name="boxes",
        machines=tuple(
            Machine(name=f"node-{k}", site="berlin", runtimes=EVERYTHING if k % 2 else EVERYTHING[:2]) for k in range(4)
        ),
        edits=(Edit(at_ms=0, apply=application(box(count=2)).value),),
        faults=(Fault(kind="node_crash", at_ms=60_000, for_ms=50_000, target="node-1"),),
        expectations=(Expectation(at_ms=55_000, application="default/app", ready=2),),
        duration_ms=120_000,
    )
    verdict = run(scenario, seed)
    assert verdict.broken == ()
    without = msgspec.structs.replace(
        scenario,
        machines=tuple(msgspec.structs.replace(m, runtimes=EVERYTHING[:2]) for m in scenario.machines),
        faults=(),
    )
    assert "ready" in " ".join(str(broken) for broken in run(without, seed).broken)
