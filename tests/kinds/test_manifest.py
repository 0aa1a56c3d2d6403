"""Manifests: every way to get one wrong, and that the right ones survive the round trip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batuta.errors import Refused
from batuta.kinds import Site
from batuta.kinds.manifest import dump, from_document, from_json, parse, to_document, to_json

HERE = Path(__file__).parent
BAD = sorted((HERE / "bad").glob("*.yaml"))
EXAMPLES = sorted((HERE.parent.parent / "examples").rglob("*.yaml"))
APPLICATION = (HERE.parent.parent / "examples" / "process.yaml").read_text()
HEAD = "apiVersion: batuta.dev/v1\nkind: Site\n"


def refusals(text: str | bytes) -> list[str]:
    with pytest.raises(Refused) as refused:
        parse(text)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_every_problem_is_said_with_its_place(path):
    """One line a problem, compared whole. BATUTA_REWRITE=1 writes the expectations anew: then read every line."""
    with pytest.raises(Refused) as refused:
        parse(path.read_bytes(), file=path.name)
    said = f"{refused.value}\n"
    expected = path.with_suffix(".expected")
    if os.environ.get("BATUTA_REWRITE"):
        expected.write_text(said)
    assert said == expected.read_text()


def test_the_bad_are_many():
    assert len(BAD) >= 30
    assert {path.stem for path in BAD} == {path.stem for path in (HERE / "bad").glob("*.expected")}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_read_and_survive_the_round_trip(path):
    resources = parse(path.read_bytes(), file=path.name)
    assert resources
    for resource in resources:
        assert parse(dump(resource)) == [resource]
        assert from_json(to_json(resource)) == resource
        assert to_json(from_json(to_json(resource))) == to_json(resource)
        assert from_document(to_document(resource)) == resource
    assert parse("---\n".join(map(dump, resources))) == resources


def test_documents_are_read_in_order_and_empty_ones_skipped():
    text = f"---\n# nothing\n---\n{HEAD}metadata: {{name: a}}\n---\n---\n{HEAD}metadata: {{name: b}}\n...\n"
    assert [resource.metadata.name for resource in parse(text)] == ["a", "b"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble():
    assert parse(f"\ufeff{HEAD}metadata: {{name: a}}\n".replace("\n", "\r\n").encode())[0].metadata.name == "a"


def test_dates_and_hexadecimal_are_what_they_look_like():
    text = (
        f"{HEAD}metadata: {{name: a, labels: {{since: 2024-01-01, at: 2024-01-01T10:00:00Z, s: !!str 012, q: 'no'}}}}"
    )
    assert parse(text)[0].metadata.labels == {
        "since": "2024-01-01",
        "at": "2024-01-01T10:00:00Z",
        "s": "012",
        "q": "no",
    }


def test_an_alias_repeats_a_value():
    text = f"{HEAD}metadata: {{name: a, labels: &l {{x: z}}, annotations: *l}}"
    assert parse(text)[0].metadata.annotations == {"x": "z"}


def test_a_manifest_has_a_size():
    assert refusals("#" * (4 * 2**20 + 1)) == [
        "<input>:1:1: a manifest has at most 4 MiB; this has 4.0, split it",
    ]


def test_documents_have_a_number():
    said = refusals("a: 1\n---\n" * 10_001)
    assert any("there are more than 10000 documents" in line or "more than 200 problems" in line for line in said)


def test_endless_problems_are_cut_short():
    assert len(refusals(f"{HEAD}metadata: {{name: a, labels: [{'x,' * 5000}]}}\nspec: [{'1,' * 300}]")) <= 201
    assert len(refusals("x: y\n---\n" * 1000)) == 201


def test_a_document_without_positions_says_paths():
    with pytest.raises(Refused) as refused:
        from_document(
            {"apiVersion": "batuta.dev/v1", "kind": "Site", "metadata": {"name": "B"}, "spec": {"parnt": "eu"}}
        )
    assert [str(problem) for problem in refused.value.problems] == [
        "metadata.name: 'B' does not fit: lower-case letters, digits and dashes; 63 at most (an RFC 1123 label), "
        "for example 'b'",
        "spec.parnt: there is no field 'parnt', did you mean 'parent'?",
    ]


@pytest.mark.parametrize(
    "document",
    [
        None, [], "x", 5, {}, {"kind": []}, {1: 2}, {"kind": "Site", "metadata": {"name": "\ud800"}},
        {"kind": "Site", "x": float("nan")}, {"kind": "Site", "x": 2**70}, {"kind": "Site", "x": {1}},
    ],
)  # fmt: skip
def test_odd_documents_are_refused(document):
    with pytest.raises(Refused):
        from_document(document)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"kind":"Site"}', b'{"kind":"X"}'])
def test_odd_json_is_refused(data):
    with pytest.raises(Refused):
        from_json(data)


def test_stored_resources_stay_readable_when_less_is_admitted():
    stored = b'{"kind":"Site","metadata":{"name":"eu"},"spec":{"parent":"eu"}}'
    assert from_json(stored).metadata.name == "eu"


def test_server_fields_can_be_left_out():
    stored = b'{"kind":"Site","metadata":{"name":"eu","uid":"1","generation":3,"resourceVersion":"9"}}'
    site = from_json(stored)
    assert dump(site, server_fields=False) == f"{HEAD}metadata:\n  name: eu\n"
    assert "generation: 3" in dump(site)
    assert isinstance(site, Site)


# --- Laws -------------------------------------------------------------------------------------------------------------

LINES = """apiVersion: batuta.dev/v1
kind: Site
kind: Application
metadata:
  name: a
  name: &a b
spec:
  components:
  - name: x
    process: {command: [a]}
    where: node.x >
---
...
- *a
? a
<<: *a
!!binary x
%YAML 1.1
&a
x: !y
012""".splitlines()
SIGNS = ["\t", "\x00", "\ud800", "\u2028", "\r", "é: 😀", ": ", "  ", *"{}[]\"'|>"]


@given(st.one_of(st.text(), st.binary(), st.lists(st.sampled_from(LINES + SIGNS), max_size=12).map("\n".join)))
def test_nothing_but_refused_is_ever_raised(text):
    try:
        parse(text)
    except Refused as refused:
        problems = refused.problems
    else:
        return
    assert problems
    assert all(problem.line and problem.column for problem in problems)


@settings(max_examples=60)
@given(st.integers(0, len(APPLICATION) - 1), st.text(max_size=3), st.integers(0, 3))
def test_a_slip_of_the_hand_is_read_or_refused_with_its_place(at, typed, deleted):
    try:
        parse(APPLICATION[:at] + typed + APPLICATION[at + deleted :])
    except Refused as refused:
        problems = refused.problems
    else:
        return
    assert all(problem.line for problem in problems)
