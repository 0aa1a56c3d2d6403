"""A kind is said once, and every surface has heard of it: an example, a status, columns that lead somewhere."""

from __future__ import annotations

import pytest

from batuta.cli.rows import EMPTY
from batuta.core.state import Change, State
from batuta.core.view import status
from batuta.core.words import WORDS
from batuta.kinds import KINDS
from batuta.kinds.base import Metadata, Resource
from batuta.kinds.manifest import dump, parse
from batuta.kinds.node import Node, NodeSpec
from batuta.kinds.schema import explain
from tests.tidy.sources import ROOT, tracked

EXAMPLES = [p for p in tracked() if p.suffix == ".yaml" and p.is_relative_to(ROOT / "examples")]
NOW = 1_790_000_000_000
AFTER_A_REPORT = ("status.inventory.", "status.mqtt", "status.components.")
"""What a status tells only of a node that has spoken: `test_get_wide` asks a real one."""


@pytest.fixture(scope="module")
def declared() -> dict[type[Resource], Resource]:
    """One of each kind: from the examples, and a node as enrolment makes it."""
    found: dict[type[Resource], Resource] = {Node: Node(metadata=Metadata(name="pi-4"), spec=NodeSpec(site="berlin"))}
    for path in EXAMPLES:
        for resource in parse(path.read_bytes(), str(path)):
            found.setdefault(type(resource), resource)
    return found


@pytest.fixture(scope="module")
def state(declared: dict[type[Resource], Resource]) -> State:
    return State(hub_since=NOW).with_changes(Change("desired", r.ref.key, r) for r in declared.values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
class TestEveryKind:
    def test_has_an_example(self, kind, declared) -> None:
        assert kind in declared, "put one into examples/"

    def test_reads_back_as_it_was_written(self, kind, declared) -> None:
        assert parse(dump(declared[kind])) == [declared[kind]]

    def test_has_a_status_with_a_state_that_is_a_word(self, kind, declared, state) -> None:
        assert status(state, declared[kind].ref, NOW)["state"] in WORDS

    def test_has_columns_that_lead_somewhere(self, kind, declared, state) -> None:
        document = {"status": status(state, declared[kind].ref, NOW)}
        for heading, path in (*kind.columns, *kind.wide_columns):
            assert heading == heading.upper()
            if path.startswith(AFTER_A_REPORT):
                continue
            if path.startswith("status."):
                here = document
                for key in path.split("."):
                    assert key in here, f"{heading}: there is no {path}"
                    here = here[key]
            else:
                assert explain(f"{kind.__name__.lower()}.{path}")

    def test_says_what_to_do_when_there_is_none(self, kind) -> None:
        assert EMPTY[kind.__name__]

    def test_says_what_it_is(self, kind) -> None:
        assert len((kind.__doc__ or "").split()) > 5
