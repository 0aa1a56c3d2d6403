"""Tables for admission: what could never come right by itself, and who would lose the ground under them."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.admission import admit, admit_removal
from batuta.kinds.base import Bytes
from batuta.kinds.model import Model, Signature, Tensor
from tests.core.fleets import application, component, machines, model, node, site, state_of


def changed(stored: Model, **fields) -> Model:
    """The first variant of the first version, changed; or the version itself."""
    version = stored.spec.versions[0]
    if fields.keys() <= {"signature", "labels", "variants"}:
        version = msgspec.structs.replace(version, **fields)
    else:
        version = msgspec.structs.replace(
            version, variants=(msgspec.structs.replace(version.variants[0], **fields), *version.variants[1:])
        )
    versions = (version, *stored.spec.versions[1:])
    return msgspec.structs.replace(stored, spec=msgspec.structs.replace(stored.spec, versions=versions))


def found(problems) -> list[tuple[str, str]]:
    return [(p.path, p.code) for p in problems]


def test_sites_form_a_tree():
    state = state_of(site("eu"), site("de", parent="eu"), site("berlin", parent="de"))
    assert admit(site("oslo", parent="nowhere-yet").value, state) == []
    ring = site("eu", parent="berlin").value
    assert found(admit(ring, state)) == [("spec.parent", "cycle")]
    assert "eu → berlin → de → eu" in admit(ring, state)[0].message
    assert admit(site("x", parent="eu").value, state.with_changes([site("eu", parent="berlin")])) == []


def test_a_node_names_a_site_that_is_there():
    state = state_of(site("berlin"))
    assert admit(node("a").value, state) == []
    (problem,) = admit(node("a", at="berln").value, state)
    assert (problem.path, problem.hint) == ("spec.site", "did you mean 'berlin'?")


def test_an_application_may_come_before_its_model():
    assert admit(application(component(model="1")).value, state_of()) == []


STORED = model("1", "2").value
IMMUTABLE = [
    ({"digest": "sha256:" + "f" * 64}, "spec.versions[0].variants[0].digest"),
    ({"size_bytes": Bytes(7)}, "spec.versions[0].variants[0].size"),
    ({"variants": STORED.spec.versions[0].variants[1:]}, "spec.versions[0].variants"),
]


@pytest.mark.parametrize(("fields", "path"), IMMUTABLE)
def test_a_stored_version_does_not_change(fields, path):
    state = state_of(model("1", "2"))
    after = changed(STORED, **fields)
    assert found(admit(after, state)) == [(path, "immutable")]
    # The hub judges beside all that is declared at once, and compares with what is stored.
    beside = state.with_changes([model("1")._replace(value=after)])
    assert found(admit(after, beside, state)) == [(path, "immutable")]
    assert admit(after, beside, state)[0].hint == "push it as a new version"


def test_what_was_not_known_may_be_added():
    state = state_of(model("1", "2"))
    more = (
        *STORED.spec.versions[0].variants,
        msgspec.structs.replace(STORED.spec.versions[0].variants[0], name="int4"),
    )
    assert admit(changed(STORED, variants=more), state) == []
    assert admit(changed(STORED, quality={"accuracy": 0.9}), state) == []
    signed = changed(STORED, signature=Signature(inputs=(Tensor(name="x", dtype="float32", shape=(-1,)),)))
    assert admit(signed, state) == []
    again = changed(signed, signature=Signature())
    assert found(admit(again, state.with_changes([model()._replace(value=signed)]))) == [
        ("spec.versions[0].signature", "immutable")
    ]


def test_a_version_that_runs_stays():
    state = state_of(model("1", "2"), application(component(model="1")))
    assert found(admit(model("2").value, state)) == [("spec.versions", "needed")]
    assert admit(model("1").value, state) == []


def test_what_others_need_is_not_taken_back():
    state = state_of(
        machines("a"), site("eu"), site("berlin", parent="eu"), model("1"), application(component(model="1"))
    )
    for name in ("berlin", "eu"):
        (problem,) = admit_removal(state.site(name), state)
        assert problem.code == "needed"
    assert "a" in admit_removal(state.site("berlin"), state)[0].message
    assert "default/app" in admit_removal(model("1").value, state)[0].message
    assert admit_removal(application().value, state) == []
    assert admit_removal(node("a").value, state) == []
