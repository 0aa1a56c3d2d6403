"""Bundles that OpenSSF's model-signing really made: which hold, and every way in which one does not."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from batuta.errors import ArtifactRefused, BatutaError
from batuta.interop import sigstore_bundle
from batuta.model_sign import make_key, public_key_of, sign_file, verify_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE = b"weights, as it were" * 100
DIGEST = f"sha256:{hashlib.sha256(FILE).hexdigest()}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str, str, Path]:
    """A bundle of FILE, the public key that made it, another public key, and the private key's file."""
    here = tmp_path_factory.mktemp("keys")
    private, public = make_key(here / "mine")
    _, other = make_key(here / "other")
    (here / "m.onnx").write_bytes(FILE)
    sign_file(here / "m.onnx", private, here / "m.sig")
    return (here / "m.sig").read_bytes(), public.read_text(), other.read_text(), private


def code_of(bundles: list[bytes], groups: list[list[str]], digest: str = DIGEST) -> str:
    with pytest.raises(ArtifactRefused) as refused:
        sigstore_bundle.vouch(bundles, groups, digest)
    return refused.value.code


def test_what_model_signing_made_holds(made: tuple[bytes, str, str, Path]) -> None:
    bundle, mine, other, _ = made
    vouched = sigstore_bundle.verify(bundle, [other, mine])
    assert vouched.files == ((".", DIGEST),)
    sigstore_bundle.vouch([bundle], [[mine]], DIGEST)
    sigstore_bundle.vouch([bundle], [[other, mine]], DIGEST)


def test_model_signing_itself_takes_what_was_made_here(made: tuple[bytes, str, str, Path], tmp_path: Path) -> None:
    from model_signing import verifying

    (tmp_path / "by-another-name").write_bytes(FILE)
    (tmp_path / "bundle").write_bytes(made[0])
    (tmp_path / "key").write_text(made[1])
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key")
    config.verify(tmp_path / "by-another-name", tmp_path / "bundle")
    (tmp_path / "by-another-name").write_bytes(FILE[:-1])
    with pytest.raises(ValueError, match="mismatch"):
        config.verify(tmp_path / "by-another-name", tmp_path / "bundle")


def test_who_is_not_asked_for_is_unknown(made: tuple[bytes, str, str, Path]) -> None:
    bundle, mine, other, _ = made
    assert code_of([bundle], [[other]]) == "signer_unknown"
    assert code_of([bundle], [[mine], [other]]) == "signer_unknown", "each policy asks for itself"
    assert code_of([], [[mine]]) == "signature_missing"


def test_another_file_is_not_vouched_for(made: tuple[bytes, str, str, Path]) -> None:
    bundle, mine, _, _ = made
    assert code_of([bundle], [[mine]], f"sha256:{'0' * 64}") == "signature_invalid"


def test_one_good_bundle_among_bad_ones_is_enough(made: tuple[bytes, str, str, Path]) -> None:
    bundle, mine, _, _ = made
    sigstore_bundle.vouch([b"{}", bundle], [[mine]], DIGEST)


def change(bundle: bytes, how: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(bundle)
    how(document)
    return json.dumps(document).encode()


def other_payload(document: dict[str, Any]) -> None:
    envelope = document["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["resources"][0]["digest"] = "0" * 64
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


@pytest.mark.parametrize(
    "how",
    [
        other_payload,
        lambda d: d["dsseEnvelope"].update(payloadType="text/plain"),
        lambda d: d["dsseEnvelope"].update(payload="***"),
        lambda d: d["dsseEnvelope"].update(signatures=[]),
        lambda d: d["dsseEnvelope"]["signatures"][0].update(sig=base64.b64encode(b"no").decode()),
        lambda d: d.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
        lambda d: d.update(verificationMaterial={"certificate": {"rawBytes": "AA=="}}),
        lambda d: d.pop("dsseEnvelope"),
    ],
)  # fmt: skip
def test_a_bundle_that_was_changed_does_not_hold(
    made: tuple[bytes, str, str, Path], how: Callable[[dict[str, Any]], None]
) -> None:
    bundle, mine, _, _ = made
    assert code_of([change(bundle, how)], [[mine]]) == "signature_invalid"


@pytest.mark.parametrize("bundle", [b"", b"{", b"[]", b"\xff\xfe", b" " * (sigstore_bundle.BUNDLE_BYTES_MAX + 1)])
def test_bytes_that_are_no_bundle(made: tuple[bytes, str, str, Path], bundle: bytes) -> None:
    assert code_of([bundle], [[made[1]]]) == "signature_invalid"


def resign(bundle: bytes, private: Path, how: Callable[[dict[str, Any]], None]) -> bytes:
    """A genuine signature of another statement."""
    document = json.loads(bundle)
    envelope = document["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    how(statement)
    payload = json.dumps(statement).encode()
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(sigstore_bundle.pae(envelope["payloadType"], payload), ec.ECDSA(hashes.SHA256()))
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "how",
    [
        lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s["predicate"]["serialization"].update(method="shards"),
        lambda s: s["predicate"]["serialization"].update(hash_type="blake2"),
        lambda s: s["predicate"]["resources"][0].update(algorithm="sha256-sharded"),
        lambda s: s["predicate"]["resources"].append({"name": "x", "algorithm": "sha256", "digest": "1" * 64}),
        lambda s: s["predicate"].update(resources=[]),
    ],
)  # fmt: skip
def test_what_the_right_key_signed_about_something_else_says_nothing_of_the_model(
    made: tuple[bytes, str, str, Path], how: Callable[[dict[str, Any]], None]
) -> None:
    bundle, mine, _, private = made
    assert sigstore_bundle.verify(resign(bundle, private, lambda _: None), [mine]).files == ((".", DIGEST),)
    assert code_of([resign(bundle, private, how)], [[mine]]) == "signature_invalid"


def test_without_a_hint_every_key_is_tried(made: tuple[bytes, str, str, Path]) -> None:
    bundle, mine, other, _ = made
    plain = change(bundle, lambda d: d["verificationMaterial"]["publicKey"].pop("hint"))
    sigstore_bundle.vouch([plain], [[other, mine]], DIGEST)
    assert code_of([plain], [[other]]) == "signer_unknown"


def test_a_key_that_cannot_be_read_trusts_nobody(made: tuple[bytes, str, str, Path]) -> None:
    garbage = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
    assert code_of([made[0]], [[garbage]]) == "signer_unknown"


def test_keys_are_made_once_and_are_their_owners_alone(tmp_path: Path) -> None:
    private, public = make_key(tmp_path / "k")
    assert private.stat().st_mode & 0o077 == 0
    assert public_key_of(private) == public_key_of(public) == public.read_text()
    with pytest.raises(BatutaError, match="is there already"):
        make_key(tmp_path / "k")
    (tmp_path / "not").write_text("a key")
    with pytest.raises(BatutaError, match="cannot be read"):
        public_key_of(tmp_path / "not")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_the_larger_curves(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    private = tmp_path / "k"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    (tmp_path / "m").write_bytes(FILE)
    sign_file(tmp_path / "m", private, tmp_path / "m.sig")
    assert verify_file(tmp_path / "m", tmp_path / "m.sig", [public_key_of(private)]).refused is None
    (tmp_path / "m").write_bytes(FILE[:-1])
    refused = verify_file(tmp_path / "m", tmp_path / "m.sig", [public_key_of(private)]).refused
    assert refused is not None
    assert refused.code == "signature_invalid"
