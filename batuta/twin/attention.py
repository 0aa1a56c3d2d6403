"""Attention: a hub process that is held up hears nobody, decides nothing and writes nothing; afterwards it does it all.

What is said to it meanwhile waits in sockets, and its timers wait too. As `hub.attention` tells the real hub, it knows
afterwards how long it could not listen, all but the tick in which it was stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.twin.chance import Chance
    from batuta.twin.world import World

TICK_MS: Final = 250
NOTICED_MS: Final = 500
"""A shorter stall is the ordinary business of a process."""


class Attention:
    """Of one life of the hub."""

    def __init__(self, world: World, chance: Chance) -> None:
        self._world, self._chance = world, chance
        self.deaf_ms = 0
        """For how long it could not listen so far, all in all."""
        self._until = 0
        self._began = 0
        self._timers: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._messages: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    @property
    def is_stalled(self) -> bool:
        return self._until > 0

    def stall(self, for_ms: int) -> None:
        """From now on for so long; longer when it is stalled already."""
        if not self.is_stalled:
            self._began = self._world.now
        until = self._world.now + for_ms
        if until > self._until:
            self._until = until
            self._world.after(for_ms, self._go_on, until)

    def end(self) -> None:
        """It goes on at once."""
        if self.is_stalled:
            self._go_on(self._until)

    def drop(self) -> None:
        """The process died: what waited for it is lost with its sockets."""
        self._until = 0
        self._timers.clear()
        self._messages.clear()

    def holds_up(self, do: Callable[..., None], *args: Any, timer: bool = False) -> bool:
        """Is it stalled? Then this is done as soon as it goes on."""
        if self.is_stalled:
            (self._timers if timer else self._messages).append((do, args))
        return self.is_stalled

    def _go_on(self, until: int) -> None:
        """Whatever waited is done now. Timers come somewhere among the messages: nobody knows where."""
        if until != self._until:
            return
        self._until = 0
        took_ms = self._world.now - self._began
        if took_ms > NOTICED_MS:
            self.deaf_ms += took_ms - TICK_MS
        timers, messages = self._timers, self._messages
        self._timers, self._messages = [], []
        first = self._chance.between(0, len(messages))
        for do, args in (*messages[:first], *timers, *messages[first:]):
            do(*args)
