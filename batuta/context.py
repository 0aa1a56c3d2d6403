"""Which hub is meant, and as whom: what `batuta up` wrote down here, unless somebody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from batuta.config import HTTP_PORT, default_state
from batuta.errors import BatutaError, FabricUnavailable

DEFAULT_SERVER = f"http://127.0.0.1:{HTTP_PORT}"


class NoContext(FabricUnavailable):
    """Nobody has said which hub is meant."""


class Context(NamedTuple):
    """Which hub, as whom."""

    server: str
    token: str = ""
    ca: str = ""


def context(
    state: str | os.PathLike[str] | None = None, *, server: str | None = None, token_file: str | None = None
) -> Context:
    """The hub that is meant: by the arguments, else $BATUTA_SERVER and $BATUTA_TOKEN_FILE, else by `batuta up` here."""
    server = server or os.environ.get("BATUTA_SERVER", "")
    token_file = token_file or os.environ.get("BATUTA_TOKEN_FILE", "")
    file = Path(state or default_state()).expanduser() / "context.json"
    known: dict[str, Any] = {}
    try:
        known = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        if not server:
            raise NoContext(
                f"no hub is known here: there is no {file}",
                next_step="start one with `batuta up`, or name one with BATUTA_SERVER and BATUTA_TOKEN_FILE",
            ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise BatutaError(f"{file} cannot be read", next_step="`batuta up` writes it anew") from error
    ca = str(known.get("ca") or "")
    if server and server.rstrip("/") != str(known.get("server", "")).rstrip("/"):
        ca = ""  # Another hub than the one written down: neither its authority nor its token are for this one.
    else:
        token_file = token_file or str(known.get("tokenFile") or "")
    token = ""
    if token_file:
        try:
            token = Path(token_file).expanduser().read_text().strip()
        except OSError as error:
            raise BatutaError(
                f"the token file {token_file} cannot be read",
                next_step="run as the user who runs the hub, or set BATUTA_TOKEN_FILE",
            ) from error
    return Context(server or str(known.get("server") or DEFAULT_SERVER), token, ca)
