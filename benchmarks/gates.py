"""How often gates err: healthy releases that were stopped, bad ones that got through, and how soon it was clear.

    python benchmarks/gates.py [--rollouts 1000] [--sizes 50] [--seed 1] [--json]

Each rollout is played by the real `core.rollout.advance` and `core.gates.judge`, looked at every two seconds, over made
up machines: two classes of hardware of which one is half again as slow, machines of a class that are a few percent
unlike, some of which err more often than others, micro-batches whose four answers take equally long, memory that
differs from start to start. Stopped is a healthy rollout that ends as anything but done, also one that its
deadline paused because its gates could not tell; missed is a bad one that ends as done.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from batuta.core.evidence import latency_at, latency_bucket
from batuta.core.gates import judge
from batuta.core.rollout import LOOK_MS, Plan, Rollout, Standing, advance, begin, may_have, order_of
from batuta.core.sample import CONFIDENCE_BINS, Sample, mixed, total
from batuta.kinds.waves import waves_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batuta.core.gates import Judged

APP: Final = "default/eyes"
GATES: Final = (
    "errors.rate < 0.01",
    "latency.p99 < baseline.latency.p99 * 1.2",
    "confidence.shift < 0.15",
    "agreement.share > 0.95",
    "drift.score < 0.2",
    "memory.max < baseline.memory.max * 1.25",
    "restarts.count < 3",
)
PLAN: Final = Plan(
    waves_of(["1 node", "25%", "100%"]), soak_ms=30_000, gates=GATES, wave_deadline_ms=1_200_000,
)  # fmt: skip
LEAST: Final = 200
NODES: Final = 12
SLOW_CLASS: Final = 1.5
HISTORY_S: Final = 600
"""So long the old release has been measured when the rollout begins."""
A_SECOND: Final = 50
"""Messages to each machine."""
BATCH: Final = 4
"""Answers of one run of the model take equally long."""
REFERENCE: Final = 5_000
"""Inputs that the drift reference was made of."""
PER_LOOK: Final = A_SECOND * LOOK_MS // 1_000
ERRS_MEAN: Final = math.exp(0.3**2 / 2)
LATENCY_BINS: Final = latency_bucket(10_000.0) + 1
BASE_MEMORY: Final = 200 << 20


class Release(NamedTuple):
    """What is true of a release, as nobody can know it."""

    errors: float = 0.002
    slower: float = 1.0
    unsure: float = 0.0
    """How far its sureness is moved: about the distance that `confidence.shift` tells."""
    agreed: float = 0.985
    drifted: float = 0.0
    """The share of its inputs that are of a sort it never saw: the distance that `drift.score` tells."""
    leak_percent_s: float = 0.0
    """Of its memory, more in every second."""
    restarts_s: float = 0.0


HEALTHY: Final = {
    "like the old one": Release(),
    "a little worse, within all limits": Release(errors=0.003, slower=1.05, unsure=0.03, agreed=0.97, drifted=0.05),
}
BAD: Final[dict[str, tuple[str, list[Release]]]] = {
    # By kind: what the sizes are, and releases of growing size. The second is the one that the docs state.
    "errors": ("errors.rate, limit 0.01", [Release(errors=e) for e in (0.012, 0.02, 0.03, 0.1)]),
    "latency": ("times as slow, limit 1.2", [Release(slower=s) for s in (1.25, 1.5, 2.0, 10.0)]),
    "confidence": ("shift, limit 0.15", [Release(unsure=u) for u in (0.17, 0.25, 0.4)]),
    "agreement": ("agreement.share, limit 0.95", [Release(agreed=a) for a in (0.945, 0.92, 0.8, 0.1)]),
    "drift": ("drift.score, limit 0.2", [Release(drifted=d) for d in (0.22, 0.3, 0.5)]),
    "memory": ("percent more each second", [Release(leak_percent_s=p) for p in (0.5, 1.0, 5.0)]),
    "restarts": ("restarts a minute", [Release(restarts_s=r / 60) for r in (2.0, 6.0, 20.0)]),
}
STATED: Final = 1


def size_of(kind: str, release: Release) -> float:
    """The size of its fault, in the unit that the kind says."""
    field = {"errors": "errors", "latency": "slower", "confidence": "unsure", "agreement": "agreed",
             "drift": "drifted", "memory": "leak_percent_s", "restarts": "restarts_s"}[kind]  # fmt: skip
    size: float = getattr(release, field)
    return round(size * 60, 3) if kind == "restarts" else size


class Ended(NamedTuple):
    """One rollout."""

    phase: str
    after_s: float
    answers: int
    """Of the new release."""
    nodes: int
    """That ever had it."""
    gate: str
    """Which stopped it."""


class Fleet:
    """Machines that measure: row by row what each counted since it began with the release that it has."""

    def __init__(self, seed: int, new: Release) -> None:
        self.chance = np.random.default_rng(seed)
        self.names = [f"n{k}" for k in range(NODES)]
        self.orders = [order_of(APP, seed + 2, name) for name in self.names]
        self.hardware = ["quick" if k % 2 else "slow" for k in range(NODES)]
        unlike = self.chance.normal(0, 0.03, NODES)
        self.pace = np.array([SLOW_CLASS if h == "slow" else 1.0 for h in self.hardware]) * np.exp(unlike)
        self.errs = np.exp(self.chance.normal(0, 0.3, NODES))
        self.new = new
        self.since: list[int | None] = [None] * NODES
        """When each began with the new release."""
        self.counts = self._no_counts()
        self.memory = BASE_MEMORY * (1 + self.chance.normal(0, 0.02, NODES))
        old = Release()
        self._count(np.arange(NODES), old, HISTORY_S * A_SECOND)
        self.before: dict[str, Sample] = {"quick": Sample(), "slow": Sample()}

    @staticmethod
    def _no_counts() -> dict[str, Any]:
        sizes = {"latency": LATENCY_BINS, "confidence": CONFIDENCE_BINS, "inputs": CONFIDENCE_BINS}
        plain = ("errors", "compared", "agreed", "restarts", "answered")
        return {name: np.zeros((NODES, n), dtype=np.int64) for name, n in sizes.items()} | {
            name: np.zeros(NODES, dtype=np.int64) for name in plain
        }

    def turns(self, allowed: list[bool], now: int) -> None:
        """Whoever may have it has it now; what it measured until then is its baseline."""
        for k, may in enumerate(allowed):
            if may and self.since[k] is None:
                self.since[k] = now
                before = self._sample([k])
                self.before[self.hardware[k]] = total((self.before[self.hardware[k]], before))
                for counts in self.counts.values():
                    counts[k] = 0
                self.memory[k] = BASE_MEMORY * (1 + self.chance.normal(0, 0.02))

    def passes(self) -> None:
        """Two seconds of work everywhere."""
        has_new = np.array([since is not None for since in self.since])
        for release, rows in ((self.new, np.flatnonzero(has_new)), (Release(), np.flatnonzero(~has_new))):
            if len(rows):
                self._count(rows, release, PER_LOOK)
        self.memory[has_new] *= 1 + self.new.leak_percent_s / 100 * LOOK_MS / 1_000

    def _count(self, rows: Any, release: Release, n: int) -> None:
        counts = self.counts
        wrong = self.chance.binomial(n, release.errors * self.errs[rows] / ERRS_MEAN)
        right = n - wrong
        counts["errors"][rows] += wrong
        counts["answered"][rows] += right
        latency = [_latencies(round(math.log(self.pace[k] * release.slower, 1.02))) for k in rows]
        counts["latency"][rows] += BATCH * self.chance.multinomial(right // BATCH, latency)
        counts["latency"][rows] += self.chance.multinomial(right % BATCH, latency)
        counts["confidence"][rows] += self.chance.multinomial(right, _sureness(release.unsure))
        counts["inputs"][rows] += self.chance.multinomial(right, _inputs(release.drifted))
        counts["compared"][rows] += right // 4
        counts["agreed"][rows] += self.chance.binomial(right // 4, release.agreed)
        counts["restarts"][rows] += self.chance.poisson(release.restarts_s * n / A_SECOND, len(rows))

    def sampled(self, *, new: bool) -> dict[str, Sample]:
        """What all that have, or have not, the new release measured, by class of hardware."""
        found = {}
        for hardware in ("quick", "slow"):
            rows = [k for k in range(NODES) if self.hardware[k] == hardware and (self.since[k] is not None) == new]
            if rows:
                found[hardware] = self._sample(rows)
        return found

    def _sample(self, rows: list[int]) -> Sample:
        def summed(name: str) -> Any:
            return self.counts[name][rows].sum(axis=0)

        latency = summed("latency")
        there = np.flatnonzero(latency)
        return Sample(
            answered=int(summed("answered")),
            errors=int(summed("errors")),
            latency=dict(zip(there.tolist(), latency[there].tolist(), strict=True)),
            confidence=tuple(summed("confidence").tolist()),
            inputs=tuple(summed("inputs").tolist()),
            reference=_REFERENCE,
            compared=int(summed("compared")),
            agreed=int(summed("agreed")),
            restarts=int(summed("restarts")),
            memory_bytes=int(self.memory[rows].max()),
        )


_SHAPES: dict[Any, Any] = {}


def _once(key: Any, make: Callable[[], Any]) -> Any:
    if key not in _SHAPES:
        _SHAPES[key] = make()
    return _SHAPES[key]


def _latencies(wider: int) -> Any:
    """The shape of latencies: lognormal around 7.4 ms with a tail, moved by so many buckets."""

    def make() -> Any:
        edges = np.array([latency_at(b - wider) for b in range(LATENCY_BINS)])
        z = (np.log(np.maximum(edges, 1e-9)) - 2.0) / 0.3
        below = 0.5 * (1 + np.array([math.erf(x / math.sqrt(2)) for x in z]))
        below[-1] = 1.0
        return np.maximum(0, np.diff(below, prepend=0.0))

    return _once(("latency", wider), make)


def _sureness(moved: float) -> Any:
    """Of most answers it is sure; `moved` is the share that is unsure instead, so that the distance is as great."""

    def make() -> Any:
        middles = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS
        usual = middles**7 * (1 - middles)
        unsure = np.where(middles < 0.4, 1.0, 0.0)  # where it hardly ever was: all that moves there tells
        return (1 - moved) * usual / usual.sum() + moved * unsure / unsure.sum()

    return _once(("sureness", moved), make)


def _inputs(drifted: float) -> Any:
    def make() -> Any:
        usual = np.append(np.full(CONFIDENCE_BINS - 1, 1 / (CONFIDENCE_BINS - 1)), 0.0)
        never_seen = np.append(np.zeros(CONFIDENCE_BINS - 1), 1.0)
        return (1 - drifted) * usual + drifted * never_seen

    return _once(("inputs", drifted), make)


_REFERENCE = tuple(np.random.default_rng(0).multinomial(REFERENCE, _inputs(0.0)).tolist())


def play(seed: int, new: Release, plan: Plan = PLAN) -> Ended:
    """One rollout, to its end."""
    fleet = Fleet(seed, new)
    rollout, now, answers = begin(APP, seed + 2, seed + 1, 0), 0, 0

    def ask(_: Rollout) -> list[Judged]:
        updated, others = fleet.sampled(new=True), fleet.sampled(new=False)
        baselines = [mixed(fleet.before, updated), mixed(others, updated)]
        return judge(plan.gates, total(updated.values()), baselines, least=LEAST, looks=len(plan.waves))

    while rollout.phase not in ("done", "undone", "undoing", "paused"):
        now += LOOK_MS
        rollout = advance(rollout, plan, _standings(fleet), now, ask).rollout
        fleet.turns([may_have(rollout, o, h) for o, h in zip(fleet.orders, fleet.hardware, strict=True)], now)
        fleet.passes()
        answers += PER_LOOK * sum(since is not None for since in fleet.since)
    had_it = sum(since is not None for since in fleet.since)
    broken = [s.gate for s in rollout.seen if s.verdict == "broken"]
    return Ended(rollout.phase, now / 1_000, answers, had_it, broken[0] if broken else "")


def _standings(fleet: Fleet) -> list[Standing]:
    return [
        Standing(name, order, hardware, "old" if since is None else "new")
        for name, order, hardware, since in zip(fleet.names, fleet.orders, fleet.hardware, fleet.since, strict=True)
    ]


def told(ended: list[Ended]) -> dict[str, Any]:
    """What became of many rollouts of one kind."""
    stopped = [e for e in ended if e.phase in ("undoing", "undone")]
    seconds, answers = sorted(e.after_s for e in ended), sorted(e.answers for e in ended)
    return {
        "rollouts": len(ended),
        "done": sum(e.phase == "done" for e in ended),
        "stopped": len(stopped),
        "undecided": sum(e.phase == "paused" for e in ended),
        "by": dict(Counter(e.gate for e in stopped)),
        "verdict_s": seconds[len(seconds) // 2],
        "answers": answers[len(answers) // 2],
        "answers_most": answers[-1],
        "share_of_fleet": round(sum(e.nodes for e in ended) / len(ended) / NODES, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1_000, help="of each healthy kind and each stated fault")
    parser.add_argument("--sizes", type=int, default=50, help="of each other size of a fault")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began, first = time.process_time(), options.seed * 1_000_000
    healthy: dict[str, dict[str, Any]] = {}
    bad: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[str, dict[str, Any]]] = {}
    for name, release in HEALTHY.items():
        healthy[name] = told([play(first + k, release) for k in range(options.rollouts)])
        _print(f"healthy, {name}", healthy[name])
    for kind, (unit, releases) in BAD.items():
        sizes[kind] = {}
        for i, release in enumerate(releases):
            n = options.rollouts if i == STATED else options.sizes
            found = told([play(first + k, release) for k in range(n)])
            sizes[kind][str(size_of(kind, release))] = found
            if i == STATED:
                bad[kind] = found
            _print(f"{kind} {size_of(kind, release)} ({unit})", found)
    result = {
        "false_stop_rate": _rate(healthy.values(), lambda f: f["rollouts"] - f["done"]),
        "miss_rate": _rate(bad.values(), lambda f: f["done"]),
        "false_stop_rates": {name: 1 - f["done"] / f["rollouts"] for name, f in healthy.items()},
        "miss_rates": {kind: f["done"] / f["rollouts"] for kind, f in bad.items()},
        "sizes": sizes,
        "healthy": healthy,
        "cpu_s": round(time.process_time() - began, 1),
    }
    print(f"false stops {result['false_stop_rate']:.4f}, misses {result['miss_rate']:.4f}, {result['cpu_s']} s of CPU")
    if options.json:
        print(json.dumps(result))


def _rate(found: Iterable[dict[str, Any]], count: Callable[[dict[str, Any]], int]) -> float:
    """The worst of all kinds."""
    return max(count(f) / f["rollouts"] for f in found)


def _print(what: str, found: dict[str, Any]) -> None:
    print(
        f"{what}: {found['done']} of {found['rollouts']} done, {found['stopped']} stopped, "
        f"{found['undecided']} undecided; half of them within {found['verdict_s']:.0f} s, {found['answers']} answers, "
        f"{found['share_of_fleet']:.0%} of the fleet",
        flush=True,
    )


if __name__ == "__main__":
    main()
