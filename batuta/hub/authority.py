"""The hub's authorities on disk: the root, one below it for each site, and the certificate of the hub's listeners."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.fabric import identity
from batuta.hub.secret_files import write_secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SERVER_VALID_S: Final = 397 * identity.DAY_S
RENEW_LEFT_MS: Final = 60 * identity.DAY_S * 1000
"""A listener's certificate with less time left is made anew at the next start."""


@dataclass(frozen=True, slots=True)
class ListenerFiles:
    """Where the hub's own certificate, its key and the root are."""

    chain: Path
    key: Path
    root: Path


class Authorities:
    """Everything below `<state>/hub/authority`. Its keys are readable by the hub's user alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._root: identity.Authority | None = None
        self._sites: dict[str, identity.Authority] = {}

    @property
    def listener(self) -> ListenerFiles:
        here = self._directory
        return ListenerFiles(here / "listener.pem", here / "listener.key", here / "root.pem")

    def root(self, now: int) -> identity.Authority:
        """Made at first start, and the same for ever after: tokens and nodes know the hub by it."""
        if self._root is None:
            file = self._directory / "root.json"
            known = self._read(file)
            if known is None:
                known = identity.make_root("Batuta hub", now, _serial())
                self._write(file, known)
            self.listener.root.write_text(known.certificate_pem)
            self._root = known
        return self._root

    def site(self, site: str, now: int) -> identity.Authority:
        """The authority that signs the nodes of this site."""
        if site not in self._sites:
            file = self._directory / f"site-{site}.json"
            known = self._read(file)
            if known is None:
                known = identity.make_site_authority(self.root(now), site, now, _serial())
                self._write(file, known)
            self._sites[site] = known
        return self._sites[site]

    def prepare_listener(self, addresses: Sequence[str], now: int) -> ListenerFiles:
        """The certificate of the HTTPS and leaf listeners; made anew when it is not good for these addresses."""
        root, files = self.root(now), self.listener
        wanted = ",".join(sorted(set(addresses)))
        names = self._directory / "listener.names"
        good = names.exists() and names.read_text() == wanted and files.chain.exists() and files.key.exists()
        if not good or identity.validity(files.chain.read_text())[1] - now < RENEW_LEFT_MS:
            chain, key = identity.make_server(
                root, name="hub", addresses=addresses, now=now, serial=_serial(), valid_s=SERVER_VALID_S
            )
            write_secret(files.key, key)
            files.chain.write_text(chain)
            names.write_text(wanted)
        return files

    def sign(self, request_pem: str, node: str, site: str, *, now: int, valid_s: int, addresses: Sequence[str]) -> str:
        """A node's certificate and its site's."""
        authority = self.site(site, now)
        return identity.sign_request(
            authority, request_pem, node=node, now=now, serial=_serial(), valid_s=valid_s, addresses=addresses
        )

    def _read(self, file: Path) -> identity.Authority | None:
        return msgspec.json.decode(file.read_bytes(), type=identity.Authority) if file.exists() else None

    def _write(self, file: Path, authority: identity.Authority) -> None:
        write_secret(file, msgspec.json.encode(authority).decode())


def _serial() -> int:
    """Unguessable and unique; 20 bytes at most, never negative, as the standard wants."""
    return secrets.randbits(127) | 1
