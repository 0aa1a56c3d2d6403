"""Abilities: which operator sets a node's runtimes know, and in which precisions its processor computes.

The runtime itself is asked, in a process of its own that loads it, once for each installation of it: the answer is kept
beside the ledger. Until it is there nothing is said, and what is not said does not count against a node.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

import batuta
from batuta.agent.news import Looked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batuta.agent.news import News
    from batuta.kinds.hardware import Precision

ANSWER_S: Final = 120.0
"""A small board with a slow card takes half a minute to load the runtime for the first time."""
PACKAGES: Final = {"onnx": "onnxruntime"}
ASKING: Final = Path(batuta.__file__).with_name("runtimes") / "newest_opset.py"

log = logging.getLogger(__name__)


class _Known(msgspec.Struct, frozen=True):
    """What an installation answered; another one is asked anew."""

    package: str
    changed_ns: int
    opset: int


class Opsets:
    """By runtime: the newest operator set."""

    def __init__(self, home: Path, runtimes: Iterable[str]) -> None:
        self.path = home / "opsets.json"
        self.runtimes = tuple(name for name in runtimes if name in PACKAGES)
        self.unanswered = 0
        """Times a runtime did not say; then nothing is claimed of it."""
        self._known = self._read()
        self.found = self.known()
        """By runtime, as far as it is known by now."""

    async def run(self, tell: Callable[[News], None]) -> None:
        """Asks whom it does not know, and says so; then there is nothing more to do."""
        if await self.ask() != self.found:
            self.found = self.known()
            tell(Looked())
        await asyncio.Event().wait()

    def known(self) -> dict[str, int]:
        """What is known without asking."""
        found: dict[str, int] = {}
        for name in self.runtimes:
            known = self._known.get(name)
            if known is not None and (known.package, known.changed_ns) == _made(name):
                found[name] = known.opset
        return found

    async def ask(self) -> dict[str, int]:
        """What is known once all have been asked that have not been."""
        for name in self.runtimes:
            if name in self.known() or (made := _made(name)) is None:
                continue
            opset = await _asked()
            if opset is None:
                self.unanswered += 1
                continue
            self._known[name] = _Known(made[0], made[1], opset)
            self._write()
        return self.known()

    def _read(self) -> dict[str, _Known]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, _Known])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _write(self) -> None:
        try:
            self.path.write_bytes(msgspec.json.encode(self._known))
        except OSError as error:
            log.warning("%s cannot be written, and will be asked for again: %s", self.path.name, error.strerror)


def _made(runtime: str) -> tuple[str, int] | None:
    """Which installation it is, without loading it."""
    try:
        spec = importlib.util.find_spec(PACKAGES[runtime])
        origin = spec.origin if spec is not None else None
        return (origin, Path(origin).stat().st_mtime_ns) if origin else None
    except (ImportError, OSError, ValueError):
        return None


async def _asked() -> int | None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(ASKING), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(ANSWER_S):
            said, _ = await child.communicate()
    except TimeoutError:
        log.warning("the runtime did not say within %.0f s which operator sets it knows", ANSWER_S)
        return None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return int(said) if said.strip().isdigit() else None


# --- Precisions -------------------------------------------------------------------------------------------------------

ANYWHERE: Final[tuple[Precision, ...]] = ("fp64", "fp32", "int16", "int8", "mixed")
"""Every processor computes in these, well or badly; how well is told by measuring."""
BY_FLAG: Final[dict[Precision, set[str]]] = {
    "fp16": {"f16c", "avx512_fp16", "asimdhp", "fphp"},
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int4": {"avx2", "asimd"},
}
"""Words of `/proc/cpuinfo`, of x86 and of ARM; one suffices."""
MOST_READ: Final = 16_384
"""The first processor's words are within it."""


def precisions(root: Path, accelerators: int) -> tuple[Precision, ...]:
    """Of the processor. What a card computes in no file tells, so nothing is claimed of a machine that has one."""
    if accelerators:
        return ()
    try:
        with (root / "proc/cpuinfo").open("rb") as file:
            lines = file.read(MOST_READ).decode(errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(words.split())
            return (*ANYWHERE, *(each for each, any_of in BY_FLAG.items() if flags & any_of))
    return ()
