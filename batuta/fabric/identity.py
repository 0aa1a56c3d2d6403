"""Who a machine is, proven with certificates; and the one string that lets a machine become a node.

The hub owns a root. Each site has an intermediate authority below it, and a node's certificate is signed by the one of
its site. That one choice answers two questions: the hub trusts the root, so it takes every node; a node's own broker
trusts only its site's authority, so it takes its neighbours and nobody else, with no list of peers to keep.

A token is spent once. The node learns from it where the hub is and what the hub's root looks like (a hash, the pin), so
the very first connection is already safe from a stranger; the hub learns that somebody it trusts invited this machine.

Time, serial numbers and secrets are arguments. Only the making of keys asks the operating system for chance.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from batuta.errors import EnrolmentRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY_S: Final = 86_400
NODE_URI: Final = "spiffe://batuta/node/"
TOKEN_PREFIX: Final = "batuta1."  # noqa: S105  the public start of every token, so that people and scanners know one

# A fresh certificate starts in the past, so that machines whose clocks are a little apart still accept it.
CLOCK_GRACE_S: Final = 300


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others, with its key. `chain_pem` goes along with what it signs; empty for a root."""

    certificate_pem: str
    key_pem: str
    chain_pem: str = ""


# --- Keys and requests: the node's half -----------------------------------------------------------------------------


def make_key() -> str:
    """A new private key, EC P-256, as PEM. It never leaves the machine that made it."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def make_request(key_pem: str, node: str) -> str:
    """A certificate signing request: proof that whoever calls itself `node` holds the key."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_named(node)).sign(_key(key_pem), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def key_id_of_request(request_pem: str) -> str:
    """A hash of the public key in a request: what the hub remembers a node by."""
    return _key_id(_request(request_pem).public_key())


def key_id_of_certificate(certificate_pem: str) -> str:
    return _key_id(_certificate(certificate_pem).public_key())


# --- Authorities: the hub's half ------------------------------------------------------------------------------------


def make_root(name: str, now: int, serial: int, valid_s: int = 3650 * DAY_S) -> Authority:
    """The authority that everything else hangs from. `now` is in milliseconds, here and below."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _unsigned(name, key.public_key(), now, serial, valid_s)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_SIGNS, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key))


def make_site_authority(root: Authority, site: str, now: int, serial: int, valid_s: int = 1825 * DAY_S) -> Authority:
    """The authority of one site. It can sign nodes, not further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _unsigned(f"site {site}", key.public_key(), now, serial, valid_s, root)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNS, critical=True)
        .sign(_key(root.key_pem), hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key), _pem(certificate))


def sign_request(
    authority: Authority,
    request_pem: str,
    *,
    node: str,
    now: int,
    serial: int,
    valid_s: int,
    addresses: Sequence[str] = (),
) -> str:
    """The node's certificate, followed by its site's: the chain that the node shows to everyone.

    The hub says who the node is; whatever name the request claims is not looked at. `addresses` are where neighbours
    may find it (host names or IP addresses); they check them, as browsers do.
    """
    public_key = _public_key(_request(request_pem).public_key())
    names = (x509.UniformResourceIdentifier(NODE_URI + node), *_places((node, *addresses)))
    return _sign(authority, _unsigned(node, public_key, now, serial, valid_s, authority), names)


def make_server(
    authority: Authority, *, name: str, addresses: Sequence[str], now: int, serial: int, valid_s: int
) -> tuple[str, str]:
    """Certificate chain and key of one of the hub's own listeners."""
    key = ec.generate_private_key(ec.SECP256R1())
    unsigned = _unsigned(name, key.public_key(), now, serial, valid_s, authority)
    return _sign(authority, unsigned, _places((name, *addresses))), _key_pem(key)


def _sign(authority: Authority, unsigned: x509.CertificateBuilder, names: Sequence[x509.GeneralName]) -> str:
    # Both usages: a node is a client of the hub and of its neighbours, and a server to its later neighbours.
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        unsigned.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_SPEAKS, critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
        .sign(_key(authority.key_pem), hashes.SHA256())
    )
    return _pem(certificate) + authority.chain_pem


# --- Looking at certificates ----------------------------------------------------------------------------------------


def node_in_certificate(certificate_pem: str) -> str:
    """The node that a certificate names, or "" when it names none."""
    certificate = _certificate(certificate_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    nodes = [
        uri.removeprefix(NODE_URI)
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith(NODE_URI)
    ]
    return nodes[0] if len(nodes) == 1 else ""


def validity(certificate_pem: str) -> tuple[int, int]:
    """From when to when a certificate holds, in milliseconds. A node renews when a third of it is left."""
    certificate = _certificate(certificate_pem)
    return _ms(certificate.not_valid_before_utc), _ms(certificate.not_valid_after_utc)


def serial_of(certificate_pem: str) -> int:
    return _certificate(certificate_pem).serial_number


def pin_of(certificate_pem: str) -> str:
    """The SHA-256 of a certificate, in hexadecimal."""
    return _certificate(certificate_pem).fingerprint(hashes.SHA256()).hex()


def check_pin(certificate_pem: str, pin: str) -> None:
    """Raises when the hub's root is not the one that the token was made under."""
    if not hmac.compare_digest(pin_of(certificate_pem), pin):
        raise EnrolmentRefused(
            "hub_not_trusted",
            "the hub shows another root certificate than the one in the token",
            next_step="if the hub was set up anew, make a new token; if not, do not go on: someone may be in between",
        )


def check_chain(chain_pem: str, root_pem: str, now: int) -> None:
    """Raises unless the first certificate leads to `root_pem`, step by step, and every one holds at `now`."""
    root = _certificate(root_pem)
    chain = [*x509.load_pem_x509_certificates(chain_pem.encode()), root]
    for certificate, signer in pairwise(chain):
        try:
            certificate.verify_directly_issued_by(signer)
        except (ValueError, TypeError, InvalidSignature):
            raise EnrolmentRefused(
                "wrong_authority",
                f"{_common_name(certificate)} was not signed by {_common_name(signer)}",
                next_step="this certificate belongs to another hub; join this one with a new token",
            ) from None
    for certificate in chain:
        _check_time(certificate, now)


def _check_time(certificate: x509.Certificate, now: int) -> None:
    begins, ends = _ms(certificate.not_valid_before_utc), _ms(certificate.not_valid_after_utc)
    if now < begins:
        raise EnrolmentRefused(
            "clock_wrong",
            f"this machine's clock is at least {(begins - now) // 1000} s behind the hub's: "
            f"the certificate of {_common_name(certificate)} is not valid yet",
            next_step="set the clock (timedatectl set-ntp true) and join again",
        )
    if now >= ends:
        raise EnrolmentRefused(
            "certificate_expired",
            f"the certificate of {_common_name(certificate)} ended {(now - ends) // 1000} s ago",
            next_step="join again with a new token; if the clock is ahead, set it first",
        )


# --- Tokens ---------------------------------------------------------------------------------------------------------


class Token(msgspec.Struct, frozen=True, rename={"hubs": "h", "id": "i", "secret": "s", "pin": "p", "expires_at": "e"}):
    """What a person pastes on the new machine."""

    hubs: tuple[str, ...]
    """Where to ask, in order: `https://10.0.0.5:8443`."""
    id: str
    secret: str
    pin: str
    expires_at: int


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub keeps of a token: enough to recognise it, not enough to forge it."""

    id: str
    secret_hash: str
    expires_at: int
    site: str
    node: str = ""
    """When set, only a node of this name may use it."""
    uses_left: int = 1


def make_token(
    *, hubs: Sequence[str], pin: str, chance: bytes, expires_at: int, site: str, node: str = "", uses: int = 1
) -> tuple[Token, TokenRecord]:
    """A token and what the hub keeps of it. `chance` is at least 24 unpredictable bytes."""
    if len(chance) < 24:
        raise ValueError("a token takes at least 24 bytes of chance")
    token_id, secret = chance[:6].hex(), _b64(chance[6:])
    record = TokenRecord(
        id=token_id, secret_hash=_hash(secret), expires_at=expires_at, site=site, node=node, uses_left=uses
    )
    return Token(tuple(hubs), token_id, secret, pin, expires_at), record


def write_token(token: Token) -> str:
    """One string without spaces, quotes or anything else that a shell or a chat would change."""
    return TOKEN_PREFIX + _b64(msgspec.json.encode(token))


def read_token(text: str) -> Token:
    """The token in `text`; raises when it was cut off or is something else."""
    body = "".join(text.split()).removeprefix(TOKEN_PREFIX)
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=Token)
    except (ValueError, msgspec.DecodeError):
        raise EnrolmentRefused(
            "token_garbled",
            "this is not a whole token",
            next_step=f"copy all of the line that `batuta token create` printed; it starts with {TOKEN_PREFIX}",
        ) from None


def spend_token(
    record: TokenRecord | None, secret: str, *, node: str, now: int, key_id: str, known_key_id: str = ""
) -> TokenRecord:
    """The record after one use by `node`; raises when it may not be used.

    `known_key_id` is the key that `node` is already known by, if any: a machine whose answer got lost may ask again
    with the same key, another machine may not take its name.
    """
    if record is None or not hmac.compare_digest(record.secret_hash, _hash(secret)):
        raise EnrolmentRefused(
            "token_unknown",
            "the hub knows no such token",
            next_step="it may have been revoked, or belong to another hub: make one with `batuta token create`",
        )
    if now >= record.expires_at:
        raise EnrolmentRefused(
            "token_expired",
            f"this token ended {(now - record.expires_at) // 1000} s ago",
            next_step="make a new one with `batuta token create`",
        )
    if record.node and node != record.node:
        raise EnrolmentRefused(
            "token_for_another",
            f"this token is for node {record.node}, not {node}",
            next_step=f"join with `--name {record.node}`, or make a token without a name",
        )
    if known_key_id and known_key_id != key_id:
        raise EnrolmentRefused(
            "name_taken",
            f"another machine is already called {node}",
            next_step=f"choose another name with `--name`, or `batuta delete node {node}` if that machine is gone",
        )
    if known_key_id:
        return record
    if record.uses_left < 1:
        raise EnrolmentRefused(
            "token_used",
            "this token was used already",
            next_step="make one per machine with `batuta token create`",
        )
    return msgspec.structs.replace(record, uses_left=record.uses_left - 1)


# --- Small words for the above --------------------------------------------------------------------------------------

_NO_USAGE: Final = {
    "digital_signature": False,
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "key_cert_sign": False,
    "crl_sign": False,
    "encipher_only": False,
    "decipher_only": False,
}
_SIGNS: Final = x509.KeyUsage(**{**_NO_USAGE, "key_cert_sign": True, "crl_sign": True})
_SPEAKS: Final = x509.KeyUsage(**{**_NO_USAGE, "digital_signature": True, "key_agreement": True})


def _unsigned(  # noqa: PLR0917  the order is that of the fields in a certificate
    name: str, public_key: ec.EllipticCurvePublicKey, now: int, serial: int, valid_s: int, by: Authority | None = None
) -> x509.CertificateBuilder:
    """A certificate but for its purpose and signature. Without `by` it speaks for itself."""
    at = datetime.fromtimestamp(now / 1000, UTC)
    signer = _certificate(by.certificate_pem) if by else None
    signer_key = _public_key(signer.public_key()) if signer else public_key
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(signer.subject if signer else _named(name))
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(at - timedelta(seconds=CLOCK_GRACE_S))
        .not_valid_after(at + timedelta(seconds=valid_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key), critical=False)
    )


def _places(names: Sequence[str]) -> tuple[x509.GeneralName, ...]:
    """What a certificate is good for as an address: the names given, and always this machine itself."""
    out: dict[str, x509.GeneralName] = {}
    for name in (*names, "localhost", "127.0.0.1", "::1"):
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            out.setdefault(name, x509.DNSName(name))
        else:
            out.setdefault(str(address), x509.IPAddress(address))
    return tuple(out.values())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "a certificate without a name"


def _certificate(pem: str) -> x509.Certificate:
    """The first certificate of `pem`."""
    return x509.load_pem_x509_certificates(pem.encode())[0]


def _request(pem: str) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        sound = request.is_signature_valid and isinstance(request.public_key(), ec.EllipticCurvePublicKey)
    except ValueError:
        sound = False
    if not sound:
        raise EnrolmentRefused("request_malformed", "the signing request is damaged, or not made with an EC key")
    return request


def _key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("Batuta's keys are EC keys")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _public_key(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("Batuta's keys are EC keys")
    return key


def _key_id(key: object) -> str:
    der = _public_key(key).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _hash(secret: str) -> str:
    # The secret has at least 144 bits of chance, so a plain hash cannot be guessed backwards.
    return hashlib.sha256(secret.encode()).hexdigest()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
