"""Conditions: what is refused when declared, and what happens when one is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.errors import Refused
from batuta.kinds.condition import (
    FIELDS,
    SAMPLE,
    ConditionFault,
    check,
    compile_condition,
    duration_ms,
    evaluate,
    quantity,
)

GOOD = [
    'node.memory >= quantity("512Mi") && "camera" in node.labels',
    'node.architecture == "arm64" || node.architecture == "amd64"',
    'node.accelerators.exists(a, a.kind == "gpu" && a.memory >= quantity("4Gi"))',
    '"process" in node.runtimes && !site.metered',
    'site.residency == "eu" && site.latency < duration_ms("50ms")',
    "node.battery == null || node.battery > 20",
    'has(node.labels.line) && node.labels.line.startsWith("a")',
    'node.labels["kubernetes.io/arch"] == "arm64"',
    "node.cpu >= 2000 && node.temperature < 70.5",
    'size(node.name) > 3 // four letters\n && node.os == "linux"',
]

BAD = {
    "node.memory >": "where, character 14: the condition ends too early",
    "(node.metered": "where, character 14: the condition ends too early",
    'node.os == "linux" and true': "where, character 20: 'and' is not expected here, write &&",
    "not site.metered": "where, character 1: 'not' is not expected here, write !",
    "node.cpu = 5": "where, character 10: '=' means nothing in a condition, write == to compare",
    "node.memory >= 512Mi": "where, character 16: '512Mi' is not a number, write quantity(\"512Mi\")",
    "node.os == 'linux": "where, character 12: this quote is never closed",
    "node.cpu >= 1\n  && && true": "where, character 20: '&&' is not expected here",
    "node.memry > 5": "where, character 6: node has no field 'memry', did you mean 'memory'?",
    'node["memry"] > 5': "where, character 6: node has no field 'memry', did you mean 'memory'?",
    "site.residncy == 'eu'": "where, character 6: site has no field 'residncy', did you mean 'residency'?",
    "memory > 5": "where, character 1: there is no 'memory' here, did you mean 'node.memory'?",
    "nod.memory > 5": "where, character 1: there is no 'nod' here, did you mean 'node'?",
    'quantty("5Mi") < node.memory': "where, character 1: there is no function 'quantty', did you mean 'quantity'?",
    'node.memory > quantity("5Mb")': (
        "where, character 24: '5Mb' is not an amount of bytes; write it like 512Mi"
    ),
    'node.memory > "512Mi"': (
        'where, character 1: node.memory is a number and is compared with text, write quantity("512Mi")'
    ),
    'node.memory == "512Mi"': (
        'where, character 1: node.memory is a number and is compared with text, write quantity("512Mi")'
    ),
    "node.memory": "where, character 1: the condition gives a number, not true or false, compare it with something",
    "[1].all(a, [1].all(b, [1].all(c, true)))": (
        "where, character 30: all, exists, exists_one, filter, map may be nested 2 deep, not more"
    ),
    "(" * 200 + "true" + ")" * 200: "where, character 1: this nests too deeply to be read, split it",
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good_conditions_have_no_problems(text):
    assert check("where", text) == []
    assert isinstance(evaluate(compile_condition(text), SAMPLE), bool | ConditionFault)


@pytest.mark.parametrize("text", BAD)
def test_bad_conditions_say_what_and_where(text):
    assert [str(problem) for problem in check("where", text)] == [BAD[text]]


def test_several_mistakes_are_all_found():
    found = check("where", 'node.memry > 5 && site.nme == "x" && sze(node.labels) > 1')
    assert [p.inside for p in found] == [6, 24, 38]


def test_the_sample_has_every_field():
    assert {owner: tuple(fields) for owner, fields in SAMPLE.items()} == FIELDS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("node.memory > 5", True),
        ('node.labels.line == "a"', ConditionFault(
            code="missing_field",
            message="there is no node.labels.line here; has(node.labels.line) asks first",
        )),
        ("node.battery > 5", ConditionFault(code="wrong_type", message="node.battery is null here")),
        ("node.memory", ConditionFault(code="not_boolean", message="gives a number, not true or false")),
        ("site.metered", ConditionFault(code="unknown_name", message="there is no 'site' here")),
        ("node.memory / 0 > 1", ConditionFault(code="failed", message="divides by zero")),
        ("true || node.labels.line == 1", True),
    ],
)  # fmt: skip
def test_evaluate_answers_or_says_why_not(text, answer):
    variables = {"node": {"memory": 1000, "labels": {}, "battery": None}}
    assert evaluate(compile_condition(text), variables) == answer


def test_compiling_a_condition_that_cannot_be_read_is_refused():
    with pytest.raises(Refused):
        compile_condition("node.memory >")


def test_quantities_inside_conditions():
    assert quantity("512Mi") == 512 * 2**20
    assert quantity("many") is None
    assert duration_ms("5s") == 5000
    assert duration_ms(5) is None


WORDS = ["node", "site", "memory", "labels", "quantity", "all", "has", "x", "1.5", "null", "in", "not", "and", "5Mi"]
SIGNS = [*".()[]{},!?: \n\"'é1", "&&", "||", "==", ">", '"512Mi"']


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS + SIGNS), max_size=20).map("".join)))
def test_checking_and_asking_never_raise(text):
    for problem in check("where", text):
        assert 0 <= problem.inside <= len(text) + 1
    try:
        condition = compile_condition(text)
    except Refused:
        return
    assert isinstance(evaluate(condition, SAMPLE), bool | ConditionFault)
