"""Why a hub does not answer: asked after a while of silence, ever more seldom, and told once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from batuta.agent import doubt
from batuta.agent.config import AgentConfig
from batuta.agent.doubt import Doubt
from batuta.errors import EnrolmentRefused
from batuta.fabric.clock import run_virtually

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.agent.news import Ailing


class Hub:
    """What the process that asks would find, and when it was asked."""

    def __init__(self) -> None:
        self.silent = False
        self.refuses: EnrolmentRefused | None = None
        self.asked_s: list[int] = []
        self.told: list[Ailing] = []

    async def look(self, _config: AgentConfig) -> None:
        self.asked_s.append(round(asyncio.get_running_loop().time()))
        if self.refuses is not None:
            raise self.refuses


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(doubt, "look", made.look)
    return made


def play(tmp_path: Path, hub: Hub, story: Any) -> None:
    async def whole() -> None:
        made = Doubt(AgentConfig(state=str(tmp_path)), "pi", lambda: hub.silent, hub.told.append)
        running = asyncio.create_task(made.run())
        await story()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run_virtually(whole())


def test_a_hub_that_is_another_one_is_told_once_and_until_ours_is_back(
    tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.refuses = EnrolmentRefused("hub_not_trusted", "it shows another root", next_step="join it anew")

    async def story() -> None:
        await asyncio.sleep(600)
        assert hub.asked_s == [], "nobody asks after a hub that answers"
        hub.silent = True
        await asyncio.sleep(3600)
        assert [b - a for a, b in zip(hub.asked_s, hub.asked_s[1:], strict=False)] == [60, 120, 240, 480, 900, 900]
        assert [(t.about, t.reason and t.reason.code) for t in hub.told] == [(doubt.ABOUT, "hub_not_trusted")]
        hub.silent = False
        await asyncio.sleep(5)
        assert [t.reason for t in hub.told[1:]] == [None]

    play(tmp_path, hub, story)
    assert "it shows another root\n  next: join it anew" in caplog.text


def test_that_it_cannot_be_reached_is_nothing_but_a_line_in_the_journal(
    tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.silent, hub.refuses = True, EnrolmentRefused("not_connected", "nobody listens there", next_step="is it up?")

    async def story() -> None:
        await asyncio.sleep(3600)
        assert hub.told == []

    play(tmp_path, hub, story)
    assert caplog.text.count("nobody listens there") == 1


def test_a_silent_hub_that_answers_there_is_nothing_to_tell(tmp_path: Path, hub: Hub) -> None:
    hub.silent = True

    async def story() -> None:
        await asyncio.sleep(100)
        assert (len(hub.asked_s), hub.told) == (2, [])

    play(tmp_path, hub, story)
