"""What runtimes and processors know: asked of the real runtime, and read from the words of processors we do not own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batuta.agent import abilities
from batuta.agent.abilities import Opsets, precisions
from batuta.agent.news import Looked

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.agent.news import News


@pytest.mark.slow
async def test_the_runtime_itself_names_its_newest_operator_set_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opsets = Opsets(tmp_path, ("process", "onnx"))
    assert opsets.found == {}
    told: asyncio.Queue[News] = asyncio.Queue()
    task = asyncio.create_task(opsets.run(told.put_nowait))
    async with asyncio.timeout(120):
        assert await told.get() == Looked()
    task.cancel()
    assert set(opsets.found) == {"onnx"}
    assert 17 <= opsets.found["onnx"] < 1_000  # the demo's own model is of operator set 17
    # The next start knows it at once, and asks nobody.
    monkeypatch.setattr(abilities, "ASKING", tmp_path / "nothing")
    again = Opsets(tmp_path, ("onnx",))
    assert again.found == opsets.found
    assert await again.ask() == opsets.found
    # Another installation is another runtime.
    monkeypatch.setattr(abilities, "_made", lambda _: ("elsewhere", 1))
    other = Opsets(tmp_path, ("onnx",))
    assert (other.found, await other.ask(), other.unanswered) == ({}, {}, 1)


async def test_a_runtime_that_does_not_answer_is_counted_and_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = tmp_path / "mute.py"
    mute.write_text("import time; time.sleep(1000)")
    monkeypatch.setattr(abilities, "ASKING", mute)
    monkeypatch.setattr(abilities, "ANSWER_S", 0.2)
    opsets = Opsets(tmp_path, ("onnx",))
    assert (await opsets.ask(), opsets.unanswered) == ({}, 1)


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ("flags\t\t: fpu sse2 f16c avx2", ("fp16", "int4")),
        ("flags\t\t: fpu sse2 f16c avx2 avx512_bf16", ("fp16", "bf16", "int4")),
        ("flags\t\t: fpu sse2", ()),
        ("Features\t: fp asimd evtstrm crc32", ("int4",)),
        ("Features\t: fp asimd asimdhp asimddp bf16", ("fp16", "bf16", "int4")),
    ],
)
def test_a_processor_computes_in_what_its_words_say(tmp_path: Path, said: str, more: tuple[str, ...]) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nmodel name\t: any\n{said}\nbogomips\t: 1\n")
    assert precisions(tmp_path, 0) == (*abilities.ANYWHERE, *more)
    assert precisions(tmp_path, 1) == (), "what a card computes nobody tells"


def test_of_a_processor_that_says_nothing_nothing_is_claimed(tmp_path: Path) -> None:
    assert precisions(tmp_path, 0) == ()
