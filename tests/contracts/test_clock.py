"""Both clocks keep the same promises; the virtual loop adds its own."""

from __future__ import annotations

import asyncio
import time

import pytest

from batuta.fabric.clock import Clock, LifeClock, SystemClock, VirtualClock, VirtualTimeLoop, run_virtually

CLOCKS = {"system": SystemClock(), "life": LifeClock(), "virtual": VirtualClock(1_700_000_000_000)}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS.keys())
def test_sleep_until_returns_when_it_is_time(clock: Clock) -> None:
    async def main() -> None:
        at = clock.now() + 30
        before_s = clock.monotonic()
        await clock.sleep_until(at)
        assert clock.now() >= at
        assert clock.monotonic() - before_s >= 0.025
        await clock.sleep_until(at - 1000)

    with asyncio.Runner(loop_factory=VirtualTimeLoop if isinstance(clock, VirtualClock) else None) as runner:
        runner.run(main())


def test_a_clock_of_one_life_does_not_step_and_says_how_far_the_machines_went(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = LifeClock(), time.time_ns
    assert abs(clock.now() - SystemClock().now()) < 100
    assert abs(clock.apart_ms()) < 100
    for day_s in (86_400, -86_400):
        monkeypatch.setattr(time, "time_ns", lambda day_s=day_s: real() + day_s * 10**9)
        assert abs(clock.now() - real() // 1_000_000) < 1_000
        assert abs(clock.apart_ms() - day_s * 1000) < 1_000


def test_an_hour_takes_no_time_and_lands_on_the_millisecond() -> None:
    clock = VirtualClock(5)

    async def main() -> list[int]:
        seen = []
        for beat in range(1, 3601):
            await clock.sleep_until(5 + beat * 1000)
            seen.append(clock.now())
        return seen

    started_s = time.monotonic()
    assert run_virtually(main()) == [5 + beat * 1000 for beat in range(1, 3601)]
    assert time.monotonic() - started_s < 5


def test_timers_run_in_order_and_the_same_way_twice() -> None:
    def once() -> list[tuple[float, str]]:
        trace: list[tuple[float, str]] = []

        async def ticker(name: str, every_s: float) -> None:
            for _ in range(5):
                await asyncio.sleep(every_s)
                trace.append((round(asyncio.get_running_loop().time(), 6), name))

        async def main() -> None:
            await asyncio.gather(ticker("a", 0.3), ticker("b", 0.2), ticker("c", 0.6))

        run_virtually(main())
        return trace

    first = once()
    assert first == once()
    assert [at for at, _ in first] == sorted(at for at, _ in first)


def test_timeouts_are_virtual_too() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 3600)
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(3600)


def test_a_deadlock_is_said_not_slept() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="waits for something that never comes"):
        run_virtually(main())


def test_a_clock_epoch_beyond_floats_stays_exact() -> None:
    clock = VirtualClock(1_800_000_000_000)

    async def main() -> int:
        for _ in range(1000):
            await clock.sleep_until(clock.now() + 1)
        return clock.now()

    assert run_virtually(main()) == 1_800_000_001_000
