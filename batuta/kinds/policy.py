"""Policy: what holds wherever things run. Rules over nodes, sites, applications, components and the hour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from batuta.kinds import calendar, condition
from batuta.kinds.autoscale import Cron
from batuta.kinds.base import Millis, Problem, Record, Resource
from batuta.kinds.nearest import did_you_mean
from batuta.kinds.reads import reads

if TYPE_CHECKING:
    from collections.abc import Iterator

Rule = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4096,
        description="A rule in CEL over node, site, application, component and now.",
        extra={"condition": "policy"},
    ),
]
Weight = Annotated[int, Meta(ge=0, le=100)]
PREFERENCES = (
    "stays", "near", "talks", "spread", "apart", "quality", "slo", "artifact", "energy", "carbon", "uplink", "headroom",
    "steady", "room",
)  # fmt: skip
"""What a weight can be given to, in the order of `core.preferences`."""
MINUTE_MS, DAY_MS, YEAR_MS = 60_000, 86_400_000, 366 * 86_400_000
RULES = ("require", "forbid", "prefer", "weights", "require_signer", "moves")
PublicKey = Annotated[
    str,
    Meta(
        max_length=1024,
        pattern=r"^\s*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*$",
        description="A public key in PEM, of an elliptic curve: P-256, P-384 or P-521.",
    ),
]


class Hours(Record):
    """A time that comes again and again."""

    opens: Cron
    closes: Cron
    zone: str = "UTC"
    """Whose clock: `Europe/Berlin`."""


def _span(ms: int, name: str) -> Any:
    return msgspec.field(default_factory=lambda: Millis(ms), name=name)


class Moves(Record):
    """Moves that pay for themselves are made without being asked for: those that `batuta twin rehearse --optimize`
    proposes. The new one is ready before the old one stops, and nothing goes back to a node that it was moved from."""

    every_ms: Millis = _span(3_600_000, "every")
    """All that it applies to is looked at so often."""
    at_most: Annotated[int, Meta(ge=1, le=1000)] = 5
    """So many moves begin with each look, the best first."""
    least_gain: Annotated[int, Meta(ge=1, le=1000)] = 10
    """How much more than its present place the other one must score, in percent."""
    within_ms: Millis = _span(3_600_000, "within")
    """A move must have paid for itself by then."""
    again_ms: Millis = _span(86_400_000, "again")
    """What was moved stays for so long at least."""
    hours: Annotated[tuple[Hours, ...], Meta(max_length=32)] = ()
    """Moves begin only while one of these is open; at any time when left out."""


class PolicySpec(Record):
    """At least one of require, forbid, prefer, weights, requireSigner and moves."""

    applies: Rule | None = None
    """To which components it applies; to all of them when left out."""
    require: Rule | None = None
    """They run only where this holds."""
    forbid: Rule | None = None
    """They do not run where this holds."""
    prefer: Rule | None = None
    """They had better run where this holds."""
    weight: Weight = 4
    """How much `prefer` counts, beside the weights of the other preferences."""
    weights: dict[str, Weight] = {}
    """Other weights for the preferences of placement: `{energy: 20, near: 0}`. Where several policies name the same
    one, the greatest holds."""
    require_signer: Annotated[tuple[PublicKey, ...], Meta(max_length=16)] = ()
    """Their models run only when one of these keys has signed them: the node verifies it before anything is loaded."""
    moves: Moves | None = None
    """They are moved by themselves to where they are better off."""
    existing: Literal["move", "stay"] = "move"
    """What runs already where it may run no more: it moves, the new one ready before the old one stops; or it stays."""
    message: Annotated[str, Meta(max_length=256)] = ""
    """For people: why."""

    @property
    def rules(self) -> tuple[str, ...]:
        """Which of them it has, by the keys that people write."""
        return tuple(_key(rule) for rule in RULES if getattr(self, rule))


class Policy(Resource, tag="Policy", kw_only=True):
    """A constraint on where things run, or a preference, for all tenants."""

    plural: ClassVar[str] = "policies"
    namespaced: ClassVar[bool] = False
    short_names: ClassVar[tuple[str, ...]] = ("pol",)
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("STATE", "status.state"),
        ("RULES", "status.rules"),
        ("COMPONENTS", "status.applied"),
        ("REFUSES", "status.refuses"),
        ("REASON", "status.reason"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("EXISTING", "spec.existing"),
        ("UNANSWERED", "status.unanswered"),
        ("MESSAGE", "spec.message"),
    )

    spec: PolicySpec

    def problems(self) -> Iterator[Problem]:
        spec = self.spec
        if not spec.rules:
            message = f"say at least one of {', '.join(map(_key, RULES))}"
            yield Problem(path="spec", code="one_of", message=message)
        for field in ("applies", "require", "forbid", "prefer"):
            text = getattr(spec, field)
            if text is not None:
                yield from condition.check(f"spec.{field}", text, condition.POLICY_VARIABLES)
        for name in spec.weights:
            if name not in PREFERENCES:
                yield Problem(
                    path=f"spec.weights.{name}", code="unknown_field", message=f"there is no preference {name!r}",
                    hint=did_you_mean(name, PREFERENCES),
                )  # fmt: skip
        if spec.moves is not None:
            yield from _moves_problems("spec.moves", spec.moves)
        if (spec.weights or spec.require_signer or spec.moves) and spec.applies is not None:
            wider = {path[0] for path in reads(spec.applies)} - condition.COMPONENT_VARIABLES
            if wider:
                what = "weights hold" if spec.weights else "moves hold" if spec.moves else "requireSigner holds"
                yield Problem(
                    path="spec.applies", code="value",
                    message=f"{what} for a component wherever it runs, and this asks about {sorted(wider)[0]}",
                    hint="ask about component and application only",
                )  # fmt: skip


def _moves_problems(here: str, moves: Moves) -> Iterator[Problem]:
    for name, least_ms, most_ms in (
        ("every", MINUTE_MS, YEAR_MS), ("within", MINUTE_MS, 30 * DAY_MS), ("again", MINUTE_MS, YEAR_MS),
    ):  # fmt: skip
        given = getattr(moves, f"{name}_ms")
        if not least_ms <= given <= most_ms:
            said = f"between {Millis(least_ms).text()} and {Millis(most_ms).text()}"
            yield Problem(path=f"{here}.{name}", code="value", message=f"{given.text()} is not {said}")
    for i, hours in enumerate(moves.hours):
        for name in ("opens", "closes"):
            if wrong := calendar.why_no_cron(getattr(hours, name)):
                path = f"{here}.hours[{i}].{name}"
                yield Problem(path=path, code="value", message=wrong, hint="for example 0 22 * * mon-fri")
        if nowhere := calendar.why_no_zone(hours.zone):
            yield Problem(path=f"{here}.hours[{i}].zone", code="value", message=nowhere[0], hint=nowhere[1])


def _key(rule: str) -> str:
    return {"require_signer": "requireSigner"}.get(rule, rule)
