"""A Sigstore bundle, as OpenSSF's model signing writes it: who signed which files, by their digests.

A bundle wraps a DSSE envelope, which wraps an in-toto statement, whose predicate lists every file with its SHA-256. So
whoever holds the digest of a file, and has hashed its bytes, needs only the bundle and a public key to know whether the
owner of that key vouches for the file: no file is read here. The bundles of `model_signing sign key` are taken as they
are. Keyless ones, by certificate and transparency log, are not: a node has no log to ask.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
BUNDLE_BYTES_MAX = 1 << 20
FILES_MAX = 10_000
_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512,
}  # fmt: skip


class Vouched(NamedTuple):
    """What a bundle whose signature holds says."""

    key: str
    """The public key by which it was verified, in PEM."""
    files: tuple[tuple[str, str], ...]
    """Name and digest of every file; the name of a single one is a dot."""


def vouch(bundles: Sequence[bytes], groups: Sequence[Sequence[str]], digest: str) -> None:
    """Of each group of public keys, one has signed `digest` in one of these bundles. Raises ArtifactRefused if not."""
    for keys in groups:
        faults: list[ArtifactRefused] = []
        for bundle in bundles:
            try:
                vouched = verify(bundle, keys)
            except ArtifactRefused as error:
                faults.append(error)
                continue
            if any(each == digest for _, each in vouched.files):
                break
            faults.append(_invalid(f"the signature is of {vouched.files[0][1][:19]}…, the file is {digest[:19]}…"))
        else:
            if not faults:
                raise ArtifactRefused("signature_missing", f"nobody has signed {digest[:19]}…")
            # One that is of somebody else is no fault of the file; one that is broken may be worse.
            raise next((f for f in faults if f.code == "signature_invalid"), faults[0])


def verify(bundle: bytes, keys: Sequence[str]) -> Vouched:
    """What the bundle says, when one of these public keys has signed it. Raises ArtifactRefused otherwise."""
    envelope, hint = _opened(bundle)
    payload, signatures = _bytes(envelope.payload), [_bytes(s.sig) for s in envelope.signatures]
    meant = [key for key in keys if hint in ("", *key_hints(key))]
    if not meant:
        raise ArtifactRefused(
            "signer_unknown", f"it was signed with key {hint[:12]}…, which is none of those asked for"
        )
    for key in meant:
        if any(_holds(key, signature, pae(envelope.payload_type, payload)) for signature in signatures):
            return Vouched(key, _files(payload))
    if hint:
        raise _invalid(f"the signature does not hold under key {hint[:12]}…, by which it says it was made")
    raise ArtifactRefused("signer_unknown", "it was signed with none of the keys asked for")


def pae(payload_type: str, payload: bytes) -> bytes:
    """What DSSE signs: type and payload, with their lengths, so that neither can be read as part of the other."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type.encode()), payload_type.encode(), len(payload), payload)


def key_hints(key: str) -> tuple[str, ...]:
    """By which names a bundle may call a public key: the SHA-256 of its PEM. Raises ArtifactRefused if it is no key."""
    pem = _key(key).public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return (hashlib.sha256(pem).hexdigest(),)


class _Signed(msgspec.Struct):
    sig: str


class _Envelope(msgspec.Struct, rename="camel"):
    payload: str
    payload_type: str
    signatures: Annotated[list[_Signed], Meta(min_length=1, max_length=16)]


class _PublicKey(msgspec.Struct):
    hint: str = ""


class _Material(msgspec.Struct, rename="camel"):
    public_key: _PublicKey | None = None


class _Bundle(msgspec.Struct, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Predicate(msgspec.Struct):
    resources: Annotated[list[_Resource], Meta(min_length=1, max_length=FILES_MAX)]
    serialization: dict[str, Any]


class _Subject(msgspec.Struct):
    digest: dict[str, str]
    name: str = ""


class _Statement(msgspec.Struct):
    type: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: _Predicate
    subject: Annotated[list[_Subject], Meta(min_length=1, max_length=1)]


def _opened(bundle: bytes) -> tuple[_Envelope, str]:
    if len(bundle) > BUNDLE_BYTES_MAX:
        raise _invalid(f"a bundle has {BUNDLE_BYTES_MAX} bytes at most")
    try:
        read = msgspec.json.decode(bundle, type=_Bundle)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid(f"this is not a Sigstore bundle: {error}") from None
    if read.media_type != MEDIA_TYPE:
        raise _invalid(f"this is a {read.media_type[:80]}; bundles of version 0.3 are read")
    if read.verification_material.public_key is None:
        raise _invalid("it was signed by certificate; only signatures with a key can be verified on a node")
    if read.dsse_envelope.payload_type != PAYLOAD_TYPE:
        raise _invalid(f"it holds a {read.dsse_envelope.payload_type[:80]}, not an in-toto statement")
    return read.dsse_envelope, read.verification_material.public_key.hint


def _files(payload: bytes) -> tuple[tuple[str, str], ...]:
    """The files of a statement that is already known to be genuine, and as it must be to mean them."""
    try:
        statement = msgspec.json.decode(payload, type=_Statement)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid(f"what was signed is no statement about models: {error}") from None
    if statement.type != STATEMENT_TYPE or statement.predicate_type != PREDICATE_TYPE:
        raise _invalid(f"what was signed is a {statement.predicate_type[:80]}, not a model signature")
    said = statement.predicate
    if said.serialization.get("method") != "files" or said.serialization.get("hash_type") != "sha256":
        raise _invalid("its files are named by other digests than the SHA-256 of the whole file")
    if any(r.algorithm != "sha256" or len(r.digest) != 64 for r in said.resources):
        raise _invalid("a file in it has no SHA-256")
    try:
        whole = hashlib.sha256(b"".join(bytes.fromhex(r.digest) for r in said.resources)).hexdigest()
    except ValueError:
        raise _invalid("a digest in it is not hexadecimal") from None
    if statement.subject[0].digest.get("sha256") != whole:
        raise _invalid("its files are not those of its subject")
    return tuple((r.name, f"sha256:{r.digest.lower()}") for r in said.resources)


def _key(pem: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ArtifactRefused("signer_unknown", "a public key that is asked for cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ArtifactRefused("signer_unknown", "a public key that is asked for is not of P-256, P-384 or P-521")
    return key


def _holds(pem: str, signature: bytes, signed: bytes) -> bool:
    key = _key(pem)
    try:
        key.verify(signature, signed, ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature:
        return False
    return True


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("a part of it is not base64") from None


def _invalid(why: str) -> ArtifactRefused:
    return ArtifactRefused("signature_invalid", why)
