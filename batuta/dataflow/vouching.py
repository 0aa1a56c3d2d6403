"""Vouching: before a model is loaded, whoever must have signed it has, and signed these very bytes.

It is done by the worker, in the process that is about to load the file, because reading signatures takes 10 MB that the
node agent does not have. The file is hashed once more for it: what is loaded is then what was signed, whatever happened
to the cache in between. Where nobody asks for a signer, nothing of this is even imported.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from batuta.core.worker import WorkerOrder


def vouched_for(order: WorkerOrder) -> None:
    """Nothing, when all who must have signed the model, and its own Python, have. Raises ArtifactRefused."""
    model = order.instance.model
    if model is None or not model.signers:
        return
    from batuta.interop import sigstore_bundle

    bundles = [_read(path, sigstore_bundle.BUNDLE_BYTES_MAX + 1) for path in order.bundles]
    cut = len(bundles) - len(model.transform_signatures)
    files = [(order.artifact, model.variant.digest, bundles[:cut])]
    files += [(order.transform, model.transform, bundles[cut:])] if model.transform is not None else []
    for path, wanted, its_bundles in files:
        with Path(path).open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if digest != wanted:
            raise ArtifactRefused("digest_mismatch", f"the file is {digest[:19]}…, not {wanted[:19]}…")
        sigstore_bundle.vouch(its_bundles, model.signers, digest)


def _read(path: str, bytes_max: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(bytes_max)
    except OSError as error:
        raise ArtifactRefused("signature_invalid", f"a signature cannot be read: {error.strerror}") from None
