"""Flag: a value that programs ask for while they run, and that people change without releasing anything.

Who gets which of its variants is said by rules, from the top; the first that holds decides. Conditions ask about the
node and its site, so the hub resolves them; what is left for a node to do is to divide keys among variants.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from batuta.kinds import condition
from batuta.kinds.base import Condition, Problem, Record, Resource
from batuta.kinds.nearest import did_you_mean
from batuta.kinds.reads import reads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VARIANTS_MAX = 32
VALUES_BYTES_MAX = 16 * 1024
WHOLE = 100
"""What the shares of a split come to, in percent."""
RESTLESS = ("temperature", "battery")
"""What a node says of itself anew with every report: a flag that followed it would change by itself all the time."""
_VARIANT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")

Share = Annotated[int, Meta(ge=0, le=WHOLE)]


class FlagRule(Record):
    """Which variant, where."""

    when: Condition | None = None
    """Where it holds: CEL over `node` and `site`. Everywhere when left out, so nothing below it is ever asked."""
    variant: str | None = None
    """What everybody gets there."""
    split: dict[str, Share] = {}
    """Or: how many percent of all keys get which variant. A key always gets the same one."""


class FlagSpec(Record):
    """`variants`, and which of them is the `default`."""

    variants: dict[str, Any]
    """By name: true or false, text, a number, or a mapping; all of one type."""
    default: str
    """The variant where no rule holds."""
    disabled: bool = False
    """Everybody gets the default, whatever the rules say."""
    rules: Annotated[tuple[FlagRule, ...], Meta(max_length=64)] = ()
    """From the top; the first that holds decides."""

    @property
    def type(self) -> str:
        """`boolean`, `text`, `number` or `mapping`."""
        return next((_type_of(value) for value in self.variants.values()), "")


class Flag(Resource, tag="Flag", kw_only=True):
    """A value that programs ask their node for, and that changes while they run."""

    plural: ClassVar[str] = "flags"
    namespaced: ClassVar[bool] = True
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("STATE", "status.state"),
        ("VARIANTS", "status.given"),
        ("NODES", "status.current"),
        ("ASKED", "status.askedAt"),
        ("REASON", "status.reason"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("TYPE", "status.type"),
        ("DEFAULT", "spec.default"),
        ("DISABLED", "spec.disabled"),
    )

    spec: FlagSpec

    def problems(self) -> Iterator[Problem]:
        spec = self.spec
        yield from _variant_problems(spec.variants)
        yield from _unknown("spec.default", spec.default, spec.variants)
        for i, rule in enumerate(spec.rules):
            here = f"spec.rules[{i}]"
            yield from _when_problems(f"{here}.when", rule.when)
            if (rule.variant is None) == (not rule.split):
                message = "say one of variant and split" if rule.variant is None else "say variant or split, not both"
                yield Problem(path=here, code="one_of", message=message)
            if rule.variant is not None:
                yield from _unknown(f"{here}.variant", rule.variant, spec.variants)
            if rule.split:
                yield from _split_problems(f"{here}.split", rule.split, spec.variants)
            if rule.when is None and i + 1 < len(spec.rules):
                yield Problem(
                    path=here, code="value", message="this rule has no `when`, so none below it is ever asked",
                    hint="put it last, or say when it holds",
                )  # fmt: skip


def _variant_problems(variants: Mapping[str, Any]) -> Iterator[Problem]:
    here = "spec.variants"
    if not variants:
        yield Problem(path=here, code="value", message="this is empty", hint="it needs at least 1")
    if len(variants) > VARIANTS_MAX:
        message = f"this has {len(variants)} entries"
        yield Problem(path=here, code="value", message=message, hint=f"it may have {VARIANTS_MAX} at most")
    first = ""
    for name, value in variants.items():
        at, type_ = f"{here}.{name}", _type_of(value)
        if not _VARIANT.match(name):
            message = f"{name[:60]!r} cannot be the name of a variant"
            yield Problem(path=at, code="value", message=message, hint="letters, digits, dots, dashes; 63 at most")
        if not type_:
            message = f"expected true or false, text, a number or a mapping, found {_found(value)}"
            yield Problem(path=at, code="wrong_type", message=message)
        elif first and type_ != first:
            message = f"all variants are of one type, and this is a {type_} beside a {first}"
            yield Problem(path=at, code="wrong_type", message=message)
        first = first or type_
    size = len(msgspec.json.encode(variants))
    if size > VALUES_BYTES_MAX:
        message = f"the variants have {size} bytes, and {VALUES_BYTES_MAX} are allowed"
        yield Problem(path=here, code="too_large", message=message, hint="a flag is a switch; files are artifacts")


def _when_problems(path: str, text: str | None) -> Iterator[Problem]:
    if text is None:
        return
    yield from condition.check(path, text)
    asked = {each[1] for each in reads(text) if each[0] == "node" and len(each) > 1}
    for field in sorted(asked & set(RESTLESS)):
        yield Problem(
            path=path, code="value", message=f"node.{field} is another with every report, and the hub resolves this",
            hint="a flag asks what a node is, not how it is just now",
        )  # fmt: skip


def _split_problems(path: str, split: Mapping[str, int], variants: Mapping[str, Any]) -> Iterator[Problem]:
    for name in split:
        yield from _unknown(f"{path}.{name}", name, variants)
    total = sum(split.values())
    if total != WHOLE:
        yield Problem(path=path, code="value", message=f"the shares come to {total} percent, not to {WHOLE}")


def _unknown(path: str, name: str, variants: Mapping[str, Any]) -> Iterator[Problem]:
    if name not in variants:
        message = f"there is no variant {name[:60]!r}"
        yield Problem(path=path, code="unknown_variant", message=message, hint=did_you_mean(name, variants))


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "number"
    return "mapping" if isinstance(value, dict) else ""


def _found(value: object) -> str:
    return "nothing" if value is None else "a list"
