"""How good placement is: small made-up problems, decided by Batuta and solved exactly by OR-Tools CP-SAT.

    python benchmarks/placement_quality.py [--problems 200] [--seed 1] [--show NUMBER] [--json]

Needs the extra `batuta[bench]`. What is compared is one number. Every instance that is placed counts what the
preferences give its node in the end, with everything in its place (they give from 0 to 100 times a weight each), and on
top of it, for being placed at all, as much as a perfect node would give; twice that at priority 10. Nobody has a
predecessor, so staying put counts for nothing.

Both sides are measured by the tables themselves: a node is tried with every mix of instances that its room allows, and
the real constraints and preferences say what is allowed and what it is worth. The solver then chooses one mix a node.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter
from typing import NamedTuple

import numpy as np
from ortools.sat.python import cp_model

from batuta.core.constraints import FILTERS, reach_of, says
from batuta.core.decide import decide
from batuta.core.fleet import Fleet
from batuta.core.observed import Inventory, Report, Sighting
from batuta.core.preferences import scorers_for
from batuta.core.state import Change, State
from batuta.core.wish import Ask, Slot, Wish
from batuta.kinds.application import (
    Application,
    ApplicationSpec,
    Component,
    Input,
    ModelUse,
    Output,
    Placement,
    ProcessUse,
    Replicas,
    Resources,
)
from batuta.kinds.base import Bytes, Metadata, Millicores
from batuta.kinds.model import Model, ModelSpec, Variant, Version
from batuta.kinds.node import Node, NodeSpec
from batuta.kinds.site import Site

NOW = 1_700_000_000_000
MIB = 2**20
TOPICS = ("a/frame", "b/frame")
SECONDS_MAX = 30.0


class Problem(NamedTuple):
    """A fleet and what is to be placed on it at once."""

    number: int
    rows: tuple[Change, ...]
    apps: tuple[Change, ...]


class Outcome(NamedTuple):
    problem: int
    optimum: int
    reached: int
    best: dict[str, Counter[str]]
    """By component, the nodes of its instances."""
    got: dict[str, Counter[str]]
    is_proven: bool

    @property
    def gap(self) -> float:
        return (self.optimum - self.reached) / self.optimum if self.optimum else 0.0


def problem(number: int, seed: int) -> Problem:
    """Four to seven nodes at two or three sites, two to four components; room for some six tenths to all and more."""
    draw = random.Random(f"{seed} problem {number}")
    sites = [f"s{k}" for k in range(draw.randint(2, 3))]
    rows: list[Change] = [_row(Site(metadata=Metadata(name=site))) for site in sites]
    digest = f"sha256:{'d' * 64}"
    variant = Variant(name="only", format="onnx", digest=digest, size_bytes=Bytes(MIB))
    rows.append(
        _row(Model(metadata=Metadata(name="m"), spec=ModelSpec(versions=(Version(version="1", variants=(variant,)),))))
    )
    for k in range(draw.randint(4, 7)):
        name = f"n{k}"
        inventory = Inventory(
            architecture="arm64",
            cpu_millis=Millicores(draw.choice((400, 600, 800, 1_200))),
            memory_bytes=Bytes(draw.choice((256, 384, 512, 768)) * MIB),
            disk_bytes=Bytes(8_192 * MIB),
            runtimes=("process", "onnx") if draw.random() < 0.7 else ("process",),
        )
        labels = {"camera": "1"} if draw.random() < 0.6 else {}
        node = Node(metadata=Metadata(name=name, labels=labels), spec=NodeSpec(site=draw.choice(sites)))
        topics = {topic: draw.randint(1, 500) for topic in TOPICS if draw.random() < 0.3}
        held = (digest,) if draw.random() < 0.4 else ()
        report = Report(node=name, boot="1", sequence=1, at=NOW, inventory=inventory, topics=topics, artifacts=held)
        rows += [_row(node), Change("observed", name, report)]
        rows.append(Change("sightings", name, Sighting(last_seen=NOW, online_since=NOW - 86_400_000)))
    apps = [_row(_application(f"app-{k}", draw)) for k in range(draw.randint(2, 4))]
    return Problem(number, tuple(rows), tuple(apps))


def _application(name: str, draw: random.Random) -> Application:
    is_model = draw.random() < 0.4
    component = Component(
        name="work",
        model=ModelUse(name="m", version="1") if is_model else None,
        process=None if is_model else ProcessUse(command=("run",)),
        inputs=(Input(topic=TOPICS[0]),) if is_model else (),
        outputs=(Output(topic="out/{1}"),) if is_model else (),
        replicas=Replicas(count=draw.randint(1, 5)),
        placement=Placement(
            where='"camera" in node.labels' if draw.random() < 0.3 else None,
            near=tuple(t for t in TOPICS if draw.random() < 0.4),
            spread=draw.choice((None, None, "node", "site")),
        ),
        resources=Resources(
            cpu_millis=Millicores(draw.choice((50, 100, 200, 300))),
            memory_bytes=Bytes(draw.choice((32, 64, 96, 128, 192)) * MIB),
        ),
    )
    spec = ApplicationSpec(components=(component,), priority=draw.choice((0, 0, 0, 10)))
    return Application(metadata=Metadata(name=name), spec=spec)


def _row(resource: Site | Model | Node | Application) -> Change:
    return Change("desired", resource.ref.key, resource)


class Worth:
    """What every mix of instances is worth on every node, by the tables themselves."""

    def __init__(self, given: Problem) -> None:
        state = State(hub_since=NOW - 3_600_000).with_changes((*given.rows, *given.apps))
        after = state.with_changes(decide(state, NOW, None, Fleet()).changes)
        self.after = after
        releases = [c for c in decide(state, NOW, None, Fleet()).changes if c.key.startswith("release.")]
        fleet = self.fleet = Fleet().refresh(state.with_changes(releases), NOW)
        self.asks = [
            Ask(app, released, fleet)
            for app in sorted(after.releases)
            for released in after.releases[app][-1].components
        ]
        self.counts = [ask.component.replicas.count or 0 for ask in self.asks]
        self.names = sorted(fleet.row_of)
        self.nodes = np.array([fleet.row_of[name] for name in self.names])
        self.site_of = [fleet.site_names[fleet.site[row]] for row in self.nodes.tolist()]
        self.placed = [self._placed(ask) for ask in self.asks]
        self.mixes: list[dict[tuple[int, ...], int]] = [{} for _ in self.names]
        """By node: what every mix that fits there is worth."""
        for mix in itertools.product(*(range(count + 1) for count in self.counts)):
            self._try(mix)
        self.at_site = {k: self._site_worth(ask, self.counts[k]) for k, ask in enumerate(self.asks)}

    def _placed(self, ask: Ask) -> int:
        application = self.after.application(ask.app)
        assert application is not None
        perfect = sum(100 * s.weight for s in scorers_for(ask) if says(s, ask) and s.name != "stays")
        return perfect * (2 if application.spec.priority else 1)

    def _try(self, mix: tuple[int, ...]) -> None:
        fleet, rows = self.fleet, self.nodes
        if sum(c * a.cpu_millis for c, a in zip(mix, self.asks, strict=True)) > int(fleet.cpu_total.max()):
            return
        for count, ask in zip(mix, self.asks, strict=True):
            if count:
                fleet.lay(rows, ask.load(0, 0), count)
            ask.here[rows] = count
        fits, worth = np.ones(len(rows), np.bool_), np.zeros(len(rows), np.int64)
        for k, (count, ask) in enumerate(zip(mix, self.asks, strict=True)):
            if not count:
                continue
            wish = Wish(ask, Slot("0"), own=tuple(rows.tolist()))
            fleet.lay(rows, ask.load(0, 0), -1)
            for f in FILTERS:
                fits &= f.mask(wish, fleet, rows)
            for s in scorers_for(ask):
                if says(s, ask) and reach_of(s, ask) != "site":
                    worth += count * s.weight * s.score(wish, fleet, rows)
            worth += count * self.placed[k]
            fleet.lay(rows, ask.load(0, 0), 1)
        for count, ask in zip(mix, self.asks, strict=True):
            if count:
                fleet.lay(rows, ask.load(0, 0), -count)
            ask.here[rows] = 0
        for n in np.flatnonzero(fits).tolist():
            self.mixes[n][mix] = int(worth[n])

    def _site_worth(self, ask: Ask, most: int) -> list[int]:
        """What so many replicas at one site are worth, to the rows that look no closer than that."""
        scorers = [s for s in scorers_for(ask) if says(s, ask) and reach_of(s, ask) == "site"]
        found, row = [0], int(self.nodes[0])
        for count in range(1, most + 1):
            ask.here[row] = count
            wish = Wish(ask, Slot("0"), own=(row,))
            each = sum(s.weight * int(s.score(wish, self.fleet, np.array([row]))[0]) for s in scorers)
            found.append(count * each)
        ask.here[row] = 0
        return found

    def of(self, chosen: list[tuple[int, ...]]) -> int:
        """What one mix for each node comes to."""
        total = sum(self.mixes[n][mix] for n, mix in enumerate(chosen))
        for k in range(len(self.asks)):
            at: Counter[str] = Counter()
            for n, mix in enumerate(chosen):
                at[self.site_of[n]] += mix[k]
            total += sum(self.at_site[k][count] for count in at.values())
        return total

    def decided(self) -> list[tuple[int, ...]]:
        held = Counter((ask.app, h.node) for ask in self.asks for h in self.after.held.get(ask.app, ()))
        return [tuple(held[ask.app, name] for ask in self.asks) for name in self.names]

    def told(self, chosen: list[tuple[int, ...]]) -> dict[str, Counter[str]]:
        return {
            ask.app: Counter({name: mix[k] for name, mix in zip(self.names, chosen, strict=True) if mix[k]})
            for k, ask in enumerate(self.asks)
        }


def best(worth: Worth) -> tuple[list[tuple[int, ...]], bool]:
    """One mix for each node, so that it comes to the most; and whether that is proven."""
    model = cp_model.CpModel()
    picks = [{mix: model.new_bool_var("") for mix in mixes} for mixes in worth.mixes]
    terms = []
    for n, pick in enumerate(picks):
        model.add_exactly_one(pick.values())
        terms += [worth.mixes[n][mix] * chosen for mix, chosen in pick.items() if worth.mixes[n][mix]]
    for k, count in enumerate(worth.counts):
        model.add(sum(mix[k] * chosen for pick in picks for mix, chosen in pick.items() if mix[k]) <= count)
        if not any(worth.at_site[k]):
            continue
        for site in sorted(set(worth.site_of)):
            levels = [model.new_bool_var("") for _ in range(count + 1)]
            model.add_exactly_one(levels)
            there = [picks[n] for n, at in enumerate(worth.site_of) if at == site]
            model.add(
                sum(mix[k] * chosen for pick in there for mix, chosen in pick.items() if mix[k])
                == sum(level * chosen for level, chosen in enumerate(levels))
            )
            terms += [worth.at_site[k][level] * chosen for level, chosen in enumerate(levels)]
    model.maximize(sum(terms))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = SECONDS_MAX
    status = solver.solve(model)
    chosen = [next(mix for mix, var in pick.items() if solver.boolean_value(var)) for pick in picks]
    return chosen, status == cp_model.OPTIMAL


def outcome(number: int, seed: int) -> Outcome:
    worth = Worth(problem(number, seed))
    got = worth.decided()
    for n, mix in enumerate(got):
        assert mix in worth.mixes[n], f"problem {number}: {worth.names[n]} was given more than the constraints allow"
    optimal, is_proven = best(worth)
    return Outcome(number, worth.of(optimal), worth.of(got), worth.told(optimal), worth.told(got), is_proven)


def report(problems: int, seed: int) -> dict[str, float]:
    """Solve them all, print how far decisions are from the best ones, and the worst of them."""
    found = [outcome(number, seed) for number in range(problems)]
    proven = [o for o in found if o.is_proven]
    gaps = sorted(o.gap for o in proven)
    assert gaps, "not one problem was solved"
    at = {q: gaps[min(len(gaps) - 1, int(q * len(gaps)))] for q in (0.5, 0.75, 0.9, 0.95, 0.99)}
    print(f"quality: {len(proven)} of {problems} problems solved exactly; distance from the optimum")
    print(f"  none at all: {sum(1 for g in gaps if g == 0)}")
    for q, gap in at.items():
        print(f"  {q:.0%}: at most {gap:.2%}")
    worst = max(proven, key=lambda o: o.gap)
    print(f"  worst: {worst.gap:.2%}, problem {worst.problem}: {worst.reached} of {worst.optimum}")
    for app in worst.best:
        print(f"    {app}: {_nodes(worst.got[app])}; best {_nodes(worst.best[app])}")
    return {
        "median_gap": round(at[0.5], 5),
        "p95_gap": round(at[0.95], 5),
        "worst_gap": round(worst.gap, 5),
        "proven": len(proven),
        "problems": problems,
    }


def _nodes(counts: Counter[str]) -> str:
    return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in sorted(counts.items())) or "nowhere"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--problems", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--show", type=int, help="only this problem, with all that is in it")
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    chosen = options.parse_args()
    if chosen.show is not None:
        for change in (*problem(chosen.show, chosen.seed).rows, *problem(chosen.show, chosen.seed).apps):
            print(change.value)
        print(outcome(chosen.show, chosen.seed))
        return 0
    figures = report(chosen.problems, chosen.seed)
    if chosen.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
