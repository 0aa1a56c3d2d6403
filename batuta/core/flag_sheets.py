"""Flag sheets: what every node is told of the flags, made from their rules and what is known of the nodes.

A rule asks what a node and its site are, so most nodes of a fleet answer alike: each condition is asked once for each
set of values that occurs, and nodes for which all flags come out the same share one sheet. Nothing of it is stored: it
follows from what is declared and reported, and a node that has the right sheet has the right digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batuta.core.facts import fact_at, look_up, node_facts, paths_of, site_facts
from batuta.core.flags import FlagOrder, Sheet, Why, digest_of, written
from batuta.kinds.condition import ConditionFault, compile_condition, evaluate
from batuta.kinds.flag import RESTLESS, Flag
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batuta.core.facts import Path
    from batuta.core.observed import Inventory, Report
    from batuta.core.state import State
    from batuta.kinds.node import Node

ANSWERS_MAX: Final = 65_536
_MEMO: Final = "flag sheets"


class Choice(NamedTuple):
    """Which rule of a flag holds for a node, from 1; 0 for none."""

    rule: int
    puzzled: int = 0
    """The first rule that could not be answered there, and so does not hold; 0 when all could be."""


class Told(NamedTuple):
    """What a node is told."""

    digest: str
    body: bytes


NOTHING: Final = Told("", b"")
Vector = tuple[Choice, ...]
"""The choice of every flag, in their order."""


def sheets_of(state: State) -> Sheets:
    """The sheets as of this State. What is not changed since they were last asked for is not worked out again."""
    found: Sheets = state.memo.setdefault(_MEMO, Sheets())
    found.refresh(state)
    return found


def resolved(flag: Flag, rule: int) -> FlagOrder:
    """A flag where its `rule`-th rule holds, or none. What nobody can get there is left out, so that a change of it is
    no news there."""
    spec, ref = flag.spec, flag.ref
    values = _alike(spec.variants)
    if spec.disabled or rule == 0:
        why: Why = "DISABLED" if spec.disabled else "DEFAULT" if spec.rules else "STATIC"
        return FlagOrder(namespace=ref.namespace, name=ref.name, why=why, variants={spec.default: values[spec.default]})
    said = spec.rules[rule - 1]
    if said.variant is not None:
        return FlagOrder(
            namespace=ref.namespace, name=ref.name, why="TARGETING_MATCH", rule=rule,
            variants={said.variant: values[said.variant]},
        )  # fmt: skip
    split = {name: share for name, share in sorted(said.split.items()) if share}
    return FlagOrder(
        namespace=ref.namespace, name=ref.name, why="SPLIT", rule=rule, split=split,
        variants={name: values[name] for name in split},
    )  # fmt: skip


class Sheets:
    """Every node's sheet, kept from one State to the next."""

    def __init__(self) -> None:
        self.flags: tuple[Flag, ...] = ()
        """In order of namespace and name."""
        self.version = 0
        """Rises whenever some node's sheet may be another."""
        self._state: State | None = None
        self._place: dict[str, int] = {}
        self._vectors: dict[str, Vector] = {}
        self._inventories: dict[str, Inventory | None] = {}
        self._interned: dict[Vector, Vector] = {}
        self._told: dict[Vector, Told] = {}
        self._asked = _Asked({})

    def told(self, node: str) -> Told:
        vector = self._vectors.get(node)
        if vector is None or not self.flags:
            return NOTHING
        found = self._told.get(vector)
        if found is None:
            pairs = zip(self.flags, vector, strict=True)
            body = written(Sheet(flags=tuple(resolved(flag, choice.rule) for flag, choice in pairs)))
            found = self._told[vector] = Told(digest_of(body), body)
        return found

    def nodes(self) -> Iterator[str]:
        return iter(self._vectors)

    def choice(self, flag: Flag, node: str) -> Choice | None:
        """None for a node that nobody knows."""
        place, vector = self._place.get(flag.ref.key), self._vectors.get(node)
        return None if place is None or vector is None else vector[place]

    def choices(self, flag: Flag) -> dict[Choice, int]:
        """How many nodes come to which choice."""
        place = self._place.get(flag.ref.key)
        found: dict[Choice, int] = {}
        for vector in self._vectors.values() if place is not None else ():
            choice = vector[place]  # type: ignore[index]
            found[choice] = found.get(choice, 0) + 1
        return found

    def fault(self, flag: Flag, rule: int, node: str) -> str:
        """Why a rule cannot be answered for a node; empty where it can."""
        text = flag.spec.rules[rule - 1].when
        state = self._state
        if text is None or state is None or node not in state.nodes:
            return ""
        answer = self._asked.answer(text, state.nodes[node], state.observed.get(node))
        return answer if isinstance(answer, str) else ""

    def holds(self, flag: Flag, rule: int, node: str) -> bool | str:
        """Does one rule hold for a node, whatever those above it say? A text says why nobody can tell."""
        text, state = flag.spec.rules[rule - 1].when, self._state
        if text is None or state is None or node not in state.nodes:
            return text is None
        return self._asked.answer(text, state.nodes[node], state.observed.get(node))

    # --- Following a line of States ---

    def refresh(self, state: State) -> None:
        before, self._state = self._state, state
        if before is state:
            return
        if before is None:
            self._again(state)
            return
        desired, observed = _changed(before, state)
        if any(key.startswith("sites.") for key in desired):
            self._again(state)
            return
        if any(key.startswith("flags.") for key in desired):
            count = len(self.flags)
            origins = self._read_flags(state)
            if origins != tuple(range(count)):
                self._every(state, origins)
        named = {key.partition(".")[2] for key in desired if key.startswith("nodes.")}
        for node in observed:
            if node not in named and self._inventories.get(node) != _inventory(state.observed.get(node)):
                named.add(node)
        for node in named:
            self._one(state, node)

    def _again(self, state: State) -> None:
        self._read_flags(state)
        self._asked = _Asked({site.metadata.name: site for site in state.desired.values() if isinstance(site, Site)})
        self._every(state, (None,) * len(self.flags))

    def _read_flags(self, state: State) -> tuple[int | None, ...]:
        """For each of them, where it was before; None for those that were not, or are others now."""
        found = sorted((r for r in state.desired.values() if isinstance(r, Flag)), key=lambda flag: flag.ref)
        before = {flag.ref: (n, flag.spec) for n, flag in enumerate(self.flags)}
        self.flags = tuple(found)
        self._told.clear()
        self._place = {flag.ref.key: n for n, flag in enumerate(self.flags)}
        known = ((before.get(flag.ref), flag.spec) for flag in self.flags)
        return tuple(was[0] if was is not None and was[1] == spec else None for was, spec in known)

    def _every(self, state: State, origins: tuple[int | None, ...]) -> None:
        """Each node's choices anew, where they do not come out as before."""
        self.version += 1
        olds, self._interned, self._vectors = self._vectors, {}, {}
        merged: dict[tuple[Vector, Vector], Vector] = {}
        anew = [flag for flag, origin in zip(self.flags, origins, strict=True) if origin is None]
        for name, node in state.nodes.items():
            report = state.observed.get(name)
            self._inventories[name] = _inventory(report)
            old = olds.get(name)
            if old is None:
                self._vectors[name] = self._intern(tuple(self._choose(flag, node, report) for flag in self.flags))
                continue
            new = tuple(self._choose(flag, node, report) for flag in anew)
            if (found := merged.get((old, new))) is None:
                fresh = iter(new)
                found = self._intern(tuple(next(fresh) if n is None else old[n] for n in origins))
                merged[old, new] = found
            self._vectors[name] = found
        for gone in self._inventories.keys() - self._vectors.keys():
            del self._inventories[gone]

    def _one(self, state: State, name: str) -> None:
        node, report = state.nodes.get(name), state.observed.get(name)
        before = self._vectors.pop(name, None)
        if node is None:
            self._inventories.pop(name, None)
            return
        self._inventories[name] = _inventory(report)
        self._vectors[name] = after = self._intern(tuple(self._choose(flag, node, report) for flag in self.flags))
        self.version += before != after

    def _intern(self, vector: Vector) -> Vector:
        return self._interned.setdefault(vector, vector)

    def _choose(self, flag: Flag, node: Node, report: Report | None) -> Choice:
        if flag.spec.disabled:
            return Choice(0)
        puzzled = 0
        for n, rule in enumerate(flag.spec.rules, 1):
            answer = True if rule.when is None else self._asked.answer(rule.when, node, report)
            if answer is True:
                return Choice(n, puzzled)
            if answer is not False:
                puzzled = puzzled or n
        return Choice(0, puzzled)


class _Asked:
    """What conditions answered, by what they asked for."""

    def __init__(self, sites: dict[str, Site | None]) -> None:
        self._sites = sites
        self._getters: dict[str, tuple[Callable[[Node, Report | None], Any], ...]] = {}
        self._answers: dict[tuple[Any, ...], bool | str] = {}
        self._of_sites: dict[tuple[str, Path], Any] = {}

    def answer(self, text: str, node: Node, report: Report | None) -> bool | str:
        """Does it hold? A text says why nobody can tell."""
        getters = self._getters.get(text)
        if getters is None:
            getters = self._getters[text] = tuple(self._getter(path) for path in paths_of(text))
        key = (text, *(get(node, report) for get in getters))
        found = self._answers.get(key)
        if found is None:
            if len(self._answers) >= ANSWERS_MAX:
                self._answers.clear()
            facts = {"node": _settled_facts(node, report), "site": site_facts(node, self._sites)}
            said = evaluate(compile_condition(text), facts)
            found = self._answers[key] = said.message if isinstance(said, ConditionFault) else said
        return found

    def _getter(self, path: Path) -> Callable[[Node, Report | None], Any]:
        if path[0] == "site":
            return lambda node, _: self._of_site(node, path)
        if len(path) == 1:
            return lambda node, report: repr(_settled_facts(node, report))
        return fact_at(path, self._sites)

    def _of_site(self, node: Node, path: Path) -> Any:
        key = (node.spec.site, path)
        if key not in self._of_sites:
            self._of_sites[key] = look_up({"site": site_facts(node, self._sites)}, path)
        return self._of_sites[key]


def _changed(before: State, state: State) -> tuple[set[str], set[str]]:
    """Keys of what was declared and of what was reported that may differ. A State that was only tried takes the trail
    along with it, so two States of the hub need not share one; what is the same object there has not changed."""
    keys = state.trail.between(before.step, state.step) if before.trail is state.trail else None
    if keys is not None:
        return keys.get("desired", set()), keys.get("observed", set())
    pairs = ((before.desired, state.desired), (before.observed, state.observed))
    desired, observed = (
        {key for key in old.keys() | new.keys() if old.get(key) is not new.get(key)} for old, new in pairs
    )
    return desired, observed


def _settled_facts(node: Node, report: Report | None) -> dict[str, Any]:
    return {name: value for name, value in node_facts(node, report).items() if name not in RESTLESS}


def _inventory(report: Report | None) -> Inventory | None:
    return report.inventory if report is not None else None


def _alike(variants: dict[str, Any]) -> dict[str, Any]:
    """Numbers are all whole, or all with a fraction: a program that asks for 0.5 can then also read 1.0."""
    if all(isinstance(value, int) or not isinstance(value, float) for value in variants.values()):
        return variants
    return {name: float(value) for name, value in variants.items()}
