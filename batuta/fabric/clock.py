"""Time as a seam with two tenants: the machine's clock, and one that jumps.

Everything outside the pure packages that waits or asks the time takes a `Clock`. Under `VirtualTimeLoop` an hour of
heartbeats runs in milliseconds and twice in the same order, because the loop never waits: when nothing is ready, its
time jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

T = TypeVar("T")

# A wall clock may be stepped while we sleep; waking this often bounds how wrong a sleep can get.
LONGEST_NAP_S: Final = 10.0


class Clock(Protocol):
    """What a loop may know of time."""

    def now(self) -> int:
        """Milliseconds since 1970, as people and other machines mean it. May step; compare, do not subtract."""
        ...

    def monotonic(self) -> float:
        """Seconds since some start. Never steps; subtract, do not compare between machines."""
        ...

    async def sleep_until(self, at_ms: int) -> None:
        """Returns once `now()` is at least `at_ms`; at once when it already is."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep_until(self, at_ms: int) -> None:
        while (left_ms := at_ms - self.now()) > 0:  # noqa: ASYNC110  a clock has no event to await
            await asyncio.sleep(min(left_ms / 1000, LONGEST_NAP_S))


class LifeClock(SystemClock):
    """The machine's clock as it was when this process began, carried on by the monotonic one: it never steps.

    Whoever concludes something from a difference of instants needs that: who has been silent, whose lease is over. What
    the machine's clock did meanwhile is `apart_ms`; once that is more than a correction, a life ends and the next one
    begins by the right time.
    """

    def __init__(self) -> None:
        self._anchor_ms = super().now() - int(self.monotonic() * 1000)

    def now(self) -> int:
        return self._anchor_ms + int(self.monotonic() * 1000)

    def apart_ms(self) -> int:
        """How far the machine's clock is ahead of this one."""
        return super().now() - self.now()


class VirtualClock:
    """Reads the time of the running loop, normally a `VirtualTimeLoop`, as milliseconds since `epoch_ms`."""

    def __init__(self, epoch_ms: int = 0) -> None:
        self.epoch_ms = epoch_ms

    def now(self) -> int:
        # Loop time is a float of seconds; a microsecond of grace keeps 0.3 s from being read as 299 ms.
        return self.epoch_ms + int((self.monotonic() + 1e-6) * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep_until(self, at_ms: int) -> None:
        while (left_ms := at_ms - self.now()) > 0:  # noqa: ASYNC110  a clock has no event to await
            await asyncio.sleep(left_ms / 1000)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when nothing is ready, time jumps to the next timer.

    It is for code without sockets; anything that happens outside the loop happens at no time at all, and what is given
    to a thread is done at once and here, for a thread would end at another instant each time. When nothing is ready and
    nothing is scheduled, no task can ever go on, and the loop says so instead of hanging.
    """

    def __init__(self) -> None:
        self._virtual_time_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._virtual_time_s

    def run_in_executor(  # type: ignore[override]  # what the loop promises is a future, and this is one
        self, _executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # whatever it is, it is for who waits for the answer
            done.set_exception(error)
        return done

    def jump(self, seconds: float) -> None:
        """Lets `seconds` pass at once. Timers that fall into them run late, in their order."""
        self._virtual_time_s += seconds


class _JumpingSelector(selectors.BaseSelector):
    """Turns the loop's wish to wait into a jump of its time."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._inner = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._inner.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError(
                "nothing is ready and nothing is scheduled: every task waits for something that never comes"
            )
        self._loop.jump(timeout)
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` to its end in virtual time, like `asyncio.run` does in real time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
