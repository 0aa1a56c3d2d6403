"""An instance that asks to be left as it is: its node keeps what it has until then, and holds nobody up."""

from __future__ import annotations

import msgspec

from tests.core.rolling_world import WAVES, World, release, started


def lock(world: World, *nodes: str) -> None:
    """From now on, what runs there reports that it holds its update lock."""
    run = world._run

    def locked(name, instance, was):
        return msgspec.structs.replace(run(name, instance, was), locked=name in nodes)

    world._run = locked


def test_who_holds_its_lock_is_updated_last_and_only_once_it_lets_go() -> None:
    world = started(WAVES)
    lock(world, "n03", "n07")
    world.step()
    world.change(release("new"))
    world.until(lambda: len(world.runs("new")) == len(world.names) - 2)
    for _ in range(30):
        world.step()
    assert world.runs("old") == {"n03", "n07"}
    lock(world)
    world.until(lambda: len(world.runs("new")) == len(world.names))
    world.until(world.is_("done"))
