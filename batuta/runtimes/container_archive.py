"""Looks into an image archive before an engine is given it: which image is it, and who vouches for it?

Run as a process of its own, because reading archives and signatures takes memory that the node agent does not have, and
because archives come from elsewhere. The question comes by standard input, the answer goes to standard output.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from batuta.errors import ArtifactRefused, RuntimeFailure

LOOK_TIMEOUT_S = 600
BUNDLE_BYTES_MAX = 1 << 20


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


def answer(question: Question) -> Found:
    from batuta.interop import oci_archive

    try:
        _vouched(question)
        with open(question.archive, "rb") as file:
            image = oci_archive.chosen(oci_archive.images(file), question.image, question.architecture)
    except ArtifactRefused as refused:
        return Found(code=refused.code, message=refused.message)
    except OSError as error:
        return Found(code="artifact_unreadable", message=str(error))
    return Found(id=image.id, manifest=image.manifest)


def _vouched(question: Question) -> None:
    if not question.signers:
        return
    from batuta.interop import sigstore_bundle

    # What is loaded is then what was signed, whatever happened to the cache since it was verified.
    with open(question.archive, "rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if digest != question.digest:
        raise ArtifactRefused("digest_mismatch", f"the file is {digest[:19]}…, not {question.digest[:19]}…")
    bundles = [Path(path).read_bytes()[:BUNDLE_BYTES_MAX] for path in question.bundles]
    sigstore_bundle.vouch(bundles, question.signers, digest)


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(BUNDLE_BYTES_MAX), type=Question)
    sys.stdout.buffer.write(msgspec.json.encode(answer(asked)))
