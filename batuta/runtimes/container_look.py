"""Asks a process of its own what an image archive is, before an engine is given it: `container_archive` answers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import msgspec

from batuta.errors import RuntimeFailure

LOOK_TIMEOUT_S = 600


class Question(msgspec.Struct):
    archive: str
    digest: str
    """Of the archive's bytes."""
    image: str
    """Digest by which the order calls the image."""
    architecture: str = ""
    bundles: tuple[str, ...] = ()
    signers: tuple[tuple[str, ...], ...] = ()


class Found(msgspec.Struct):
    """What the archive says, or why it must not be loaded."""

    id: str = ""
    manifest: str = ""
    code: str = ""
    message: str = ""


async def look(question: Question) -> Found:
    """Asks a process of its own. Raises RuntimeFailure with the reason not to load the archive."""
    command = (sys.executable, "-P", "-m", "batuta.runtimes.container_archive")
    environment = {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"}
    try:
        said = await asyncio.to_thread(
            subprocess.run, command, input=msgspec.json.encode(question), capture_output=True, env=environment,
            timeout=LOOK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RuntimeFailure("artifact_unreadable", f"looking into it took longer than {LOOK_TIMEOUT_S} s") from None
    try:
        found = msgspec.json.decode(said.stdout, type=Found)
    except msgspec.MsgspecError:
        last = said.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeFailure("artifact_unreadable", f"the archive could not be looked into: {last[0][:300]}") from None
    if found.code:
        raise RuntimeFailure(found.code, found.message)
    return found
