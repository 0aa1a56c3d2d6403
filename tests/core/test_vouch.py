"""Aliases and signers: what a component's model becomes in a release, and what makes another one."""

from __future__ import annotations

import msgspec

from batuta.kinds.base import Metadata
from batuta.kinds.policy import Policy, PolicySpec
from tests.core.fleets import (
    application,
    component,
    decided,
    machines,
    model,
    places,
    settled,
    state_of,
)

KEY = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
BUNDLE = f"sha256:{'b' * 64}"


def aliased(change, **aliases):
    kind = change.value
    spec = msgspec.structs.replace(kind.spec, aliases=aliases)
    return change._replace(value=msgspec.structs.replace(kind, spec=spec))


def signed(change, *bundles):
    kind = change.value
    versions = tuple(
        msgspec.structs.replace(v, variants=tuple(msgspec.structs.replace(w, signatures=bundles) for w in v.variants))
        for v in kind.spec.versions
    )
    return change._replace(
        value=msgspec.structs.replace(kind, spec=msgspec.structs.replace(kind.spec, versions=versions))
    )


def guard(applies=None, key=KEY):
    kind = Policy(metadata=Metadata(name="signed"), spec=PolicySpec(require_signer=(key,), applies=applies))
    return type(model("1"))("desired", kind.ref.key, kind)


def newest(state):
    return state.releases["default/app"][-1]


def running(state):
    return [i for a in state.assignments.values() for i in a.instances]


def codes(decision):
    return [reason.code for reasons in decision.reasons.values() for reason in reasons]


def test_a_moved_alias_makes_a_new_release_and_the_same_version_by_another_name_does_not_restart():
    rows = aliased(model("1", "2"), champion="1")
    state = settled(state_of(machines("a"), rows, application(component(model="champion"))))
    assert [i.model.version for i in running(state)] == ["1"]
    before = newest(state).revision

    state = settled(state.with_changes([application(component(model="1"))]))
    assert [i.revision for i in running(state)] == [1], "it is what ran already"

    state = settled(state.with_changes([application(component(model="champion"))]))
    state = settled(state.with_changes([aliased(model("1", "2"), champion="2", previous="1")]))
    assert newest(state).revision > before
    assert [i.model.version for i in running(state)] == ["2"]


def test_an_alias_that_is_not_there_is_a_reason_and_the_old_release_keeps_running():
    state = settled(
        state_of(machines("a"), aliased(model("1"), champion="1"), application(component(model="champion")))
    )
    state, decision = decided(state.with_changes([model("1")]))
    assert codes(decision) == ["version_missing"]
    assert places(state) == [("read-1-0", "a")]


def test_an_alias_must_stand_for_a_version_and_not_be_one():
    (problem,) = aliased(model("1"), champion="7").value.problems()
    assert (problem.path, problem.code) == ("spec.aliases.champion", "no_such")
    (problem,) = aliased(model("1", "champion"), champion="1").value.problems()
    assert problem.code == "duplicate"


def test_an_unsigned_model_is_not_placed_where_a_policy_asks_for_a_signer():
    state, decision = decided(state_of(machines("a"), model("1"), guard(), application(component(model="1"))))
    assert codes(decision) == ["signature_missing"]
    assert running(state) == []


def test_a_signed_model_carries_the_keys_and_bundles_to_its_node():
    state = settled(state_of(machines("a"), signed(model("1"), BUNDLE), guard(), application(component(model="1"))))
    (instance,) = running(state)
    assert instance.model.signers == ((KEY,),)
    assert instance.artifacts == (instance.model.variant.digest, BUNDLE)


def test_nobody_asking_means_nothing_more_to_fetch():
    state = settled(state_of(machines("a"), signed(model("1"), BUNDLE), application(component(model="1"))))
    (instance,) = running(state)
    assert instance.model.signers == ()
    assert instance.artifacts == (instance.model.variant.digest,)


def test_a_policy_that_applies_to_others_asks_nothing():
    rows = (machines("a"), model("1"), application(component(model="1")))
    state = settled(state_of(*rows, guard(applies='component.name == "other"')))
    assert places(state) == [("read-1-0", "a")]


def test_a_guard_that_cannot_be_answered_guards():
    rows = (machines("a"), model("1"), application(component(model="1")))
    _, decision = decided(state_of(*rows, guard(applies='component.labels.zone == "x"')))
    assert codes(decision) == ["signature_missing"]


def test_another_signer_or_signature_is_another_revision_so_that_it_is_verified():
    other = KEY.replace("MFkw", "MFkx")
    state = settled(state_of(machines("a"), signed(model("1"), BUNDLE), guard(), application(component(model="1"))))
    state = settled(state.with_changes([guard(key=other)]))
    assert [(i.revision, i.model.signers) for i in running(state)] == [(2, ((other,),))]
    more = f"sha256:{'c' * 64}"
    state = settled(state.with_changes([signed(model("1"), BUNDLE, more)]))
    assert [(i.revision, i.model.variant.signatures) for i in running(state)] == [(3, (BUNDLE, more))]


def test_a_guard_that_asks_of_nodes_is_refused():
    (problem,) = guard(applies="node.memory > 1").value.problems()
    assert problem.path == "spec.applies"


def test_what_ran_unsigned_runs_on_and_is_loaded_nowhere_else():
    state = settled(state_of(machines("a", "b"), model("1"), application(component(model="1"))))
    (before,) = running(state)
    home = next(node for node, a in state.assignments.items() if a.instances)
    state, decision = decided(state.with_changes([guard()]))
    assert codes(decision) == ["signature_missing"]
    assert running(settled(state)) == [before], "it runs on, as it was"
    # Its node is gone: the one that gets it is told whom to ask for, and has nothing to show.
    gone = [type(model("1"))("desired", f"nodes.{home}", None), type(model("1"))("observed", home, None)]
    (after,) = running(settled(state.with_changes(gone)))
    assert after.model.signers == ((KEY,),)
    assert after.artifacts == (after.model.variant.digest,)


def with_code(change, *bundles):
    kind = change.value
    versions = tuple(
        msgspec.structs.replace(v, transform=f"sha256:{'c' * 64}", transform_signatures=bundles)
        for v in kind.spec.versions
    )
    spec = msgspec.structs.replace(kind.spec, versions=versions)
    return change._replace(value=msgspec.structs.replace(kind, spec=spec))


def test_a_versions_own_python_is_signed_too_and_another_signature_of_it_is_another_release():
    of_code = f"sha256:{'d' * 64}"
    rows = with_code(signed(model("1"), BUNDLE))
    state, decision = decided(state_of(machines("a"), rows, guard(), application(component(model="1"))))
    assert codes(decision) == ["signature_missing"]
    assert "the transform of digits 1" in str(decision.reasons["default/app"][0])
    state = settled(state.with_changes([with_code(signed(model("1"), BUNDLE), of_code)]))
    (instance,) = running(state)
    assert instance.model.bundles == (BUNDLE, of_code)
    assert set(instance.artifacts) >= {BUNDLE, of_code, f"sha256:{'c' * 64}"}
    before = newest(state).revision
    state = settled(state.with_changes([with_code(signed(model("1"), BUNDLE), of_code, f"sha256:{'e' * 64}")]))
    assert newest(state).revision > before
    # Where nobody asks for signers, they are no part of what runs.
    free = settled(state_of(machines("a"), with_code(model("1"), of_code), application(component(model="1"))))
    assert running(free)[0].model.bundles == ()
    was = newest(free).revision
    free = settled(free.with_changes([with_code(model("1"), of_code, f"sha256:{'e' * 64}")]))
    assert [i.revision for i in running(free)] == [was]
