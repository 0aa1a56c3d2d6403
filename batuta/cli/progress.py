"""How an application comes true, line by line, while `batuta apply --wait` waits."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from batuta.cli.text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.client import Client, Found
    from batuta.kinds.application import Application

SETTLED_S, SETTLED_AGAIN_S = 2.0, 10.0
"""What is as wished must stay so for a while: longer when something had to be started again. A program without a
readiness probe is ready as soon as it runs, and may end a moment later. The time to wait does not cut this short."""
ROWS_MAX = 12
GIVE_UP_S = 10.0
"""What fails for so long, with a reason that does not pass by itself, is not waited for any longer."""


class Goal(NamedTuple):
    """What is waited for: this application, at this release or a later one."""

    name: str
    namespace: str
    release: int


def goal_of(hub: Client, application: Application) -> Goal:
    """To be asked before it is applied: a change of the components makes a new release, which must be the one seen."""
    from batuta.errors import NotFound

    name, namespace = application.ref.name, application.ref.namespace
    try:
        before = hub.get(type(application), name, namespace=namespace)
    except NotFound:
        return Goal(name, namespace, 1)
    known = int(before.status.get("release") or 0)
    return Goal(name, namespace, known + (before.resource.spec.components != application.spec.components))


def wait(hub: Client, goal: Goal, timeout_s: float) -> None:
    """Tell every change until it is so. Raises WaitedTooLong with the first real reason in the hub's words."""
    from batuta.client import WaitedTooLong
    from batuta.kinds.application import Application

    progress = Progress(goal, hub)
    began, until = time.monotonic(), time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, until - time.monotonic())
        try:
            hub.wait(Application, goal.name, progress.is_so, namespace=goal.namespace, timeout_s=min(left_s, GIVE_UP_S))
        except WaitedTooLong:
            if time.monotonic() < until and not progress.has_failed_for(GIVE_UP_S):
                continue
            why = "; ".join(filter(None, (progress.first_reason(), _nearest(hub, goal))))
            raise WaitedTooLong(
                f"applications/{goal.name} is {progress.state or 'not seen'} after {time.monotonic() - began:.0f} s"
                + (f": {why}" if why else ""),
                next_step=f"see `batuta why {goal.name}`",
            ) from None
        if _stays_so(hub, goal, progress):
            click.echo(f"applications/{goal.name} is {progress.state}: {progress.ready} ready")
            return


def _stays_so(hub: Client, goal: Goal, progress: Progress) -> bool:
    from batuta.client import WaitedTooLong
    from batuta.kinds.application import Application

    settled_s = SETTLED_AGAIN_S if progress.has_restarted else SETTLED_S
    try:
        hub.wait(Application, goal.name, lambda f: not progress.is_so(f), namespace=goal.namespace, timeout_s=settled_s)
    except WaitedTooLong:
        return True
    return False


def _nearest(hub: Client, goal: Goal) -> str:
    """The node that came nearest to taking what is nowhere, and what it lacks."""
    for answer in hub.why(goal.name, namespace=goal.namespace):
        if nearest := answer.get("nearest"):
            return f"nearest: {clean(nearest['reason']['sentence'])}"
    return ""


class Progress:
    """What was last told about one application."""

    def __init__(self, goal: Goal, hub: Client) -> None:
        self._goal = goal
        self._hub = hub
        self._arrives = ""
        """How the release arrives, where it is not the first: waves, nodes."""
        self._status: Mapping[str, Any] = {}
        self._told = ""
        self._painted = 0
        """Lines that stand on the terminal and are painted over."""
        self._failing_since: float | None = None

    @property
    def state(self) -> str:
        return str(self._status.get("state", ""))

    @property
    def ready(self) -> str:
        return str(self._status.get("ready", ""))

    def is_so(self, found: Found[Any]) -> bool:
        """Is it as declared? Tells what changed on the way."""
        self._status = found.status
        is_newest = int(self._status.get("release") or 0) >= self._goal.release
        # Nothing wanted is as good as everything running, once the hub has looked at it.
        if self._has_arrived() and is_newest and self.state in ("ok", "unassigned"):
            return True
        self._tell()
        if self.state != "failing":
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = time.monotonic()
        return False

    def _has_arrived(self) -> bool:
        """Is its rollout through? Raises BatutaError when it goes no further until somebody does something."""
        from batuta.cli.rollout_page import brief
        from batuta.errors import BatutaError, NotFound

        try:
            found = self._hub.rollouts.get(self._goal.name, namespace=self._goal.namespace)
        except NotFound:
            return True
        if found.resource.spec.release < self._goal.release:
            return True  # of an earlier change: this one changes nothing that runs, or is not decided yet
        phase, reason = found.status.get("phase"), found.status.get("reason") or {}
        if phase in ("paused", "undoing", "undone", "aborted"):
            why = f": {clean(reason['sentence'])}" if reason else ""
            step = clean(str(reason.get("next") or f"see `batuta rollout status {self._goal.name}`"))
            raise BatutaError(f"rollouts/{self._goal.name} is {phase}{why}", next_step=step)
        self._arrives = "" if phase == "done" else brief(found.status)
        return phase == "done"

    @property
    def has_restarted(self) -> bool:
        return any(int(each.get("starts") or 0) > 1 for each in self._instances())

    def _instances(self) -> list[Mapping[str, Any]]:
        return [i for c in self._status.get("components") or () for i in c.get("instances", ())]

    def _tell(self) -> None:
        """At a terminal one line an instance, painted over the last ones; elsewhere a line for every change."""
        reason = self._arrives or clean(str(self._status.get("reason") or ""))
        if not sys.stderr.isatty():
            line = f"{self.state} {self.ready}  {reason}".rstrip()
            if line != self._told:
                click.echo(f"  {self._goal.name}: {line}", err=True)
                self._told = line
            return
        width = max(20, shutil.get_terminal_size().columns - 1)
        rows = [f"{self._goal.name}  {self.state} {self.ready}  {self._arrives}".rstrip()]
        for each in self._instances()[:ROWS_MAX]:
            why = clean(str((each.get("reason") or {}).get("sentence") or "")).partition(": ")[2]
            starts = f" (start {each['starts']})" if int(each.get("starts") or 0) > 1 else ""
            rows.append(f"  {each['name'].rpartition('/')[2]}  {each['node']}  {each['phase']}{starts}  {why}".rstrip())
        if not self._instances() and reason:
            rows.append(f"  {reason}")
        back = f"\x1b[{self._painted}F" if self._painted else ""
        body = "".join(f"{row if len(row) <= width else row[: width - 1] + '…'}\x1b[K\n" for row in rows)
        click.echo(f"{back}{body}\x1b[J", nl=False, err=True)
        self._painted = len(rows)

    def has_failed_for(self, seconds: float) -> bool:
        return self._failing_since is not None and time.monotonic() - self._failing_since >= seconds

    def first_reason(self) -> str:
        """The first that does not pass by itself, else the first at all."""
        reasons = self._status.get("reasons") or []
        real = [r for r in reasons if not r.get("waits")] or reasons
        return clean(str(real[0].get("sentence", ""))) if real else ""
