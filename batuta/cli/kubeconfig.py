"""`batuta kubeconfig`: everything that kubectl, k9s and Kubernetes client libraries need, in one file."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from batuta.cli.options import state_option
from batuta.cli.token import ROLES, duration_ms
from batuta.errors import BatutaError


@click.command()
@state_option
@click.option("--server", metavar="URL", help="The https:// address to write down [default: the hub's own].")
@click.option("--role", type=click.Choice(ROLES), default="operator", show_default=True, help="May do what.")
@click.option(
    "-n", "--namespace", "namespaces", multiple=True, metavar="NAME",
    help="Only there; again for more [default: every one].",
)  # fmt: skip
@click.option("--ttl", default="30d", show_default=True, metavar="DURATION", help="How long its token is good.")
@click.option("--name", default="batuta", show_default=True, help="What its cluster, user and context are called.")
@click.option("--out", metavar="FILE", help="Where to; `-` is stdout [default: `kubeconfig` in the state directory].")
def kubeconfig(
    *, state: str | None, server: str | None, role: str, namespaces: tuple[str, ...], ttl: str, name: str,
    out: str | None,
) -> None:  # fmt: skip
    """Write a kubeconfig for this hub: its HTTPS address, its authority, and a new API token.

    A file that is there already is added to: whatever has another name stays, and so does its current context.

    \b
    batuta kubeconfig --role viewer --out ~/.kube/batuta
    """
    from batuta.client import connect
    from batuta.config import default_state

    with connect(state) as hub:
        address = server or next(iter(hub.hub().get("servers", ())), "")
        if urlsplit(address).scheme != "https":
            raise click.BadParameter(f"{address!r} is no https:// address; kubectl sends no token over any other",
                                     param_hint="--server")  # fmt: skip
        authority = hub.authority()
        path = Path(out or Path(state or default_state()).expanduser() / "kubeconfig").expanduser()
        # What can be wrong with the file is found before there is a token for it.
        known = {} if out == "-" else read(path)
        made = hub.create_api_token(role, namespaces or ("*",), ttl_ms=duration_ms(ttl), name=f"kubeconfig-{name}")
    if why := why_not(address, authority):
        click.echo(f"Warning: {address} cannot be used from here yet: {why}", err=True)
        click.echo("  next: name every address of the hub: `batuta up --listen ADDRESS --advertise NAME`", err=True)
    namespace = namespaces[0] if namespaces else "default"
    document = merged(
        known, name, server=address.rstrip("/"), authority=authority, token=made.token, namespace=namespace
    )
    if out == "-":
        click.echo(_text(document), nl=False)
        return
    write(path, _text(document))
    click.echo(f"{path}: context {name}, {role} until {made.expires} (token {made.id})")
    click.echo(f"Try it: kubectl --kubeconfig {path} --context {name} get nodes", err=True)


def merged(
    known: dict[str, Any], name: str, *, server: str, authority: str, token: str, namespace: str
) -> dict[str, Any]:
    """A kubeconfig with our three entries in it, beside all that was there under other names."""
    ca = base64.b64encode(authority.encode()).decode()
    ours = {
        "clusters": {"name": name, "cluster": {"server": server, "certificate-authority-data": ca}},
        "users": {"name": name, "user": {"token": token}},
        "contexts": {"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}},
    }
    document = {"apiVersion": "v1", "kind": "Config", "preferences": {}, **known}
    for key, entry in ours.items():
        others = [each for each in document.get(key) or () if each.get("name") != name]
        document[key] = [*others, entry]
    document["current-context"] = document.get("current-context") or name
    return document


def read(path: Path) -> dict[str, Any]:
    """The kubeconfig that is there; empty when there is none."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BatutaError(f"{path} cannot be read: {error}", next_step="name another file with --out") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or document.get("kind") != "Config":
        raise BatutaError(f"{path} is there and is no kubeconfig", next_step="name another file with --out")
    return document


def write(path: Path, text: str) -> None:
    """Replaces the file in one step; nobody but its owner can ever read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def why_not(server: str, authority: str) -> str:
    """Why this address does not lead to the hub from here; empty when it does."""
    import http.client
    import ssl

    parts = urlsplit(server)
    trust = ssl.create_default_context(cadata=authority)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=5, context=trust)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        return str(error)
    finally:
        connection.close()
    return ""


def _text(document: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(document, sort_keys=False))
