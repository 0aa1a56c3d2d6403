"""Signing a model: somebody who holds a key vouches for the bytes of its variants; nodes verify it before they load.

Bundles are made by OpenSSF's `model-signing`, so its own command verifies them, and those that it made are taken as
they are. Whoever signs has the bytes: variants are fetched from the hub and hashed here, not taken by their word.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from batuta.errors import ArtifactRefused, BatutaError, NotFound
from batuta.interop import sigstore_bundle
from batuta.kinds.base import DEFAULT_NAMESPACE
from batuta.kinds.model import Model

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from batuta.client import Client
    from batuta.kinds.model import ModelSpec, Version


TRANSFORM = "transform.py"
"""Stands where a variant's name does, for a version's own Python. No variant can be called so."""


class Signed(NamedTuple):
    """One file and its new bundle."""

    version: str
    variant: str
    digest: str
    bundle: str


class Judged(NamedTuple):
    """What became of verifying one file."""

    version: str
    variant: str
    digest: str
    refused: ArtifactRefused | None


def sign(
    client: Client,
    name: str,
    key: str | os.PathLike[str],
    *,
    version: str = "",
    variant: str = "",
    namespace: str = DEFAULT_NAMESPACE,
    on_variant: Callable[[str, str], None] = lambda _version, _variant: None,
) -> list[Signed]:
    """Sign variants that the hub has: all, or those of a version or alias, or one. Their bundles become artifacts. A
    version's own Python is signed with its variants, or alone as the variant TRANSFORM."""
    model = client.get(Model, name, namespace=namespace).resource
    made: list[Signed] = []
    with tempfile.TemporaryDirectory(prefix="batuta-sign-") as directory:
        for its in chosen(model, version, variant):
            on_variant(its.version, its.variant)
            file, bundle = Path(directory) / "model", Path(directory) / "model.sig"
            client.pull_artifact(its.digest, file)
            sign_file(file, key, bundle)
            digest, _ = client.push_artifact(bundle)
            made.append(Signed(its.version, its.variant, its.digest, digest))
            file.unlink()
    found = {(s.version, s.variant): s.bundle for s in made}
    client.update(Model, name, lambda now: _with_bundles(now, found), namespace=namespace)
    return made


def verify(
    client: Client,
    name: str,
    keys: Sequence[str],
    *,
    version: str = "",
    variant: str = "",
    namespace: str = DEFAULT_NAMESPACE,
) -> Iterator[Judged]:
    """Whether one of these public keys, in PEM, has signed each of the variants, as a node would see it."""
    model = client.get(Model, name, namespace=namespace).resource
    with tempfile.TemporaryDirectory(prefix="batuta-verify-") as directory:
        for its in chosen(model, version, variant):
            refused = None
            try:
                client.pull_artifact(its.digest, Path(directory) / "model")
                bundles = []
                for digest in its.signatures:
                    path = Path(directory) / "bundle"
                    client.pull_artifact(digest, path)
                    bundles.append(path.read_bytes())
                sigstore_bundle.vouch(bundles, [keys], its.digest)
            except ArtifactRefused as error:
                refused = error
            yield Judged(its.version, its.variant, its.digest, refused)


def verify_file(file: str | os.PathLike[str], bundle: str | os.PathLike[str], keys: Sequence[str]) -> Judged:
    """The same of a file that is here and its bundle."""
    try:
        with Path(file).open("rb") as opened:
            digest = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
        said = Path(bundle).read_bytes()
    except OSError as error:
        raise BatutaError(f"{error.filename}: {error.strerror}") from None
    try:
        sigstore_bundle.vouch([said], [keys], digest)
    except ArtifactRefused as error:
        return Judged("", Path(file).name, digest, error)
    return Judged("", Path(file).name, digest, None)


def sign_file(file: str | os.PathLike[str], key: str | os.PathLike[str], bundle: str | os.PathLike[str]) -> None:
    """Write a bundle by which the owner of the private key vouches for the file. Raises BatutaError."""
    public = public_key_of(key)
    try:
        from model_signing import signing
    except ImportError as error:
        raise BatutaError(
            f"signing needs the package model-signing, and it cannot be loaded here: {error}",
            next_step="pip install 'batuta[sign]'",
        ) from None
    try:
        signing.Config().use_elliptic_key_signer(private_key=Path(key)).sign(Path(file), Path(bundle))
    except (OSError, ValueError, TypeError) as error:
        raise BatutaError(f"{file} cannot be signed with {key}: {error}") from None
    sigstore_bundle.verify(Path(bundle).read_bytes(), [public])


def make_key(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """A new P-256 key for signing, readable by its owner alone, and its public half beside it. Never over another."""
    private, public = Path(path), Path(path).with_name(Path(path).name + ".pub")
    for each in (private, public):
        if each.exists():
            raise BatutaError(f"{each} is there already", next_step="choose another name, or move it away")
    key = ec.generate_private_key(ec.SECP256R1())
    private.touch(mode=0o600, exist_ok=False)
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_text(_pem_of(key.public_key()))
    return private, public


def public_key_of(path: str | os.PathLike[str]) -> str:
    """The public half, in PEM, of a file that holds either half. Raises BatutaError."""
    try:
        text = Path(path).read_bytes()
        if b"PUBLIC KEY" in text:
            key = serialization.load_pem_public_key(text)
        else:
            key = serialization.load_pem_private_key(text, None).public_key()
    except TypeError:
        raise BatutaError(
            f"{path} is locked by a password",
            next_step="unlock a copy that only you may read: openssl ec -in IN -out OUT",
        ) from None
    except (OSError, ValueError) as error:
        raise BatutaError(f"{path} cannot be read as a key in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BatutaError(f"{path} is not a key of an elliptic curve", next_step="make one: `batuta model key FILE`")
    return _pem_of(key)


class Its(NamedTuple):
    """A file that somebody can vouch for: a variant's, or a version's own Python."""

    version: str
    variant: str
    digest: str
    signatures: tuple[str, ...]


def chosen(model: Model, version: str, variant: str) -> list[Its]:
    """The files that are meant. Raises NotFound when there is none."""
    name, spec = model.metadata.name, model.spec
    versions = spec.versions if not version else tuple(filter(None, (spec.version(version),)))
    found = [its for v in versions for its in _files(v) if variant in ("", its.variant)]
    if not found:
        there = ", ".join(f"{its.version}/{its.variant}" for v in spec.versions for its in _files(v)) or "nothing"
        what = f"{name} has no version {version!r}" if version and not versions else f"{name} has no such variant"
        raise NotFound(f"{what}; there is: {there}", next_step="see `batuta model ls`")
    return found


def _files(version: Version) -> list[Its]:
    found = [Its(version.version, v.name, v.digest, v.signatures) for v in version.variants]
    if version.transform is not None:
        found.append(Its(version.version, TRANSFORM, version.transform, version.transform_signatures))
    return found


def _with_bundles(model: Model, found: dict[tuple[str, str], str]) -> Model:
    def signed(version: Version) -> Version:
        variants = tuple(
            msgspec.structs.replace(w, signatures=tuple(dict.fromkeys((*w.signatures, bundle))))
            if (bundle := found.get((version.version, w.name))) is not None
            else w
            for w in version.variants
        )
        made = found.get((version.version, TRANSFORM))
        of_code = (*version.transform_signatures, made) if made is not None else version.transform_signatures
        return msgspec.structs.replace(version, variants=variants, transform_signatures=tuple(dict.fromkeys(of_code)))

    spec: ModelSpec = msgspec.structs.replace(model.spec, versions=tuple(signed(v) for v in model.spec.versions))
    return msgspec.structs.replace(model, spec=spec)


def _pem_of(key: ec.EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()
