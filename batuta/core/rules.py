"""Rules: what the policies say of one component. Which of them apply, what they ask of a node, and what they weigh.

`applies` is asked once of a component; where it also asks of a node, a site or the hour, it becomes part of the rule.
What cannot be answered refuses nothing by accident and allows nothing by accident: a node at which a rule cannot be
answered takes nothing new, and what is there already stays. Every such case carries its Reason.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from batuta.core.facts import paths_of
from batuta.kinds import hours
from batuta.kinds.condition import COMPONENT_VARIABLES, ConditionFault, compile_condition, evaluate
from batuta.kinds.reads import compared, reads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.facts import Path
    from batuta.kinds.application import Application, Component
    from batuta.kinds.policy import Policy
    from batuta.kinds.site import Site

ZONE: Path = ("site", "timeZone")
_HOURLY = tuple(range(0, hours.DAY_MINUTES, 60))


class Rule(NamedTuple):
    """One thing that a policy says of a component, to be asked of nodes."""

    policy: str
    kind: Literal["require", "forbid", "prefer"]
    text: str
    facts: dict[str, Any]
    """What it can read of the component and its application."""
    key: str
    """The same for rules that read the same of their components: those are asked once for all of them."""
    weight: int = 0
    moves: bool = True
    """Does what runs already have to go where it may run no more?"""
    message: str = ""
    fault: str = ""
    """Why nobody can say whether it applies; then no node may take the component."""

    @property
    def refuses(self) -> bool:
        """The answer with which it says no."""
        return self.kind == "forbid"


class Ruling(NamedTuple):
    """All that the policies say of one component."""

    hard: tuple[Rule, ...] = ()
    soft: tuple[Rule, ...] = ()
    weights: tuple[tuple[str, int], ...] = ()
    policies: tuple[str, ...] = ()
    """Those that apply, or of which nobody can say whether they do."""
    signers: tuple[tuple[str, ...], ...] = ()
    """Groups of public keys: one of each must have signed what is loaded."""
    movers: tuple[str, ...] = ()
    """Policies that move it by themselves."""


NO_RULING = Ruling()


def ruling_of(policies: Iterable[Policy], component: Component, application: Application | None, app: str) -> Ruling:
    """What policies, in order of name, say of a component."""
    facts = component_facts(component, application, app)
    hard: list[Rule] = []
    soft: list[Rule] = []
    weights: dict[str, int] = {}
    applied: list[str] = []
    movers: list[str] = []
    signers: dict[tuple[str, ...], None] = {}
    for policy in policies:
        spec, applies = policy.spec, policy.spec.applies
        beside = None
        if applies is not None and _asks_more(applies):
            beside = applies
        elif applies is not None:
            answer = evaluate(compile_condition(applies), facts)
            if isinstance(answer, ConditionFault):
                fault = f"applies: {answer.message}"
                hard.append(_rule(policy, "require", "false", facts)._replace(fault=fault, moves=False))
                applied.append(policy.metadata.name)
                # Where nobody can say whether it applies, it does: a guard that fails open is none.
                signers |= dict.fromkeys([spec.require_signer] if spec.require_signer else [])
                continue
            if not answer:
                continue
        applied.append(policy.metadata.name)
        movers += [policy.metadata.name] if spec.moves is not None else []
        signers |= dict.fromkeys([spec.require_signer] if spec.require_signer else [])
        for kind in ("require", "forbid", "prefer"):
            text = getattr(spec, kind)
            if text is None:
                continue
            if beside is not None:
                text = f"!({beside}\n) || ({text}\n)" if kind == "require" else f"({beside}\n) && ({text}\n)"
            (soft if kind == "prefer" else hard).append(_rule(policy, kind, text, facts))
        for name, weight in spec.weights.items():
            weights[name] = max(weight, weights.get(name, 0))
    return Ruling(
        tuple(hard), tuple(soft), tuple(sorted(weights.items())), tuple(applied), tuple(signers), tuple(movers)
    )


def _rule(policy: Policy, kind: Any, text: str, facts: dict[str, Any]) -> Rule:
    spec = policy.spec
    seen = {root: facts[root] for root in sorted({path[0] for path in reads(text)} & COMPONENT_VARIABLES)}
    key = repr([(path, _read(facts, path)) for path in reads(text) if path[0] in COMPONENT_VARIABLES])
    return Rule(
        policy.metadata.name, kind, text, seen, key, spec.weight, spec.existing == "move", spec.message,
    )  # fmt: skip


def _read(facts: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(facts, dict) or name not in facts:
            return "(absent)"
        facts = facts[name]
    return facts


@lru_cache(maxsize=4096)
def _asks_more(text: str) -> bool:
    """Does it ask of anything but the component and its application?"""
    return any(path[0] not in COMPONENT_VARIABLES for path in reads(text))


def component_facts(component: Component, application: Application | None, app: str) -> dict[str, Any]:
    """What a rule sees as `component` and `application`. What is not declared is left out, for has(…)."""
    namespace, _, name = app.partition("/")
    resources, replicas = component.resources, component.replicas
    facts: dict[str, Any] = {
        "name": component.name, "type": component.type, "runs": component.runs,
        "resources": {
            "cpu": int(resources.cpu_millis), "memory": int(resources.memory_bytes),
            "disk": int(resources.disk_bytes or 0), "ports": list(resources.ports), "devices": list(resources.devices),
            "accelerators": [
                {"kind": a.kind, "count": a.count or int(not a.is_share), "memory": int(a.memory_bytes or 0)}
                for a in resources.accelerators
            ],
        },
        "residency": list(component.placement.residency or (application.spec.residency if application else ())),
        "inputs": [i.topic for i in component.inputs], "outputs": [o.topic for o in component.outputs if o.topic],
        "near": list(component.placement.near), "replicas": {},
    }  # fmt: skip
    for field, key in (("count", "count"), ("per_site", "perSite"), ("every_node", "everyNode")):
        if getattr(replicas, field) is not None:
            facts["replicas"][key] = getattr(replicas, field)
    if component.model is not None:
        facts["model"] = {"name": component.model.name, "version": component.model.version}
    if component.slo is not None:
        facts["slo"] = {"p99": int(component.slo.p99_ms)}
    labels = dict(application.metadata.labels) if application is not None else {}
    return {"component": facts, "application": {"name": name, "namespace": namespace, "labels": labels}}


# --- The hour ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def node_paths(text: str) -> tuple[Path, ...]:
    """What a rule can depend on, of nodes and sites; with the hour, also on whose clock."""
    paths = paths_of(text)
    return (*paths, ZONE) if marks_of(text) and ZONE not in paths and ("site",) not in paths else paths


@lru_cache(maxsize=4096)
def marks_of(text: str) -> tuple[int, ...]:
    """The minutes of the day at which a rule may change its mind; none for a rule that asks nothing of the hour."""
    marks: set[int] = set()
    for path in reads(text):
        if path[0] != "now":
            continue
        if path == ("now", "time"):
            times = [hours.minute_of_day(said) for said in compared(text, path) or ("",)]
            if None in times:
                return hours.EVERY_MINUTE
            # `now.time > "22:00"` changes a minute later than `>=` does.
            marks |= {minute % hours.DAY_MINUTES for time in times if time is not None for minute in (time, time + 1)}
        elif path == ("now", "hour"):
            marks |= set(_HOURLY)
        elif path in (("now", "weekday"), ("now", "date")):
            marks.add(0)
        else:
            return hours.EVERY_MINUTE
    return tuple(sorted(marks))


def texts_of(policy: Policy) -> list[str]:
    """Everything that a policy asks."""
    spec = policy.spec
    return [text for text in (spec.applies, spec.require, spec.forbid, spec.prefer) if text is not None]


def asks_the_hour(policy: Policy) -> bool:
    return any(marks_of(text) for text in texts_of(policy))


def zones_of(sites: Iterable[Site | None]) -> frozenset[str]:
    """The time zones of some sites; where nobody says anything, clocks show UTC."""
    return frozenset(site.spec.time_zone or hours.UTC for site in sites if site is not None) | {hours.UTC}


def next_hour(policies: Iterable[Policy], zones: Iterable[str], now: int) -> int | None:
    """The next instant at which some policy may change its mind because of the hour."""
    zones = list(zones)
    asked = {marks for policy in policies for text in texts_of(policy) if (marks := marks_of(text))}
    return min((hours.around(marks, zone, now).until for marks in asked for zone in zones), default=None)
