"""`batuta model key, sign, verify`: who vouches for the bytes of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batuta.cli.options import may_talk_to_hub, namespace_option, talks_to_hub
from batuta.cli.text import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.client import Client


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
def key(file: str) -> None:
    """Make a key to sign with.

    FILE is the private half, which only you may read; FILE.pub is the public half, for policies.
    """
    from batuta.model_sign import make_key

    private, public = make_key(file)
    click.echo(f"{private}  private: keep it; whoever has it signs in your name")
    click.echo(f"{public}  public: for `requireSigner` of a policy, and for `batuta model verify`")


@click.command()
@click.argument("name")
@click.option("--key", "key", required=True, type=click.Path(exists=True, dir_okay=False), help="The private key, PEM.")
@click.option("--version", default="", help="Only this version, or what this alias stands for.")
@click.option("--variant", default="", help="Only this variant.")
@namespace_option
@talks_to_hub
def sign(hub: Client, name: str, *, key: str, version: str, variant: str, namespace: str) -> None:
    """Vouch for the variants of a model with your key.

    Each file is fetched from the hub, hashed and signed here; the key never leaves this machine. A version's own Python
    is signed with its variants; alone it is the variant `transform.py`. The signature is a
    Sigstore bundle as OpenSSF's `model_signing` makes it. Needs batuta[sign].
    """
    from batuta.model_sign import sign as sign_model

    for made in sign_model(hub, name, key, version=version, variant=variant, namespace=namespace):
        click.echo(f"models/{name} signed: version {made.version}, variant {made.variant}, {made.digest[:19]}")


@click.command()
@click.argument("name")
@click.option(
    "--key", "keys", required=True, multiple=True, type=click.Path(exists=True, dir_okay=False),
    help="A public key, PEM, of somebody you trust; several times for several.",
)  # fmt: skip
@click.option("--version", default="", help="Only this version, or what this alias stands for.")
@click.option("--variant", default="", help="Only this variant.")
@click.option("--bundle", type=click.Path(exists=True, dir_okay=False), help="NAME is a file, and this its signature.")
@namespace_option
@may_talk_to_hub
def verify(
    connect: Callable[[], Client],
    name: str,
    *,
    keys: tuple[str, ...],
    version: str,
    variant: str,
    bundle: str | None,
    namespace: str,
) -> None:
    """Say who has signed a model, as a node would find it. The exit code is 1 when one variant fails."""
    from batuta.model_sign import Judged, public_key_of, verify_file
    from batuta.model_sign import verify as verify_model

    trusted = [public_key_of(each) for each in keys]
    if bundle is not None:
        judged: list[Judged] = [verify_file(name, bundle, trusted)]
    else:
        with connect() as hub:
            judged = list(verify_model(hub, name, trusted, version=version, variant=variant, namespace=namespace))
    rows = [
        [j.version, j.variant, j.digest[:19], "signed" if j.refused is None else j.refused.code,
         "" if j.refused is None else j.refused.message]
        for j in judged
    ]  # fmt: skip
    for line in table(["VERSION", "VARIANT", "DIGEST", "RESULT", "WHY"], rows):
        click.echo(line)
    if any(j.refused is not None for j in judged):
        raise SystemExit(1)
