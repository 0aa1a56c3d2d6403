"""The agent's side of enrolment: the child that does the cryptography, and when to renew.

See `enrol`, which is never imported here: a certificate library costs more than the rest of the agent's own modules.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.agent import identity as kept
from batuta.agent.asks import renewed
from batuta.agent.news import Ailing
from batuta.core.reasons import Reason
from batuta.errors import EnrolmentRefused, FabricUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batuta.agent.config import AgentConfig
    from batuta.agent.identity import Identity
    from batuta.fabric.base import Fabric

CHILD_S: Final = 120.0
LOOK_EVERY_S: Final = 60.0
AGAIN_AFTER_S: Final = 30.0


class _Said(msgspec.Struct, frozen=True, rename="camel"):
    """What the child answers: `enrol.Done` or `enrol.No`, whose classes we cannot import."""

    type: str
    identity: kept.Identity | None = None
    request: str = ""
    code: str = ""
    message: str = ""
    next_step: str = ""


async def join(config: AgentConfig, node: str) -> Identity:
    """Become a node, or go on as the one we are."""
    here = kept.load(config.identity)
    if not config.token:
        if here is None:
            raise EnrolmentRefused(
                "not_enrolled",
                f"this machine is not a node yet: there is nothing in {config.identity}",
                next_step="make a token on the hub with `batuta token create` and run `batuta join TOKEN`",
            )
        return here
    task = {
        "type": "join", "directory": str(config.identity), "token": config.token, "node": node, "site": config.site,
        "addresses": config.addresses or tuple({config.advertise, config.listen} - {""}),
    }  # fmt: skip
    said = await _child(task)
    assert said.identity is not None
    return said.identity


async def look(config: AgentConfig) -> None:
    """Returns when our hub answers at one of its addresses and is the one we joined; else EnrolmentRefused says why."""
    await _child({"type": "look", "directory": str(config.identity)})


class Renewal:
    """Renews the certificate when a third of its life is left. `on_renewed` gets the new identity."""

    def __init__(
        self, config: AgentConfig, identity: Identity, fabric: Fabric,
        on_renewed: Callable[[Identity], Awaitable[None]], tell: Callable[[Ailing], None],
    ) -> None:  # fmt: skip
        self.config = config
        self.identity = identity
        self.fabric = fabric
        self.on_renewed = on_renewed
        self.tell = tell

    async def run(self) -> None:
        while True:
            # Certificates hold by the wall clock, so it is asked.
            left_s = self.identity.renew_at() / 1000 - time.time()
            if left_s > 0:
                await asyncio.sleep(min(left_s, LOOK_EVERY_S))
                continue
            try:
                await self.renew()
            except (EnrolmentRefused, FabricUnavailable) as error:
                left_h = (self.identity.ends_at / 1000 - time.time()) / 3600
                detail = f"{error.message[:200]}; it holds for {left_h:.1f} h"
                reason = Reason(code="renewal_failed", subject=f"node/{self.identity.node}", detail=detail)
                self.tell(Ailing("renewal", reason))
                await asyncio.sleep(AGAIN_AFTER_S)

    async def renew(self) -> None:
        asked = await _child({"type": "ask", "directory": str(self.config.identity)})
        answer = await renewed(self.fabric, asked.request, self.config.addresses or (self.config.listen,))
        accepted = await _child(
            {"type": "accept", "directory": str(self.config.identity), "answer": answer.decode(errors="replace")}
        )
        assert accepted.identity is not None
        self.identity = accepted.identity
        await self.on_renewed(accepted.identity)
        self.tell(Ailing("renewal", None))


async def _child(task: dict[str, Any]) -> _Said:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batuta.agent.enrol",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for us, and we end it
    )  # fmt: skip
    try:
        async with asyncio.timeout(CHILD_S):
            out, _ = await child.communicate(msgspec.json.encode(task))
    except TimeoutError:
        raise EnrolmentRefused("not_connected", f"no answer within {CHILD_S:.0f} s", next_step="try again") from None
    finally:
        # Also when we are told to end: nobody would hear its answer. A token spent by then is good for the same key.
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise EnrolmentRefused("enrolment_broken", f"the enrolment process ended with {child.returncode}")
    said = msgspec.json.decode(out, type=_Said)
    if said.type == "no":
        raise EnrolmentRefused(said.code, said.message, next_step=said.next_step)
    return said
