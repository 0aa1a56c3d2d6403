"""The row that a rollout is kept as, the plan by which it goes, and what follows from the two alone: whose turn it is.

How it goes on from there is `core.rollout`'s. Nothing here grows with the fleet.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal, NamedTuple

from batuta.core.gates import Verdict
from batuta.core.reasons import Reason
from batuta.core.sample import Sample
from batuta.kinds.base import Record
from batuta.kinds.gate import asks_agreement
from batuta.kinds.waves import EVERYTHING, Wave

Phase = Literal["rolling", "soaking", "paused", "undoing", "done", "undone", "aborted"]
Failing = Literal["undo", "pause"]

WHOLE: Final = 1 << 32
"""Orders are below this; a reach of it lets everybody have the release."""


class Trial(NamedTuple):
    """A way in which the nodes of a wave have the new release beside the old one, before they have it whole."""

    mode: Literal["shadow", "split"]
    share: float
    """Of the keys that it answers in a split."""
    for_ms: int

    def __str__(self) -> str:
        return "in the old one's shadow" if self.mode == "shadow" else f"answering {self.share:.0%} beside the old one"


class Plan(NamedTuple):
    """How a release arrives, as people wrote it."""

    waves: tuple[Wave, ...] = (EVERYTHING,)
    soak_ms: int = 0
    gates: tuple[str, ...] = ()
    on_failure: Failing = "undo"
    concurrency: int | None = None
    """So many nodes are in the middle of the change at one time; None for all of a wave."""
    wave_deadline_ms: int | None = None
    """A wave that is not through by then pauses the rollout."""
    approvals: bool = False
    """Somebody must agree before every wave but the first."""
    least: int = 200
    """Fewer answers decide nothing."""
    node_deadline_ms: int | None = None
    """A node that is not done by then has turned the release down."""
    trials: tuple[Trial, ...] = ()
    """What each wave goes through before it is switched."""


class Seen(Record):
    """A gate as it was last asked, for people."""

    gate: str
    verdict: Verdict
    values: dict[str, tuple[float, float, float]] = {}
    """By measurement: the least it may be, what was seen, the most it may be."""
    missing: tuple[str, ...] = ()


class Rollout(Record):
    """Where the arrival of one release stands: kept with the decided, O(1) in the size of the fleet."""

    namespace: str
    application: str
    revision: int
    previous: int
    """The last release that is trusted: what is undone goes back to it."""
    phase: Phase
    began_at: int
    since: int
    """Instant at which this phase of this wave began."""
    wave: int = 0
    wave_since: int = 0
    reach: int = 0
    """Whose order is below has its turn."""
    tolerated: tuple[int, ...] = ()
    """Releases of rollouts that this one superseded: who has one keeps it until its turn comes."""
    approved: int = 0
    """Waves after the first that somebody agreed to."""
    turned_down: dict[str, str] = {}
    """Nodes that refused the release or failed with it: the class of their hardware."""
    stopped: tuple[str, ...] = ()
    """Classes of hardware that keep the old release."""
    before: Sample = Sample()
    """What the nodes that had their turn measured with the old release: a baseline."""
    seen: tuple[Seen, ...] = ()
    reason: Reason | None = None
    """Why it waits, is paused or was undone."""
    resumes: Phase = "rolling"
    """What a paused one goes on with."""
    back: int = WHOLE
    """While it is undone: whose order is not below this has the old release again."""
    turns: tuple[tuple[int, int], ...] = ()
    """The reach, and the instant at which it came to be that: by this each node's deadline is known. The last few."""
    passed: tuple[int, ...] = ()
    """Orders below the reach that were passed by: they could not be reached, or were kept from it. Their turn is still
    to come."""
    asked_at: int = 0
    """When the gates were asked last."""
    tries: int = 0
    """How often people asked for it again. Nodes remember what they turned down, and try it once more only when it is
    placed anew."""
    stage: int = 0
    """How many of the trials this wave is through with; when that is all of them, its nodes are switched."""
    stage_since: int = 0
    switched: int = 0
    """Where there are trials: whose order is below this, and whose turn it is, is through with them."""

    @property
    def app(self) -> str:
        return f"{self.namespace}/{self.application}"

    @property
    def key(self) -> str:
        """Its key in the decided table."""
        return f"rollout.{self.namespace}.{self.application}"

    @property
    def is_over(self) -> bool:
        return self.phase in ("done", "undone", "aborted")


class Standing(NamedTuple):
    """One node that runs, or is to run, what changed."""

    node: str
    order: int
    hardware: str
    state: Literal["old", "updating", "new", "down"]
    """`down`: it refused the release, or fails with it."""
    reachable: bool = True
    may: bool = True
    """False while an update window, its owner, a lock or the kind of link keeps it from changing."""
    shut: bool = False
    """Its update window is: it is waited for, for that will open."""
    selected: int | None = None
    """The first wave that names it by its condition."""
    detail: str = ""
    """The first words of what is wrong with it."""


class Step(NamedTuple):
    rollout: Rollout
    look_at: int | None = None
    """When to look again if nothing happens."""


def order_of(app: str, revision: int, node: str) -> int:
    """A node's place among all for one release: other nodes are first each time."""
    return int.from_bytes(hashlib.blake2b(f"{app} {revision} {node}".encode(), digest_size=4).digest())


def may_have(rollout: Rollout, order: int, hardware: str, selected: int | None = None) -> bool:
    """Is the new release for this node, now?"""
    if hardware in rollout.stopped:
        return False
    if rollout.phase == "done":
        return True
    if rollout.phase == "undone" or order >= rollout.back:
        return False
    if selected is not None and selected <= rollout.wave and rollout.reach > 0:
        return True
    return order < rollout.reach and order not in rollout.passed


def trial_of(rollout: Rollout, plan: Plan) -> Trial | None:
    """How the nodes of this wave have the release now; None while there is nothing to try, or no longer."""
    if rollout.phase not in ("rolling", "soaking", "paused") or rollout.stage >= len(plan.trials):
        return None
    return plan.trials[rollout.stage]


def has_whole(rollout: Rollout, plan: Plan, order: int, selected: int | None = None) -> bool:
    """Of a node that has its turn: is it through with all trials?"""
    if not plan.trials or rollout.phase == "done" or order < rollout.switched:
        return True
    if selected is None or selected > rollout.wave:
        return False
    return selected < rollout.wave or rollout.stage >= len(plan.trials)


def gates_of(rollout: Rollout, plan: Plan) -> tuple[str, ...]:
    """Those that can be answered now: whether two releases agree is only seen in shadow."""
    trial = trial_of(rollout, plan)
    if (trial is not None and trial.mode == "shadow") or not any(each.mode == "shadow" for each in plan.trials):
        return plan.gates
    return tuple(gate for gate in plan.gates if not asks_agreement(gate))


def begun_at(rollout: Rollout, order: int, is_selected: bool) -> int | None:
    """When a node's turn came, or a little later; None while it has not come."""
    if is_selected and rollout.reach > 0:
        return rollout.wave_since
    return next((at for reach, at in rollout.turns if order < reach), None)


def begin(app: str, revision: int, previous: int, now: int, superseded: Rollout | None = None) -> Rollout:
    """The rollout of a new release. The one that it supersedes ends; its nodes keep what they have until their turn."""
    namespace, application = app.split("/")
    tolerated: tuple[int, ...] = ()
    if superseded is not None and superseded.phase != "done":
        previous = superseded.previous
        if superseded.phase != "undone":
            tolerated = (*superseded.tolerated, superseded.revision)[-4:]
    return Rollout(
        namespace=namespace, application=application, revision=revision, previous=previous, phase="rolling",
        began_at=now, since=now, wave_since=now, tolerated=tolerated,
    )  # fmt: skip
