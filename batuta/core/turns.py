"""Turns: a rollout read off the fleet. Whose turn it is, where each node stands, and what was measured by whom.

While a rollout is under way a component that it changes has two asks: the new release's, for the nodes that have their
turn, and the trusted one's, for all others. What is left alone whatever it is, is *frozen*: everything while the
rollout is paused or was aborted, and nodes whose update window is shut, whose link is paid for, or that start a little
later than others. Nothing is frozen that has to be healed, nor anything that goes back to the trusted release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from batuta.core import traits
from batuta.core.gates import Judged, judge
from batuta.core.reasons import CATALOGUE
from batuta.core.rollout import WHOLE, Plan, Rollout, Standing, Trial, begun_at, gates_of, order_of, trial_of
from batuta.core.sample import Sample, total
from batuta.core.trial import Trials, Tried, can_try
from batuta.core.trusted import as_now, trusted_of
from batuta.core.wish import Ask
from batuta.kinds.calendar import opening
from batuta.kinds.gate import asks_agreement
from batuta.kinds.waves import EVERYTHING, share_of, waves_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batuta.core.decided import Instance, Release, Released
    from batuta.core.draft import Draft
    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.observed import InstanceReport
    from batuta.core.reasons import Reason
    from batuta.core.state import Held
    from batuta.kinds.application import Application
    from batuta.kinds.rolling import Rollout as Said

State = Literal["old", "updating", "new", "down"]
STARTS_MAX = 3
"""What had to be started so often, and is not up, does not work."""
PAST_AT_LEAST = 4
"""One part in so many of what others measure is still a past to compare with."""
_SCRAMBLE, _LAST = 2_654_435_761, 2**62


def plan_of(application: Application | None) -> Plan:
    """How the releases of an application arrive, as people wrote it."""
    if application is None:
        return Plan()
    said = application.spec.rollout
    return Plan(
        waves=waves_of(said.waves) if said.waves is not None else (EVERYTHING,), soak_ms=int(said.soak_ms),
        gates=said.gates, on_failure=said.on_failure, concurrency=said.concurrency,
        wave_deadline_ms=None if said.deadline.wave_ms is None else int(said.deadline.wave_ms),
        approvals=said.approvals, least=said.least_answers,
        node_deadline_ms=None if said.deadline.node_ms is None else int(said.deadline.node_ms), trials=_trials_of(said),
    )  # fmt: skip


def _trials_of(said: Said) -> tuple[Trial, ...]:
    share = share_of(said.split) if said.split is not None else None
    shadow = Trial("shadow", 1.0, int(said.shadow_ms)) if said.shadow_ms is not None else None
    split = Trial("split", share, int(said.soak_ms)) if share is not None else None
    return tuple(each for each in (shadow, split) if each is not None)


class Place(NamedTuple):
    """A node and what of the changed components it holds."""

    node: str
    row: int
    held: tuple[Held, ...]


class Turns:
    """One rollout, as the fleet is now."""

    def __init__(self, draft: Draft, rollout: Rollout, newest: Release, trusted: Release) -> None:
        self.draft = draft
        self.fleet: Fleet = draft.fleet
        self.app = rollout.app
        self.rollout = rollout
        application = draft.state.application(self.app)
        self.spec = application.spec.rollout if application is not None else None
        self.plan = plan_of(application)
        self.old: dict[str, Released] = {r.component.name: r for r in as_now(draft, trusted, newest).components}
        self.new: dict[str, Released] = {r.component.name: r for r in newest.components}
        self.changed = self._changed()
        """Components that are to run otherwise, by name."""
        if self.plan.trials and not any(can_try(self.old[name], self.new[name]) for name in self.changed):
            # Where nothing can be tried, nothing agrees either.
            gates = tuple(gate for gate in self.plan.gates if not asks_agreement(gate))
            self.plan = self.plan._replace(trials=(), gates=gates)
        self._shut: Bools | None = None
        self._selected: Ints | None = None
        self._fits: dict[str, Bools] = {}

    def _changed(self) -> frozenset[str]:
        both = self.old.keys() & self.new.keys()
        found = {name for name in both if self.old[name].revision != self.new[name].revision}
        if self.rollout.tolerated:
            held = (h.instance for h in self.draft.held(self.app))
            found |= {i.component for i in held if i.component in both and i.revision in self.rollout.tolerated}
        return frozenset(found)

    # --- By row ---

    @property
    def order(self) -> Ints:
        """By row: its place among all."""
        app, revision, names = self.app, self.rollout.revision, self.fleet.names
        found: Ints = self.fleet.column(
            ("order", app, revision), self.fleet.machine, lambda row: order_of(app, revision, names[row]), np.int64
        )
        return found

    def has_turn(self) -> Bools:
        """By row: is the new release for this node, now?"""
        rollout, fleet = self.rollout, self.fleet
        if rollout.phase == "undone":
            return np.zeros(fleet.capacity, np.bool_)
        if rollout.phase == "done":
            found: Bools = fleet.present.copy()
        else:
            found = self.order < rollout.reach
            if rollout.passed:
                found &= ~np.isin(self.order, rollout.passed)
            if rollout.reach > 0:
                found |= self.selected() <= rollout.wave
            found &= self.order < rollout.back
        if rollout.stopped:
            codes, names = traits.hardware(fleet)
            stopped = [names[name] for name in rollout.stopped if name in names]
            found &= ~np.isin(codes, stopped)
        for node in rollout.turned_down:
            row = fleet.row_of.get(node)
            if row is not None:
                found[row] = False
        return found

    def has_whole(self) -> Bools:
        """By row: has it its turn, and is it through with all trials?"""
        rollout, found = self.rollout, self.has_turn()
        if not self.plan.trials or rollout.phase == "done":
            return found
        waves = rollout.wave + (rollout.stage >= len(self.plan.trials))
        found &= (self.order < rollout.switched) | (self.selected() < waves)
        return found

    def selected(self) -> Ints:
        """By row: the first wave whose condition names it."""
        if self._selected is None:
            found = np.full(self.fleet.capacity, _LAST, np.int64)
            for i, wave in reversed(list(enumerate(self.plan.waves))):
                if wave.where is not None:
                    found[self.fleet.where(wave.where) == 1] = i
            self._selected = found
        return self._selected

    def frozen(self) -> Bools | None:
        """By row: is what runs there left alone, whichever release it is of? None for nowhere."""
        if self.rollout.phase in ("paused", "aborted"):
            return np.ones(self.fleet.capacity, np.bool_)
        found: Bools | None = None
        for kept in (self.shut(), self.metered(), self._early()):
            if kept is not None:
                found = kept if found is None else found | kept
        # What goes back to the trusted release waits for nothing.
        return None if found is None else found & self.has_turn()

    def shut(self) -> Bools | None:
        """By row: is no update window open there? None for nowhere; `wakes` says when that changes."""
        if self.spec is None or not self.spec.windows or self.spec.priority == "security":
            return None
        if self._shut is None:
            fleet, is_open = self.fleet, dict[int, bool]()
            for name in sorted({fleet.site_names[code] for code in np.unique(fleet.site[fleet.present]).tolist()}):
                at_site = next((s.spec.time_zone for s in fleet.chain(name) if s.spec.time_zone is not None), "UTC")
                found = [opening(w.opens, w.closes, w.zone or at_site, self.draft.now) for w in self.spec.windows]
                is_open[fleet.site_code[name]] = any(each.is_open for each in found)
                for each in found:
                    if each.edge is not None:
                        self.draft.wake(each.edge)
            closed = [code for code, is_one in is_open.items() if not is_one]
            self._shut = np.isin(fleet.site, closed) & fleet.present
        return self._shut

    def metered(self) -> Bools | None:
        """By row: must it wait until its way to the hub costs nothing?"""
        if self.spec is None or self.spec.links == "any" or self.spec.priority == "security":
            return None
        fleet = self.fleet
        paid = traits.trait(
            fleet, "metered", lambda node, _: int(any(s.spec.uplink.metered for s in fleet.chain(node.spec.site)))
        )
        return paid > 0

    def _early(self) -> Bools | None:
        """By row: is it not yet its instant within the wave?"""
        jitter_ms = int(self.spec.jitter_ms) if self.spec is not None else 0
        if not jitter_ms or self.rollout.is_over:
            return None
        at = self.rollout.wave_since + ((self.order * _SCRAMBLE & (WHOLE - 1)) * jitter_ms >> 32)
        later = at[at > self.draft.now]
        if later.size:
            self.draft.wake(int(later.min()))
        return at > self.draft.now

    def fits(self, component: str) -> Bools:
        """By row: can the node ever take a changed component as the new release has it, were there nothing else?"""
        found = self._fits.get(component)
        if found is None:
            ask, fleet = Ask(self.app, self.new[component], self.fleet), self.fleet
            found = np.zeros(fleet.capacity, np.bool_)
            for variant, memory_bytes in enumerate(ask.requests):
                found |= ask.suits(variant) & (fleet.memory_total >= memory_bytes)
            found = self._fits[component] = found & ask.eligible() & (fleet.cpu_total >= ask.cpu_millis)
        return found

    # --- By node ---

    def places(self) -> list[Place]:
        """Every node that holds what changes, or has just been emptied of it."""
        found: dict[str, list[Held]] = {}
        slots: set[tuple[str, str]] = set()
        for h in self.draft.held(self.app):
            if h.instance.component in self.changed:
                found.setdefault(h.node, []).append(h)
                slots.add((h.instance.component, h.instance.slot))
        for fence in self.draft.fences(self.app).values():
            # Stopped, and not yet surely gone: its successor is still to come.
            if fence.component in self.changed and (fence.component, fence.slot) not in slots:
                found.setdefault(fence.node, [])
        row_of = self.fleet.row_of
        return [Place(node, row_of[node], tuple(those)) for node, those in sorted(found.items()) if node in row_of]

    def standings(self, places: Iterable[Place]) -> list[Standing]:
        fleet, now, rollout = self.fleet, self.draft.now, self.rollout
        codes, names = traits.hardware(fleet)
        by_code = {code: name for name, code in names.items()}
        selected = self.selected() if any(wave.where is not None for wave in self.plan.waves) else None
        is_undoing = rollout.phase == "undoing"
        shut = None if is_undoing else self.shut()
        metered = None if is_undoing else self.metered()
        trials = Trials(self) if trial_of(rollout, self.plan) is not None else None
        found: list[Standing] = []
        for place in places:
            node, row, held = place
            tried = trials.of(place) if trials is not None and node not in rollout.turned_down else None
            state, detail = self._state(node, row, held, tried)
            wave = int(selected[row]) if selected is not None else _LAST
            if fleet.fresh[row] and not fleet.instances[row]:
                # Nobody else asks when a node falls silent that was just emptied.
                self.draft.wake(int(fleet.heard[row]) + fleet.missed_ms)
            found.append(
                Standing(
                    node=node, order=int(self.order[row]), hardware=by_code[int(codes[row])], state=state,
                    reachable=bool(fleet.fresh[row]), detail=detail, selected=None if wave == _LAST else wave,
                    may=bool(fleet.held_until[row] <= now) and not (metered is not None and metered[row])
                    and (tried is None or tried.has_room) and not self._is_locked(node, held)
                    and all(self.is_new(h.instance) or self.fits(h.instance.component)[row] for h in held),
                    shut=bool(shut is not None and shut[row]),
                )
            )  # fmt: skip
        return found

    def _is_locked(self, node: str, held: Sequence[Held]) -> bool:
        """Does anything there ask to be left as it is for now?"""
        reports = (self.draft.reported(node, h.instance) for h in held)
        return any(report is not None and report.locked for report in reports)

    def _state(self, node: str, row: int, held: Sequence[Held], tried: Tried | None) -> tuple[State, str]:
        """Where a node stands, and the first words of what is wrong."""
        rollout = self.rollout
        if node in rollout.turned_down:
            return "down", ""
        fresh = [h for h in held if self.is_new(h.instance)]
        state: State = "updating" if fresh or not held else "old"
        if tried is not None and held:
            for report in tried.reports:
                if report is not None and (wrong := self.wrong(report)) is not None:
                    return "down", wrong
            if all(r is not None and r.phase == "ready" for r in tried.reports):
                return "new", ""
            state = "updating" if any(tried.reports) else "old"
        elif fresh:
            reports = [self.draft.reported(node, h.instance) for h in fresh]
            for report in reports:
                if report is not None and (wrong := self.wrong(report)) is not None:
                    return "down", wrong
            if len(fresh) == len(held) and all(r is not None and r.phase == "ready" for r in reports):
                return "new", ""
        limit_ms = self.plan.node_deadline_ms
        # What has no predecessor here came to be healed or is one more: it may have come just now.
        left = [h for h in fresh if not self._is_ready(node, h)]
        if fresh and len(fresh) == len(held) and all(h.instance.fallback is None for h in left):
            limit_ms = None
        if limit_ms is not None and rollout.phase in ("rolling", "soaking") and self.fleet.fresh[row]:
            began = begun_at(rollout, int(self.order[row]), int(self.selected()[row]) <= rollout.wave)
            if began is not None:
                # Who was away has as long as anybody else, from when it is back.
                due = max(began, rollout.stage_since, int(self.fleet.since[row])) + limit_ms
                if self.draft.now >= due:
                    return "down", f"not done within {limit_ms // 1000} s"
                self.draft.wake(due)
        return state, ""

    def _is_ready(self, node: str, held: Held) -> bool:
        report = self.draft.reported(node, held.instance)
        return report is not None and report.phase == "ready"

    def wrong(self, report: InstanceReport) -> str | None:
        """Why an instance of the new release does not work there; None while it may."""
        if report.phase == "refused":
            return _words(report.reason) or "it was refused"
        if self.rollout.is_over or report.phase != "backoff" or report.starts < STARTS_MAX:
            return None
        return _words(report.reason) or f"started {report.starts} times"

    def is_new(self, instance: Instance) -> bool:
        released = self.new.get(instance.component)
        return released is not None and released.revision == instance.revision

    # --- What was measured ---

    def judged(self, places: Iterable[Place], standings: Sequence[Standing]) -> list[Judged]:
        """The gates on what updated nodes measured, against what was before and what others measure now."""
        there = {place.node: place for place in places}
        done = [s for s in standings if s.state == "new"]
        classes = {s.hardware for s in done}
        # While it is tried, the old release measures on the very same nodes, at the very same time.
        others = [s for s in standings if s.state in ("old", "new") and s.hardware in classes and s.reachable]
        before, elsewhere = self.rollout.before, self.sample((there[s.node] for s in others), new=False)
        measured = self.sample((there[s.node] for s in done), new=True)
        # What was before grows no more: where it is little, and the two others are much, it would keep gates open for
        # ever. An application that was changed soon after it was installed has no past to speak of.
        has_past = before.asked * PAST_AT_LEAST >= min(measured.asked, elsewhere.asked)
        baselines = [before, elsewhere] if has_past else [elsewhere]
        return judge(
            gates_of(self.rollout, self.plan), measured, [b for b in baselines if b.asked or b.instance_ms],
            least=self.plan.least, looks=len(self.plan.waves) * (1 + len(self.plan.trials)),
        )  # fmt: skip

    def sample(self, places: Iterable[Place], *, new: bool) -> Sample:
        """What the changed components of these nodes measured, all in all, with the new release or with others."""
        found: list[Sample] = []
        for place in places:
            for h in place.held:
                there = (h.instance,) if h.instance.newcomer is None else (h.instance, h.instance.newcomer)
                for instance in there:
                    report = self.draft.reported(place.node, instance) if self.is_new(instance) is new else None
                    if report is not None and report.measures is not None and report.measures.sample is not None:
                        found.append(report.measures.sample)
        return total(found)


def _words(reason: Reason | None) -> str:
    """In a node's own words, which may be those of a newer version."""
    if reason is None:
        return ""
    return str(reason) if reason.code in CATALOGUE else f"{reason.subject}: {reason.code} ({reason.detail})"


def turns_of(draft: Draft, app: str) -> Turns | None:
    """The rollout of an application's newest release, unless there is none or it was undone."""
    rollout, newest = draft.rollout(app), draft.releases(app)[-1:]
    if rollout is None or not newest or rollout.phase == "undone":
        return None
    trusted = trusted_of(draft, rollout)
    return None if trusted is None else Turns(draft, rollout, newest[0], trusted)
