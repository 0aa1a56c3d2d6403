"""`python -m batuta.hub.prepare --state DIR`: keys, certificates and passwords, before the broker starts.

A process of its own, because it needs the libraries for signatures and the supervisor, which stays, must not.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

import msgspec

from batuta.fabric import callout
from batuta.fabric.clock import SystemClock
from batuta.hub.authority import Authorities
from batuta.hub.run import Run, Secrets, read_run
from batuta.hub.secret_files import secret_in, write_secret


def prepare(run: Run) -> None:
    """Makes what is missing and renews what ends; what is there stays as it is."""
    directory = run.config.directory
    now = SystemClock().now()
    Authorities(directory / "authority").prepare_listener(run.config.names, now)
    secret_in(directory / "admin.token")
    if not (directory / "secrets.json").exists():
        seed = callout.make_issuer(secrets.token_bytes(32))
        drawn = Secrets(
            hub_password=secrets.token_urlsafe(24),
            callout_password=secrets.token_urlsafe(24),
            system_password=secrets.token_urlsafe(24),
            callout_seed=seed,
            callout_issuer=callout.issuer_public(seed),
        )
        write_secret(directory / "secrets.json", msgspec.json.encode(drawn).decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    prepare(read_run(parser.parse_args().state))


if __name__ == "__main__":
    main()
