"""Looks into an image archive before an engine is given it: which image is it, and who vouches for it?

Run as a process of its own, because reading archives and signatures takes memory that the node agent does not have, and
because archives come from elsewhere. The question comes by standard input, the answer goes to standard output.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec

from batuta.errors import ArtifactRefused
from batuta.interop import oci_archive
from batuta.runtimes.container_look import Found, Question

BUNDLE_BYTES_MAX = 1 << 20


def answer(question: Question) -> Found:
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
