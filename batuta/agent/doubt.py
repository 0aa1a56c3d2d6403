"""Doubt: why does the hub not answer?

A hub that is silent is normal at the edge, and the loop says so. Sometimes somebody at this end could mend it if they
only knew: the hub was set up anew and is another one now, or this machine's clock is wrong. So when it has been silent
for a while, the process that enrols asks it as a machine that joins would. What is found is told as a Reason and in
this machine's journal, because a hub that we do not trust will never show it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from batuta.agent.enrolling import look
from batuta.agent.news import Ailing
from batuta.core.reasons import CATALOGUE, Reason
from batuta.errors import EnrolmentRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.agent.config import AgentConfig

LOOK_EVERY_S: Final = 2.0
AGAIN_FIRST_S: Final = 60.0
AGAIN_LONGEST_S: Final = 900.0
ABOUT: Final = "hub-doubted"

log = logging.getLogger(__name__)


class Doubt:
    """Asks after a silent hub, ever more seldom. `silent` says whether it is, `tell` hears what was found."""

    def __init__(
        self, config: AgentConfig, node: str, silent: Callable[[], bool], tell: Callable[[Ailing], None]
    ) -> None:
        self.config = config
        self.node = node
        self.silent = silent
        self.tell = tell
        self._said = ""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        again_at, pause_s = 0.0, AGAIN_FIRST_S
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self.silent():
                self._settled()
                again_at, pause_s = 0.0, AGAIN_FIRST_S
            elif loop.time() >= again_at:
                await self._ask()
                again_at, pause_s = loop.time() + pause_s, min(pause_s * 2, AGAIN_LONGEST_S)

    async def _ask(self) -> None:
        try:
            await look(self.config)
        except EnrolmentRefused as error:
            self._say(error)

    def _say(self, error: EnrolmentRefused) -> None:
        if error.message == self._said:
            return
        self._said = error.message
        log.warning("the hub does not answer: %s\n  next: %s", error.message, error.next_step)
        # That it cannot be reached is what the loop says already.
        if error.code != "not_connected":
            code = error.code if error.code in CATALOGUE else "hub_unreachable"
            reason = Reason(code=code, subject=f"node/{self.node}", detail=error.message[:300])
            self.tell(Ailing(ABOUT, reason))

    def _settled(self) -> None:
        if self._said:
            self._said = ""
            log.info("the hub answers again")
            self.tell(Ailing(ABOUT, None))
