"""The schemas that editors use are the ones the classes give, and they agree with what is admitted."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from batuta.errors import NotFound
from batuta.kinds import KINDS
from batuta.kinds.manifest import parse, to_document
from batuta.kinds.schema import SCHEMAS, Field, all_schemas, explain, rendered

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


def test_schemas_are_current():
    """When this fails: `python -m batuta.kinds.schema`, then look at the difference."""
    assert {path.name: path.read_text() for path in SCHEMAS.glob("*.json")} == rendered()


def test_schemas_are_schemas():
    assert list(all_schemas()) == [kind.plural for kind in KINDS]
    for schema in all_schemas().values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_their_schema(path):
    schemas = all_schemas()
    for resource in parse(path.read_bytes()):
        jsonschema.validate(to_document(resource), schemas[resource.plural])


def test_explain_reads_the_class_tree():
    replicas = explain("application.spec.components.replicas")
    assert [field.name for field in replicas.fields] == ["count", "perSite", "everyNode", "autoscale"]
    assert str(explain("site.spec.uplink")) == "\n".join(
        [
            "uplink: mapping",
            "  The link that a site shares on its way to its parent.",
            "",
            "  bandwidth: bits a second, like 20Mbit",
            "    The rate of a link, in bits a second.",
            "",
            "  latency: duration, like 300ms, 5s, 2m or 1h",
            "    A length of time, in milliseconds.",
            "",
            "  metered: true or false (default false)",
            "    Its traffic is paid for: a Policy may keep things away, placement prefers other sites, and",
            "    artifacts of applications with a priority below 0 come in `windows` only.",
            "",
            "  budget: mapping",
            "    How much of a link artifacts may use.",
            "",
            "  windows: list of mappings",
            "    When artifacts may come, by the site's clock; at any time when left out. Applications of a",
            "    priority of 100 and above wait for no window.",
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_explained(kind):
    def walk(field: Field) -> int:
        return 1 + sum(walk(inner) for inner in field.fields)

    assert walk(explain(kind.__name__)) > 5
    assert explain(kind.plural).description


@pytest.mark.parametrize(
    ("path", "next_step"),
    [
        ("aplication", "did you mean 'application'?"),
        ("application.spec.componets", "did you mean 'components'?"),
        ("site.spec.parent.x", "site.spec.parent has no fields"),
    ],
)
def test_explain_says_what_was_meant(path, next_step):
    with pytest.raises(NotFound) as missing:
        explain(path)
    assert missing.value.next_step == next_step
