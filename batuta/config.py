"""HubConfig: what a hub is told before it starts. Configuration is a kind nobody applies.

Later wins: the defaults here, `<state>/hub/hub.toml`, `BATUTA_HUB_<FIELD>` in the environment, options of the
command line.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from batuta.errors import Refused
from batuta.kinds.base import Problem, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

HTTP_PORT: Final = 8400
HTTPS_PORT: Final = 8443
LEAF_PORT: Final = 7422

Port = Annotated[int, Meta(ge=0, le=65_535)]


def default_state() -> Path:
    """Where state lives when nobody says: `$BATUTA_HOME`, else `~/.local/share/batuta`."""
    named = os.environ.get("BATUTA_HOME")
    return Path(named) if named else Path.home() / ".local" / "share" / "batuta"


class HubConfig(Record):
    """One hub's settings. A port of None means the usual one or the next that is free; 0 means any."""

    state: str
    """The state directory; the hub's own part is `<state>/hub`."""
    listen: str = "127.0.0.1"
    """Address of the HTTPS and leaf listeners; plain HTTP never leaves loopback."""
    advertise: tuple[str, ...] = ()
    """Names or addresses under which nodes find this hub; they go into tokens and certificates."""
    http_port: Port | None = None
    https_port: Port | None = None
    leaf_port: Port | None = None
    full_pass_ms: Annotated[int, Meta(ge=100)] = 60_000
    """How often everything is decided anew, to find what deciding by changes has missed."""
    artifact_bytes_max: Annotated[int, Meta(ge=1)] = 8 * 2**30
    """Largest artifact that is taken."""
    artifact_keep_s: Annotated[int, Meta(ge=60)] = 7 * 86_400
    """So long an artifact is kept that no model, application or release refers to (any more)."""
    up_bytes_max: Annotated[int, Meta(ge=2**20)] = 2**30
    """Room for each class of forwarded data; the oldest goes first."""
    recording_bytes_max: Annotated[int, Meta(ge=0)] = 64 * 2**20
    """Room for the recording of what was decided and why, oldest first to go; 0 records nothing."""
    certificate_s: Annotated[int, Meta(ge=60)] = 7 * 86_400
    """How long a node's certificate holds; it is renewed over the fabric long before."""

    @property
    def directory(self) -> Path:
        return Path(self.state) / "hub"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which this hub may be asked for."""
        return tuple(dict.fromkeys((*self.advertise, *(() if _is_wildcard(self.listen) else (self.listen,)))))


def load_hub_config(state: Path, options: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> HubConfig:
    """The settings of the hub in `state`. `options` are those said on the command line; None means not said."""
    settings: dict[str, Any] = {}
    file = state / "hub" / "hub.toml"
    if file.exists():
        try:
            settings.update(tomllib.loads(file.read_text("utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Refused([Problem(path="", code="syntax", message=str(error), file=str(file))]) from None
    environ = os.environ if environ is None else environ
    names = {name: field.encode_name for name, field in zip(HubConfig.__struct_fields__, _fields(), strict=True)}
    for name, key in names.items():
        said = environ.get(f"BATUTA_HUB_{name.upper()}")
        if said is not None:
            settings[key] = said.split(",") if name == "advertise" else said
    settings.update({names[name]: value for name, value in options.items() if value is not None})
    settings["state"] = str(state)
    try:
        # Not strict: the environment has only text, and `8400` is a number all the same.
        return msgspec.convert(settings, HubConfig, strict=False)
    except msgspec.ValidationError as error:
        raise Refused([Problem(path="", code="wrong_type", message=str(error), file=str(file))]) from None


def _fields() -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(HubConfig)


def _is_wildcard(address: str) -> bool:
    return address in ("0.0.0.0", "::", "")  # noqa: S104  compared with, not bound to
