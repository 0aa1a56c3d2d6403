"""One call: from the gate through attempts to an answer. What to do is the core's; here it is done.

An attempt that fails is followed by another one elsewhere, as long as the deadline and the budget of retries allow. One
that is not answered within the patience of its class is not given up: another is asked beside it, and the first answer
counts. What an instance says about the request itself (4xx) is the answer; asking another would not change it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.core import mesh_breaker, mesh_budget, mesh_deadline
from batuta.core.beside import HEADER_INSTANCE
from batuta.core.mesh import Candidate, choose
from batuta.core.mesh_budget import Budget
from batuta.core.mesh_gate import Gate
from batuta.core.serving import CARD_EVERY_MS
from batuta.dataflow.mesh.cards import Wanted
from batuta.dataflow.mesh.talk import Broken, Reply, TooLarge, Unreached, carried, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from batuta.core.mesh_deadline import Past
    from batuta.dataflow.mesh.cards import Cards, Known
    from batuta.dataflow.mesh.talk import Ask
    from batuta.dataflow.mesh.tally import Tally

    Send = Callable[[Known, Ask, int, str], Coroutine[Any, Any, Reply]]
    """Brings an ask to an instance with so many milliseconds left and under this trace."""
    LookFar = Callable[[Wanted], Awaitable[bool]]
    """Asks the hub who serves it elsewhere; returns when that is known, and whether anybody does."""

AT_ONCE: Final = 128
ROOM: Final = 1_024
SETTLED_MS: Final = CARD_EVERY_MS + 500
"""Whoever serves at this site has been heard so long after the start."""
UNWELL_WAIT_MS: Final = 3_000
"""How long a call waits for one of several instances to become well: as long as a site's links need to find another
way."""
LOST_MS: Final = 1_000
PAUSE_MS: Final = 20
PAUSE_MOST_MS: Final = 200
ILL: Final = (500, 502, 503, 504)
FINAL: Final = ("model_failed", "too_large")
"""Codes of answers that the same instance would give again."""


def clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Calls:
    """All calls of this process."""

    def __init__(self, cards: Cards, send: Send, tally: Tally, look_far: LookFar | None = None) -> None:
        self.cards = cards
        self.tally = tally
        self.budget = Budget(at=clock_ms())
        self.gate: Gate[asyncio.Future[bool]] = Gate(AT_ONCE, ROOM)
        self._send = send
        self._look_far = look_far
        self.why_not_far: Callable[[], str] = str
        """Why nobody at other sites was found, in words; "" when there is nothing to say."""
        self.meant: Callable[[Wanted], Wanted] = _as_said
        """With the version that an alias stands for."""
        self._born = clock_ms()
        self._alone: deque[asyncio.Future[None]] = deque()
        """Calls that have nobody to ask, first come first."""
        cards.stir = self.stir

    def stir(self) -> None:
        """Something changed: whoever waits for a well instance looks again."""
        while self._alone:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._alone:
            waiting = self._alone.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    # --- Through the gate ---

    async def call(self, ask: Ask) -> Reply:
        """An answer, whatever happens."""
        reply = await self._admitted(ask)
        self.tally.ended(ask, reply)
        return reply

    async def _admitted(self, ask: Ask) -> Reply:
        now = clock_ms()
        self.budget = mesh_budget.requested(self.budget, now)
        past = self.tally.past(ask.namespace, ask.model, now)
        if not mesh_deadline.can_be_met(ask.deadline, now, past):
            return late(ask, now, past)
        ticket: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        offered = self.gate.offer(ticket, ask.urgency, ask.deadline)
        if offered.left is not None and not offered.left.done():
            offered.left.set_result(False)
        if offered.fate == "shed":
            return self._shed(ask)
        if offered.fate == "waits" and (refused := await self._wait(ask, ticket)) is not None:
            return refused
        try:
            return await _Attempts(self, ask).run()
        finally:
            self.gate.done()
            self._let_in()

    async def _wait(self, ask: Ask, ticket: asyncio.Future[bool]) -> Reply | None:
        """Until it is this one's turn; or why it never is."""
        try:
            await asyncio.wait({ticket}, timeout=mesh_deadline.left_ms(ask.deadline, clock_ms()) / 1000)
        except asyncio.CancelledError:
            self._withdraw(ask, ticket)
            raise
        if not ticket.done():
            self.gate.leave(ticket, ask.urgency)
            return late(ask, clock_ms())
        return None if ticket.result() else self._shed(ask)

    def _withdraw(self, ask: Ask, ticket: asyncio.Future[bool]) -> None:
        if ticket.done() and ticket.result():
            self.gate.done()
            self._let_in()
        else:
            self.gate.leave(ticket, ask.urgency)

    def _let_in(self) -> None:
        while True:
            ticket, overdue = self.gate.next(clock_ms())
            # Those whose time is over notice it by themselves; they have only left the line.
            del overdue
            if ticket is None:
                return
            if not ticket.done():
                ticket.set_result(True)
                return
            self.gate.done()

    def _shed(self, ask: Ask) -> Reply:
        return refusal(
            "overloaded",
            f"too many calls at this node: {self.gate.under_way} under way, {self.gate.length} waiting; "
            f"this one was {ask.urgency}, and less urgent ones are refused first",
            ("Retry-After", "1"),
        )

    # --- What attempts need ---

    async def changed(self, within_ms: float) -> None:
        """Until something is heard that may help, a place became free, or the time is over."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._alone.append(waiting)
        try:
            await asyncio.wait({waiting}, timeout=within_ms / 1000)
        finally:
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(ValueError):
                    self._alone.remove(waiting)

    def spend(self) -> bool:
        after = mesh_budget.spent(self.budget, clock_ms())
        if after is not None:
            self.budget = after
        return after is not None

    @property
    def is_settling(self) -> bool:
        return clock_ms() - self._born < SETTLED_MS

    async def look_far(self, wanted: Wanted) -> bool:
        return await self._look_far(wanted) if self._look_far is not None else False

    def begin(self, known: Known, ask: Ask, now: int) -> asyncio.Task[Reply]:
        """One attempt. It counts from this moment, not from when its task gets its turn."""
        known.breaker = mesh_breaker.asked(known.breaker, now)
        known.in_flight += 1
        task = asyncio.ensure_future(
            self._send(known, ask, mesh_deadline.left_ms(ask.deadline, now), carried(ask.traceparent))
        )

        def over(_: asyncio.Task[Reply]) -> None:
            known.in_flight -= 1
            self._wake_one()

        task.add_done_callback(over)
        return task


class _Sent(NamedTuple):
    known: Known
    at: int
    at_s: float
    """The same, finely: many answers take less than a millisecond."""


class _Attempts:
    """The attempts of one call."""

    def __init__(self, calls: Calls, ask: Ask) -> None:
        self.calls = calls
        self.ask = ask
        self.wanted = Wanted(ask.namespace, ask.model, ask.version, ask.application)
        self.tried: set[str] = set()
        self.running: dict[asyncio.Task[Reply], _Sent] = {}
        self.accused: list[Known] = []
        """Those whose model failed on it: their fault only if another one can do it."""
        self.sent = 0
        self.last: Reply | None = None
        self.why = ""
        """What went wrong last, in words."""
        self._pause_ms = PAUSE_MS
        self._has_looked_far = False
        self._alone_since: int | None = None
        """When there was first nobody to ask, also further away."""

    async def run(self) -> Reply:
        try:
            return await self._run()
        finally:
            for task in self.running:
                task.cancel()

    async def _run(self) -> Reply:
        next_at = clock_ms()
        while True:
            now = clock_ms()
            if now >= self.ask.deadline:
                return self._unanswered(now)
            if now >= next_at:
                known = self._choose(now)
                if known is not None:
                    if self.sent and not self.calls.spend():
                        if not self.running:
                            return self._spent()
                        next_at = now + PAUSE_MOST_MS
                    else:
                        self._begin(known, now)
                        next_at = now + self._patience(known, now)
                elif self.running:
                    # All were asked, and one is silent: it may be dead. Those that failed may be well by now.
                    self.tried = {s.known.key for s in self.running.values() if not _is_lost(s, now)}
                    next_at = now + PAUSE_MOST_MS
                elif (reply := await self._nobody(now)) is not None:
                    return reply
                else:
                    continue
            if (reply := await self._heard(min(next_at, self.ask.deadline))) is not None:
                return reply
            if not self.running:
                next_at = clock_ms()

    def _choose(self, now: int) -> Known | None:
        found = {known.key: known for known in self._known(now)}
        chosen = choose(
            [
                Candidate(
                    key=known.key,
                    nearness=known.nearness,
                    is_well=known.card.ready and mesh_breaker.may_ask(known.breaker, now),
                    in_flight=max(known.in_flight, known.card.in_flight),
                    room=known.card.room,
                    latency_ms=known.latency_ms if known.latency_ms is not None else known.card.p50_ms,
                )
                for known in found.values()
            ],
            (random.random(), random.random()),  # noqa: S311  it spreads load, and guards nothing
            self.tried,
        )
        return found[chosen.key] if chosen is not None else None

    def _known(self, now: int) -> list[Known]:
        found = self.calls.cards.of(self.calls.meant(self.wanted), now)
        return found if self.ask.reach == "any" else [known for known in found if known.nearness == "local"]

    def _begin(self, known: Known, now: int) -> None:
        if self.sent:
            self.calls.tally.again(is_hedge=bool(self.running))
        self.sent += 1
        self.tried.add(known.key)
        self.running[self.calls.begin(known, self.ask, now)] = _Sent(known, now, time.perf_counter())

    def _patience(self, known: Known, now: int) -> int:
        past = self.calls.tally.past(self.ask.namespace, self.ask.model, now)
        if past.p50_ms is None:
            past = past._replace(p50_ms=known.card.p50_ms)
        # A hedge does what is asked twice: only an inference may be.
        urgency = self.ask.urgency if self.ask.verb == "infer" else "normal"
        return mesh_deadline.patience_ms(urgency, past)

    # --- Answers ---

    async def _heard(self, until: int) -> Reply | None:
        """The first good answer, or None when it is time to do something else."""
        if not self.running:
            return None
        timeout = max(0, until - clock_ms()) / 1000
        done, _ = await asyncio.wait(self.running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            known, at, at_s = self.running.pop(task)
            if not task.exception():
                known.answered_at = max(known.answered_at, at)
            if (reply := self._judged(task, known, (time.perf_counter() - at_s) * 1000)) is not None:
                self._leave_behind()
                return reply
        return None

    def _judged(self, task: asyncio.Task[Reply], known: Known, took_ms: float) -> Reply | None:
        now = clock_ms()
        try:
            reply = task.result()
        except Unreached as error:
            known.breaker = mesh_breaker.failed(known.breaker, now, is_gone=True)
            self._note(known, f"nobody answers there ({error})")
            return None
        except Broken as error:
            known.breaker = mesh_breaker.failed(known.breaker, now)
            self._note(known, str(error))
            return None
        except TooLarge as error:
            known.breaker = mesh_breaker.released(known.breaker)
            self.last = refusal("too_large", f"{error}: so large an input needs an instance on the caller's own node")
            self.why = str(error)
            return None
        said = reply._replace(headers=self._headers(known, reply.by))
        if reply.code == "deadline_passed":
            known.breaker = mesh_breaker.released(known.breaker)
            return said
        if reply.status in ILL:
            self.last = said
            self._note(known, f"it answered {reply.status} {reply.code}".rstrip())
            if reply.code == "model_failed":
                self.accused.append(known)
            if reply.code in ("model_failed", "overloaded"):
                # A full one is well, and says so.
                known.breaker = mesh_breaker.released(known.breaker)
            else:
                known.breaker = mesh_breaker.failed(known.breaker, now)
            return None
        known.breaker = mesh_breaker.answered(known.breaker, now)
        for accused in self.accused:
            accused.breaker = mesh_breaker.failed(accused.breaker, now)
        if reply.status < 400:
            known.took(took_ms)
            self.calls.tally.answered(self.ask, known, took_ms, now)
        return said

    def _headers(self, known: Known, by: str) -> tuple[tuple[str, str], ...]:
        card = known.card
        return (
            (HEADER_INSTANCE, by or card.instance),
            ("Batuta-Node", card.node),
            ("Batuta-Nearness", known.nearness),
            ("Batuta-Attempts", str(self.sent)),
        )

    def _note(self, known: Known, why: str) -> None:
        self.why = f"{known.card.instance} at {known.card.node}: {why}"
        self.calls.tally.attempt_failed(self.ask, known)

    def _leave_behind(self) -> None:
        """Another one answered first. Whoever was silent for longer than is normal for the model has failed."""
        now = clock_ms()
        past = self.calls.tally.past(self.ask.namespace, self.ask.model, now)
        for task, (known, at, _) in self.running.items():
            task.cancel()
            if now - at >= mesh_deadline.patience_ms("normal", past):
                known.breaker = mesh_breaker.failed(known.breaker, now)
                self.calls.tally.attempt_failed(self.ask, known)
            else:
                known.breaker = mesh_breaker.released(known.breaker)

    # --- No answer ---

    async def _nobody(self, now: int) -> Reply | None:
        """There is nobody to ask this moment: wait a little, or say why there never will be."""
        known = self._known(now)
        if not self._has_looked_far and self.ask.reach == "any":
            # Nobody near can be asked: the hub may know of somebody further away.
            self._has_looked_far = True
            left_s = mesh_deadline.left_ms(self.ask.deadline, now) / 1000
            try:
                async with asyncio.timeout(left_s):
                    if await self.calls.look_far(self.wanted):
                        return None
            except TimeoutError:
                return None  # the deadline has passed, and is dealt with as such
            known = self._known(clock_ms())
        if not known and not self.calls.is_settling:
            return self._unknown()
        if self.last is not None and self.last.code in FINAL and all(k.key in self.tried for k in known):
            return self.last
        if self._alone_since is None:
            self._alone_since = clock_ms()
        if clock_ms() - self._alone_since >= UNWELL_WAIT_MS:
            return self._nobody_well(known)
        self.tried.clear()
        await self.calls.changed(min(self._pause_ms, mesh_deadline.left_ms(self.ask.deadline, now)))
        self._pause_ms = min(PAUSE_MOST_MS, self._pause_ms * 2)
        return None

    def _unknown(self) -> Reply:
        ask, now = self.ask, clock_ms()
        others = sorted({k.card.version for k in self.calls.cards.of(Wanted(ask.namespace, ask.model), now)})
        what = f"model {ask.model!r}" + (f" version {ask.version!r}" if ask.version else "")
        what += f" of application {ask.application!r}" if ask.application else ""
        hint = f"; versions that can: {', '.join(others)}" if others else ""
        further = self.calls.why_not_far()
        where = f"namespace {ask.namespace!r}" + (f"; {further}" if further else "")
        return refusal("model_unknown", f"nobody within reach serves {what} in {where}{hint}")

    def _nobody_well(self, known: list[Known]) -> Reply:
        if self.last is not None:
            return self.last
        now = clock_ms()
        loading = sum(not k.card.ready for k in known)
        broken = sum(mesh_breaker.state(k.breaker, now) != "closed" for k in known)
        full = sum(bool(k.card.room) and max(k.in_flight, k.card.in_flight) >= k.card.room for k in known)
        if full and not broken:
            return refusal("overloaded", f"all {full} instances of {self.ask.model!r} are full", ("Retry-After", "1"))
        message = f"none of {len(known)} instances of {self.ask.model!r} is well: {loading} not ready, {broken} failing"
        return refusal("nobody_well", message + (f"; last: {self.why}" if self.why else ""), ("Retry-After", "1"))

    def _spent(self) -> Reply:
        if self.last is not None:
            return self.last
        return refusal("retries_spent", f"{self.why}; too many calls fail to try this one again", ("Retry-After", "1"))

    def _unanswered(self, now: int) -> Reply:
        past = self.calls.tally.past(self.ask.namespace, self.ask.model, now)
        for known, at, _ in self.running.values():
            if now - at >= mesh_deadline.patience_ms("normal", past):
                known.breaker = mesh_breaker.failed(known.breaker, now)
                self.calls.tally.attempt_failed(self.ask, known)
            else:
                known.breaker = mesh_breaker.released(known.breaker)
        if not self.sent:
            return late(self.ask, now)
        waited = ", ".join(sorted(known.key for known, _, _ in self.running.values()))
        detail = f"no answer yet from {waited}" if waited else self.why
        return refusal("deadline_passed", f"the deadline passed after {self.sent} attempts; {detail}")


def _is_lost(sent: _Sent, now: int) -> bool:
    """What was sent later was answered there: the way had been cut when this one was on it."""
    return now - sent.at >= LOST_MS and sent.known.answered_at > sent.at


def _as_said(wanted: Wanted) -> Wanted:
    return wanted


def late(ask: Ask, now: int, past: Past | None = None) -> Reply:
    left = mesh_deadline.left_ms(ask.deadline, now)
    if left and past is not None and past.fastest_ms is not None:
        why = f"{left} ms are left, and the fastest answer of the last minute took {past.fastest_ms:.0f} ms"
    else:
        why = "the deadline passed before an instance could be asked"
    return refusal("deadline_passed", why)
