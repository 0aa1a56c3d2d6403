"""The hub's composition: builds the parts, starts and stops them, in order. No logic."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batuta.fabric.tasks import end
from batuta.hub.api_tokens import ApiTokens
from batuta.hub.artifacts import ArtifactStore
from batuta.hub.asks import Asks
from batuta.hub.attention import Attention
from batuta.hub.audit import Audit
from batuta.hub.authority import Authorities
from batuta.hub.bell import Bell
from batuta.hub.counters import Counters
from batuta.hub.declare import Declarations
from batuta.hub.elsewhere import Elsewhere
from batuta.hub.enrol import Enrolment
from batuta.hub.feed import Feed
from batuta.hub.flags import Flags
from batuta.hub.loop import HubLoop
from batuta.hub.profiling import Profiling
from batuta.hub.questions import Questions
from batuta.hub.recipes import Recipes
from batuta.hub.recording import Recording
from batuta.hub.region import Region
from batuta.hub.shipping import Shipping
from batuta.hub.sightings import Sightings
from batuta.hub.store import Store
from batuta.hub.sweep import Sweep
from batuta.hub.tails import Tails
from batuta.hub.up import UpReader
from batuta.hub.uplinks import Uplinks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from batuta.config import HubConfig
    from batuta.fabric.base import Fabric
    from batuta.fabric.clock import Clock
    from batuta.kinds.base import Ref


class Hub:
    """One deciding process over one fabric."""

    def __init__(
        self,
        config: HubConfig,
        fabric: Fabric,
        clock: Clock,
        *,
        hubs: Sequence[str] = (),
        leafs: Sequence[str] = (),
        kick: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        self.config = config
        self.fabric = fabric
        self.clock = clock
        self.hubs = tuple(hubs)
        self.leafs = tuple(leafs)
        self.counters = Counters()
        self.started_at = clock.now()
        self._kick = kick
        self.links_denied: Callable[[], Mapping[str, int]] = dict
        """How often the broker was told to refuse a link, by reason."""
        changed = Bell()
        self.store = Store(fabric, self.counters, changed.ring)
        self.loop = HubLoop(self.store, clock, self.counters, changed, full_pass_ms=config.full_pass_ms)
        self.recording = self.loop.recording = Recording(
            config.directory / "recording", self.counters, bytes_max=config.recording_bytes_max
        )
        self.attention = Attention(clock, fabric)
        self.flags = Flags(fabric, clock, self.counters, lambda: self.loop.known, changed)
        self.sightings = Sightings(
            clock,
            self.counters,
            lambda: self.loop.known,
            changed.ring,
            newest_serial=self.loop.newest_serial,
            epoch=lambda: self.store.epoch,
            deaf_ms=self.attention.look,
            flags=self.flags.digest,
        )
        self.declarations = Declarations(self.store, clock, self.counters, lambda: self.loop.state)
        self.declarations.before_removal = self._before_removal
        self.audit = Audit(fabric, clock, self.counters)
        self.declarations.keep = self.audit.accepted
        self.loop.keep = self.audit.moved
        self.api_tokens = ApiTokens(fabric, clock, self.counters)
        self.api_tokens.keep = self.audit.accepted
        self.authorities = Authorities(config.directory / "authority")
        self.artifacts = ArtifactStore(
            config.directory / "artifacts", self.counters, bytes_max=config.artifact_bytes_max
        )
        self.recipes = Recipes(config.directory / "artifacts" / "recipes", self.artifacts)
        self.artifacts.on_put = self.recipes.prepare
        self.uplinks = Uplinks(config.directory / "artifacts" / "uplinks.json", lambda: self.loop.state, clock)
        self.shipping = Shipping(self.recipes, self.uplinks, self.counters)
        self.sweep = Sweep(self.artifacts, self.recipes, lambda: self.loop.state, config.artifact_keep_s)
        self.enrolment = Enrolment(
            fabric,
            clock,
            self.counters,
            self.authorities,
            self.declarations,
            hubs=hubs,
            leafs=leafs,
            certificate_s=config.certificate_s,
        )
        self.enrolment.keep = self.audit.accepted
        self.elsewhere = Elsewhere(lambda: self.loop.known, clock, self.counters)
        self.region = Region(lambda: self.loop.known, self.uplinks, self.counters)
        self.asks = Asks(self.shipping, self.enrolment, self.elsewhere, self.counters, lambda: self.loop.known)
        self.asks.verbs |= self.region.verbs
        self.asks.verbs["flags"] = self.flags.answer
        self.questions = Questions(fabric, clock)
        self.tails = Tails(config.directory / "tails", self.questions, clock, self.counters, lambda: self.loop.state)
        self.up = UpReader(fabric)
        self.profiling = Profiling(self.loop, self.store, fabric, clock, self.counters)
        self.feed = Feed(self.loop, clock, 0)
        self._deciding: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._tailing: asyncio.Task[None] | None = None
        self._attending: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._profiling: asyncio.Task[None] | None = None
        self._flagging: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.artifacts.open()
        self.recipes.open()
        self.uplinks.open()
        await self.store.open()
        self.feed = Feed(self.loop, self.clock, self.store.epoch)
        await self.enrolment.open()
        await self.api_tokens.open()
        await self.sightings.open(self.fabric)
        await self.asks.open(self.fabric)
        self.attention.begin()
        self._attending = asyncio.create_task(self.attention.run(), name="attend")
        self.loop.begin(self.sightings)
        self.recording.open()
        self.flags.open()
        # Until everything was decided once, no heartbeat is answered.
        await self.loop.turn()
        self._deciding = asyncio.create_task(self.loop.run(), name="decide")
        self._following = asyncio.create_task(self.store.failed(), name="tables")
        self.tails.open()
        self._tailing = asyncio.create_task(self.tails.run(), name="tails")
        self._sweeping = asyncio.create_task(self.sweep.run(), name="sweep")
        self._profiling = asyncio.create_task(self.profiling.run(), name="profiling")
        self._flagging = asyncio.create_task(self.flags.run(), name="flags")

    async def failed(self) -> None:
        """Returns never; raises what ended the loop or the tables: then this process must end, and its successor begins
        from what is written."""
        assert self._deciding is not None
        assert self._following is not None
        assert self._tailing is not None
        assert self._attending is not None
        assert self._profiling is not None
        assert self._flagging is not None
        parts = (
            self._deciding, self._following, self._tailing, self._attending, self._profiling, self._flagging,
        )  # fmt: skip
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        await end(self._deciding, self._following, self._tailing, self._attending, self._sweeping, self._profiling)
        await end(self._flagging)
        self.tails.flush()
        await self.recording.close()
        await self.api_tokens.close()
        await self.asks.close()
        await self.shipping.close()
        await self.recipes.close()
        self.uplinks.close()
        await self.sightings.close()
        await self.store.close()

    async def _before_removal(self, ref: Ref) -> None:
        if ref.plural != "nodes":
            return
        await self.enrolment.remove(ref.name)
        if self._kick is not None:
            await self._kick(ref.name)
        self.sightings.forget(ref.name)
        await self.store.forget_report(ref.name)
