"""run(scenario, seed): the whole twin as one pure function. First all that can fail fails, then all heals.

The first phase proves safety at every instant; the second proves that the fleet finds back: every wish that fits is
ready exactly once, assignments and reality agree, and then nothing moves any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.twin.amiss import MEASURED_MS, amiss, processes
from batuta.twin.laws import Broken, is_act
from batuta.twin.looks import Figures, Looks
from batuta.twin.play import Play
from batuta.twin.rules import RULES, Rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.twin.scenario import Scenario

POLL_MS = 2_000
DRAIN_MS = 12_000
"""What was sent before the healing may be under way for so long."""
QUIET_MS = 10_000
"""A converged fleet is watched for so long."""


class Verdict(NamedTuple):
    """What a run has shown."""

    ok: bool
    broken: tuple[Broken, ...]
    story: tuple[str, ...]
    """The last lines of what happened."""
    trace: str
    """Digest of all that happened: equal for equal runs."""
    healed_ms: int | None
    """How long the healed fleet took to converge."""
    counts: dict[str, int]
    looks: tuple[Figures, ...] = ()
    """The figures over time."""
    met: dict[str, int] = {}
    """When each expectation `eventually` was met, by its name."""
    uplinks: dict[str, tuple[int, int]] = {}
    """Bytes up and down, by site."""


def run(scenario: Scenario, seed: int, rules: Rules = RULES, tell: Callable[[int, int], None] | None = None) -> Verdict:
    """Plays the scenario once. Equal arguments give equal verdicts, on any machine. `tell` hears how far it is."""
    play = Play(scenario, seed, rules)
    looks = Looks(play, amiss)
    instants = {scenario.duration_ms, *(e.at_ms for e in scenario.expectations)}
    if scenario.look_ms:
        instants |= set(range(scenario.look_ms, scenario.duration_ms, scenario.look_ms))
    expectations = sorted(scenario.expectations, key=lambda e: e.at_ms)
    for at_ms in sorted(instants):
        play.run_to(at_ms)
        while expectations and expectations[0].at_ms <= at_ms:
            expectation = expectations.pop(0)
            ready = sum(p.ready for p in processes(play) if p.instance.app == expectation.application)
            if ready < expectation.ready:
                play.laws.breaks("expectation", f"{ready} of {expectation.ready} ready of {expectation.application}")
        if scenario.look_ms:
            looks.look()
        if tell is not None:
            tell(at_ms, scenario.duration_ms)
    play.heal()
    healed_ms = _settle(play, looks if scenario.look_ms else None)
    if scenario.look_ms:
        looks.look(is_last=True)
        looks.close()
    world = play.world
    world.counts |= {
        "events": world.events, "acts": play.laws.acts, "decisions": play.broker.decisions,
        "writes": play.broker.writes, "moves": play.laws.moves, "dead verdicts": play.laws.dead,
        "false dead verdicts": play.laws.falsely_dead, **play.traffic(),
    }  # fmt: skip
    broken = tuple(play.laws.broken)
    counts = dict(sorted(world.counts.items()))
    story, figures = tuple(world.story), tuple(looks.figures)
    uplinks = {
        site: (sum(n.wire.bytes_up for n in nodes), sum(n.wire.bytes_down for n in nodes))
        for site, nodes in sorted(play.broker.sites.items())
    }
    return Verdict(not broken, broken, story, world.digest, healed_ms, counts, figures, looks.met, uplinks)


def _settle(play: Play, looks: Looks | None = None) -> int | None:
    """Waits until nothing is amiss, then watches that nothing moves; says how long it took."""
    begun = play.at_ms
    play.run_to(begun + (DRAIN_MS if not play.scenario.demands else MEASURED_MS))
    left = ["not yet looked at"]
    while left and play.at_ms - begun < play.scenario.settle_ms:
        play.run_to(play.at_ms + POLL_MS)
        left = amiss(play)
        if looks is not None:
            looks.look()
    if left:
        play.laws.breaks("converges", "; ".join(left[:5]))
        return None
    took_ms = play.at_ms - begun
    acts = play.laws.acts
    play.run_to(play.at_ms + QUIET_MS)
    if play.laws.acts != acts:
        play.laws.breaks("stays_converged", f"{play.laws.acts - acts} acts in {QUIET_MS} ms of rest")
    hub = play.broker.hub
    if hub is not None:
        found = [c for c in play.rules.decide(hub.known(), play.world.now).changes if is_act(c)]
        if found:
            play.laws.breaks("stays_converged", "a second pass writes " + ", ".join(c.key for c in found))
    return took_ms
