"""Laws of rollouts, over generated fleets, releases, refusals and second thoughts. See `rolling` for what may happen.

Beside what holds for all deciding (it is idle when done; what was touched is enough; budgets and capacity are kept; no
two run that must not): a rollout that is over stays so, one that is paused changes nothing, and when all is healed each
of them comes to an end, or waits for somebody and says so.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.laws.rolling import RollingWorld, rolling_worlds

laws = settings(
    max_examples=int(os.environ.get("BATUTA_LAW_EXAMPLES", "20")),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@given(rolling_worlds)
@laws
def test_whatever_happens_the_laws_hold(history):
    world = RollingWorld()
    for step in history:
        world.step(*step)


@pytest.mark.slow
@given(rolling_worlds)
@laws
def test_a_rollout_comes_to_an_end_or_says_what_it_waits_for(history):
    world = RollingWorld()
    for step in history:
        world.step(*step)
    world.settle()
    for _ in range(8):
        world.step("wait", 10_000)
        world.step("obey", set())
    for app, rollout in world.state.rollouts.items():
        held = world.state.held.get(app, ())
        if rollout.phase in ("rolling", "soaking", "undoing"):
            assert rollout.reason is not None or world.waits(app), f"{app} is {rollout.phase} and does not say why"
        if rollout.phase == "undone":
            trusted = {r.component.name: r.revision for r in world.release(app, rollout.previous)}
            assert all(h.instance.revision == trusted.get(h.instance.component, -1) for h in held)
