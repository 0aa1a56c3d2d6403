"""Enrolment: how a machine with a token becomes a node, and how a node renews its certificate.

Cryptography costs ten megabytes that the agent must not carry for a year, so this runs in a child that ends: one task
as JSON on its standard input, one answer on its standard output, secrets in neither arguments nor environment. The
key is made once and kept before anyone is asked; when an answer gets lost, the same machine asks again with the same
key.
"""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import http.client
import signal
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.agent import identity as kept
from batuta.agent.ledger import FULL
from batuta.errors import EnrolmentRefused
from batuta.fabric import identity
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.fabric.identity import Token

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 256 * 1024
# What the token's maker calls a fault, in the words of the catalogue of reasons.
CODES: Final = {"token_malformed": "token_garbled", "pin_mismatch": "hub_not_trusted", "clock_skew": "clock_wrong"}


class Join(Record, tag="join"):
    """Become a node."""

    directory: str
    token: str
    node: str
    site: str = ""
    addresses: tuple[str, ...] = ()
    labels: dict[str, str] = {}


class Ask(Record, tag="ask"):
    """Write the request for a renewed certificate; who asked sends it over the fabric."""

    directory: str


class Accept(Record, tag="accept"):
    """Check the answer to that request, and keep it."""

    directory: str
    answer: str


class Look(Record, tag="look"):
    """Is the hub we belong to there, and still the same? Asked when it is silent."""

    directory: str


class Answer(Record, forbid_unknown_fields=False):
    """What the hub says to a request it grants. A newer hub may say more."""

    node: str
    site: str
    chain: str
    root: str
    site_authority: str
    leafs: tuple[str, ...]


class Done(Record, tag="done"):
    identity: kept.Identity | None = None
    request: str = ""


class No(Record, tag="no"):
    code: str
    message: str
    next_step: str = ""


Task = Join | Ask | Accept | Look


def perform(task: Task) -> Done:
    match task:
        case Join():
            return Done(identity=join(task))
        case Ask(directory=directory):
            here = kept.load(Path(directory))
            assert here is not None, "only a node renews"
            return Done(request=identity.make_request(_key(Path(directory)), here.node))
        case Accept(directory=directory, answer=text):
            here = kept.load(Path(directory))
            assert here is not None, "only a node renews"
            root = (Path(directory) / "root.pem").read_text(encoding="ascii")
            return Done(identity=_keep(Path(directory), _answer(text.encode()), here.hubs, here.pin, root))
        case Look(directory=directory):
            look(Path(directory))
            return Done()


# --- Joining ---


def join(task: Join) -> kept.Identity:
    """The whole way from a pasted line to credentials on disk."""
    directory = Path(task.directory)
    token = identity.read_token(task.token)
    here = kept.load(directory)
    if here is not None:
        if hmac.compare_digest(here.pin, token.pin):
            return here
        same_place = set(here.hubs) & set(token.hubs)
        what = "an earlier hub at the same address" if same_place else f"another hub ({', '.join(here.hubs)})"
        first = "if it was set up anew, end the node and" if same_place else "to move it, remove it there and"
        raise EnrolmentRefused(
            "other_hub",
            f"this machine is node {here.node} of {what}",
            next_step=f"{first} move {directory.parent} away; then join again",
        )
    request = identity.make_request(_key(directory), task.node)
    refused: EnrolmentRefused | None = None
    for hub in token.hubs:
        try:
            root = fetch_root(hub, token.pin)
            answer = _answer(ask(hub, root, token, task, request))
            return _keep(directory, answer, token.hubs, token.pin, root)
        except EnrolmentRefused as error:
            if error.code != "not_connected":
                raise
            refused = error
    raise refused or EnrolmentRefused("token_garbled", "the token names no hub", next_step="make a new token")


def look(directory: Path) -> None:
    """Returns when the hub of this node answers and is the one it joined; else EnrolmentRefused says what is wrong."""
    here = kept.load(directory)
    assert here is not None, "only a node has a hub"
    refused: EnrolmentRefused | None = None
    for hub in here.hubs:
        try:
            fetch_root(hub, here.pin, "node joined by", f"end the node, move {directory.parent} away and join anew")
        except EnrolmentRefused as error:
            if error.code != "not_connected":
                raise
            refused = error
        else:
            return
    raise refused or EnrolmentRefused("not_connected", "no address of the hub is known", next_step="join it again")


def fetch_root(hub: str, pin: str, known_from: str = "token names", mend: str = "make a new token") -> str:
    """The hub's root. Asked for without trusting anyone, because what comes is compared with a pin that we have."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    root = _http(hub, f"{hub}/ca.pem", unverified).decode(errors="replace")
    try:
        found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(root)).hexdigest()
    except ValueError:
        raise EnrolmentRefused(
            "hub_not_trusted", f"{hub} answered something that is no certificate", next_step="is this a Batuta hub?"
        ) from None
    if not hmac.compare_digest(found, pin):
        raise EnrolmentRefused(
            "hub_not_trusted",
            f"{hub} shows another root certificate than the one that the {known_from}",
            next_step=f"if the hub was set up anew, {mend}; if not, someone is in between: do not go on",
        )
    return root


def ask(hub: str, root: str, token: Token, task: Join, request: str) -> bytes:
    """Spend the token. From here on the connection is verified by the root."""
    said = {
        "tokenId": token.id, "secret": token.secret, "node": task.node, "request": request, "site": task.site,
        "now": time.time_ns() // 1_000_000, "addresses": task.addresses, "labels": task.labels,
    }  # fmt: skip
    return _http(hub, f"{hub}/enrol", ssl.create_default_context(cadata=root), msgspec.json.encode(said))


def _key(directory: Path) -> str:
    path = directory / "key.pem"
    if not path.exists():
        kept.write_private(path, identity.make_key().encode())
    return path.read_text(encoding="ascii")


def _answer(data: bytes) -> Answer:
    try:
        return msgspec.json.decode(data, type=Answer)
    except msgspec.MsgspecError as error:
        said = _refusal(data)
        if said is not None:
            raise said from None
        raise EnrolmentRefused("hub_not_trusted", f"the hub's answer cannot be read: {error}") from error


def _keep(directory: Path, answer: Answer, hubs: tuple[str, ...], pin: str, root: str) -> kept.Identity:
    """Check that the certificate leads to the root we trust and names us, then write all down, the naming file last."""
    now = time.time_ns() // 1_000_000
    identity.check_chain(answer.chain, root, now)
    if identity.node_in_certificate(answer.chain) != answer.node:
        raise EnrolmentRefused("hub_not_trusted", "the certificate that came back names another node")
    begins_at, ends_at = identity.validity(answer.chain)
    chain = f"chain-{identity.serial_of(answer.chain):x}.pem"
    kept.write_private(directory / chain, answer.chain.encode())
    kept.write_private(directory / "root.pem", root.encode())
    kept.write_private(directory / "site.pem", answer.site_authority.encode())
    found = kept.Identity(
        node=answer.node, site=answer.site, leafs=answer.leafs, hubs=hubs, pin=pin, chain=chain,
        begins_at=begins_at, ends_at=ends_at,
    )  # fmt: skip
    kept.keep(directory, found)
    for old in directory.glob("chain-*.pem"):
        if old.name != chain:
            old.unlink(missing_ok=True)
    return found


# --- One HTTPS request, and each way it can fail, in words ---


def _http(hub: str, url: str, context: ssl.SSLContext, body: bytes | None = None) -> bytes:
    if not url.startswith("https://"):
        raise EnrolmentRefused("token_garbled", f"{hub} is not an https address", next_step="make a new token")
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  checked above
    # The system's proxy settings are for the web; a hub is asked directly.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(ANSWER_BYTES_MAX)
            return data
    except urllib.error.HTTPError as error:
        said = _refusal(error.read(ANSWER_BYTES_MAX))
        raise said or EnrolmentRefused("not_connected", f"{url} answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _unreachable(hub, error.reason) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(hub, error) from None


def _unreachable(hub: str, why: object) -> EnrolmentRefused:
    """Ordered: the first row that fits says what went wrong and what to look at."""
    if isinstance(why, ssl.SSLCertVerificationError):
        if why.verify_code in (9, 10):  # not yet valid, or expired: mostly it is our clock that is wrong
            return EnrolmentRefused(
                "clock_wrong", f"{hub}: {why.verify_message}", next_step="set this machine's clock and join again"
            )
        return EnrolmentRefused(
            "hub_not_trusted",
            f"{hub}: {why.verify_message}",
            next_step="make the token for an address that is in the hub's certificate: `batuta up --listen ADDRESS`",
        )
    rows: tuple[tuple[Callable[[], bool], str, str], ...] = (
        (lambda: isinstance(why, socket.gaierror), "its name is not known here", "use its IP address, or check DNS"),
        (lambda: isinstance(why, ConnectionRefusedError), "nobody listens there", "is `batuta up --listen` running?"),
        (lambda: isinstance(why, TimeoutError), f"no answer in {TIMEOUT_S:.0f} s", "check the firewall and the route"),
        (lambda: isinstance(why, ssl.SSLError), f"no TLS there ({why})", "is the port that of the hub's HTTPS?"),
    )
    for holds, what, next_step in rows:
        if holds():
            return EnrolmentRefused("not_connected", f"{hub} cannot be reached: {what}", next_step=next_step)
    return EnrolmentRefused("not_connected", f"{hub} cannot be reached: {why}", next_step="check address and firewall")


def _refusal(data: bytes) -> EnrolmentRefused | None:
    """The hub's no: a code, a sentence and the next step."""
    try:
        said: Any = msgspec.json.decode(data)
        code, message = said.get("error") or said["code"], said["message"]
        return EnrolmentRefused(str(code)[:64], str(message)[:1000], next_step=str(said.get("nextStep", ""))[:1000])
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return None


def _unkept(directory: str, error: OSError) -> No:
    """Nothing is lost: the key is kept before anyone is asked, and the same token is good for the same key."""
    if error.errno in FULL:
        return No("disk_full", f"the disk of {directory} is full: {error.strerror}", "free some space and join again")
    return No("enrolment_unwritable", str(error), f"check who owns {directory}, and join again")


def _tie() -> None:
    """End with whoever asked: nobody else would hear the answer."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> int:
    _tie()
    task = msgspec.json.decode(sys.stdin.buffer.read(ANSWER_BYTES_MAX * 2), type=Task)
    said: Done | No
    try:
        said = perform(task)
    except EnrolmentRefused as error:
        said = No(code=CODES.get(error.code, error.code), message=error.message, next_step=error.next_step)
    except OSError as error:
        said = _unkept(task.directory, error)
    sys.stdout.buffer.write(msgspec.json.encode(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
