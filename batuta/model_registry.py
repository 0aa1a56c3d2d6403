"""OCI registries: a layout goes there and comes back, by way of `oras`.

Everything goes through a layout on disk, so a transfer that is cut off begins again with what it has. Nothing that a
registry says is believed: every blob is hashed, and is as long as its manifest says. Who may push is known from what
`docker login`, `podman login` or `oras login` left behind; no password passes here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batuta.errors import ArtifactRefused, BatutaError, FabricUnavailable, NotFound
from batuta.interop import oci

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.model_layout import Layout

SCHEME: Final = "oci://"
PLAIN: Final = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$")
"""Registries of this very machine, which speak HTTP; all others speak HTTPS."""


CHUNK_BYTES: Final = 16 << 20
"""Larger blobs go in pieces, so that they never are in memory whole."""
CONNECT_S: Final = 15.0


class Place(NamedTuple):
    """Where a package is in a registry."""

    host: str
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"


def place(text: str, tag: str = "latest") -> Place:
    """`oci://host[:port]/repository[:tag]`, read. Raises BatutaError."""
    found = re.fullmatch(
        r"([A-Za-z0-9.\-\[\]:]+?(?::\d+)?)/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?",
        text.removeprefix(SCHEME),
    )
    if found is None:
        raise BatutaError(f"{text!r} is no place in a registry", next_step="write oci://host/repository:tag")
    return Place(found[1], found[2], found[3] or tag)


def push(layout: Layout, manifest: bytes, to: Place, told: Callable[[str, int], None] = lambda _d, _s: None) -> str:
    """Bring a manifest and all that it names; returns its digest. `told` hears digest and size before each blob."""
    said = oci.manifest_of(manifest)
    with _Session(to) as registry:
        for digest, size in said.blobs.items():
            path = layout.whole(digest, size)
            told(digest, size)
            registry.put(digest, size, str(path))
        return registry.put_manifest(manifest)


def pull(source: Place, layout: Layout, told: Callable[[str, int], None] = lambda _d, _s: None) -> bytes:
    """Fetch a manifest and all that it names into a layout, under its tag; returns the manifest."""
    layout.open()
    with _Session(source) as registry:
        manifest = registry.manifest()
        said = oci.manifest_of(manifest)
        for digest, size in said.blobs.items():
            _fetch(registry, layout, digest, size, told)
        layout.name(manifest, source.tag)
        return manifest


def _fetch(registry: _Session, layout: Layout, digest: str, size: int, told: Callable[[str, int], None]) -> None:
    try:
        layout.whole(digest, size)
    except ArtifactRefused:  # it is not here yet, or was cut off
        told(digest, size)
    else:
        return
    part = layout.blob(digest).with_name(f".{digest[7:]}.part")
    try:
        registry.get(digest, size, part)
        found, length = layout.put(part)
    finally:
        part.unlink(missing_ok=True)
    if (found, length) != (digest, size):
        layout.blob(found).unlink(missing_ok=True)
        raise ArtifactRefused(
            "digest_mismatch", f"{registry.to} sent {length} bytes that are {found[:19]}…, not {digest[:19]}…"
        )


class _Session:
    """A conversation with one registry; its failures in our words."""

    def __init__(self, to: Place) -> None:
        self.to = to
        try:
            from oras.container import Container
            from oras.provider import Registry
        except ImportError as error:
            raise BatutaError(
                f"registries need the package oras, and it cannot be loaded here: {error}",
                next_step="pip install 'batuta[oci]'",
            ) from None
        self._registry: Any = Registry(hostname=to.host, insecure=bool(PLAIN.match(to.host)))
        self._container: Any = Container(str(to))

    def __enter__(self) -> _Session:
        import requests

        self._registry.auth.load_configs(self._container)
        try:  # oras asks again and again for half a minute; whether anybody is there is known sooner
            self._registry.session.get(f"{self._registry.prefix}://{self.to.host}/v2/", timeout=CONNECT_S).close()
        except requests.RequestException as error:
            self._registry.session.close()
            raise FabricUnavailable(f"{self.to}: {_line(error)}", next_step="check the address") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._registry.session.close()
        if error is None or isinstance(error, BatutaError):
            return
        import requests

        if isinstance(error, (requests.RequestException, ValueError)):
            raise FabricUnavailable(f"{self.to}: {_line(error)}", next_step="check the address") from error

    def put(self, digest: str, size: int, path: str) -> None:
        layer = {"digest": digest, "size": size, "mediaType": "application/octet-stream"}
        self._check(
            self._registry.upload_blob(path, self._container, layer, do_chunked=size > CHUNK_BYTES), digest[:19]
        )

    def put_manifest(self, manifest: bytes) -> str:
        # The very bytes: a manifest that is decoded and encoded again is another one.
        url = f"{self._registry.prefix}://{self._container.manifest_url()}"
        self._check(
            self._registry.do_request(url, "PUT", headers={"Content-Type": oci.MANIFEST}, data=manifest),
            "the manifest",
        )
        return oci.digest_of(manifest)

    def manifest(self) -> bytes:
        url = f"{self._registry.prefix}://{self._container.manifest_url()}"
        answer = self._registry.do_request(url, "GET", headers={"Accept": oci.MANIFEST}, stream=True)
        self._check(answer, str(self.to))
        return _bounded(answer, oci.DOCUMENT_BYTES_MAX)

    def get(self, digest: str, size: int, path: Any) -> None:
        """No more than was promised, however much is sent."""
        with self._registry.get_blob(self._container, digest, stream=True) as answer:
            self._check(answer, digest[:19])
            left = size
            with path.open("wb") as file:
                for block in answer.iter_content(1 << 20):
                    left -= len(block)
                    if left < 0:
                        raise ArtifactRefused("digest_mismatch", f"{self.to} sends more of {digest[:19]}… than it said")
                    file.write(block)

    def _check(self, answer: Any, what: str) -> None:
        if answer.status_code < 300:
            return
        if answer.status_code == 404:
            raise NotFound(f"{self.to.host} has no {what}")
        if answer.status_code in (401, 403):
            raise BatutaError(
                f"{self.to.host} does not let you: {answer.status_code}", next_step=f"docker login {self.to.host}"
            )
        raise FabricUnavailable(f"{self.to.host} answered {answer.status_code} about {what}")


def _bounded(answer: Any, bytes_max: int) -> bytes:
    read = b""
    for block in answer.iter_content(1 << 16):
        read += block
        if len(read) > bytes_max:
            raise ArtifactRefused("artifact_unreadable", f"the manifest has more than {bytes_max} bytes")
    return read


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
