"""API tokens by virtual time: what is written when, and what a broker that is away does to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.errors import FabricUnavailable
from batuta.fabric.clock import VirtualClock, VirtualTimeLoop
from batuta.fabric.memory import MemoryBroker
from batuta.hub.api_tokens import USE_WRITTEN_EVERY_MS, ApiToken, ApiTokens, ApiTokenWanted, TokenDenied
from batuta.hub.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def by_virtual_time(play: Callable[[MemoryBroker], Awaitable[None]]) -> None:
    async def main() -> None:
        await play(MemoryBroker())

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


def test_uses_are_written_together_now_and_then_and_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(broker: MemoryBroker) -> None:
        clock, counters, fabric = VirtualClock(1_000_000), Counters(), broker.connect("hub")
        tokens = ApiTokens(fabric, clock, counters)
        written: list[ApiToken] = []
        put, is_away = tokens._table.put, False

        async def counted(key: str, value: bytes, revision: int | None = None) -> int:
            if is_away:
                raise FabricUnavailable("away")
            written.append(msgspec.json.decode(value, type=ApiToken))
            return await put(key, value, revision)

        monkeypatch.setattr(tokens._table, "put", counted)
        text, row = await tokens.create(ApiTokenWanted(role="viewer"), "test")
        assert len(written) == 1
        for _ in range(100):
            tokens.recognise(text, "10.0.0.7")
        await clock.sleep_until(clock.now() + USE_WRITTEN_EVERY_MS - 1)
        assert tokens.all()[0].used_at == 1_000_000  # known at once
        assert len(written) == 1
        await clock.sleep_until(clock.now() + 1_000)
        assert [(w.used_at, w.used_from) for w in written[1:]] == [(1_000_000, "10.0.0.7")]
        await clock.sleep_until(clock.now() + 10 * USE_WRITTEN_EVERY_MS)
        assert len(written) == 2  # nobody asked, so nothing is written

        is_away = True
        tokens.recognise(text, "10.0.0.8")
        await clock.sleep_until(clock.now() + USE_WRITTEN_EVERY_MS + 1)
        assert counters["token_uses_unwritten"] == 1
        is_away = False
        await tokens.close()
        assert written[-1].used_from == "10.0.0.8"

        again = ApiTokens(fabric, clock, counters)
        await again.open()
        assert again.all()[0].used_from == "10.0.0.8"
        assert again.recognise(text, "10.0.0.9").id == row.id
        await again.close()

    by_virtual_time(play)


def test_only_the_whole_token_is_a_token() -> None:
    async def play(broker: MemoryBroker) -> None:
        clock = VirtualClock(1_000_000)
        tokens = ApiTokens(broker.connect("hub"), clock, Counters())
        text, row = await tokens.create(ApiTokenWanted(role="viewer", ttl_ms=5_000), "test")
        prefix, token_id, secret = text.split(".")
        assert len(secret) == 43  # 256 bits in base64
        wrong: list[Any] = [
            "",
            ".",
            "..",
            prefix,
            f"{prefix}.{token_id}",
            f"{prefix}.{token_id}.",
            f"{prefix}..{secret}",
        ]
        wrong += [f"other.{token_id}.{secret}", f"{prefix}.{token_id}.{secret}x", row.digest, text.upper(), "ü"]
        wrong += [f"{prefix}.{token_id}.{row.digest}", f"{prefix}.*.{secret}"]
        for each in wrong:
            with pytest.raises(TokenDenied, match="not one of this hub's"):
                tokens.recognise(each, "")
        assert tokens.recognise(text, "").role == "viewer"
        assert tokens.holds(token_id)
        await clock.sleep_until(1_005_000)
        assert not tokens.holds(token_id)
        with pytest.raises(TokenDenied, match="has expired"):
            tokens.recognise(text, "")
        await clock.sleep_until(clock.now() + 31 * 86_400_000)
        await tokens.create(ApiTokenWanted(), "test")
        assert not tokens.knows(token_id)  # forgotten, a month after it ended
        await tokens.close()

    by_virtual_time(play)
