"""Where a version lives: at a hub, or in a package on this disk. Both give out files and take variants in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from batuta.errors import NotFound
from batuta.interop.modelpack import Beside
from batuta.kinds.base import DEFAULT_NAMESPACE, Metadata
from batuta.kinds.model import Model, ModelSpec
from batuta.model_package import kept, opened
from batuta.model_push import push_version, with_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batuta.client import Client
    from batuta.interop.modelpack import Role
    from batuta.kinds.model import Variant, Version
    from batuta.model_layout import Layout


class Home(Protocol):
    """One version of one model."""

    name: str
    task: str | None
    version: Version

    def fetch(self, digest: str, path: Path) -> None:
        """Write a file of the version there, verified."""
        ...

    def keep(self, addition: Version, files: Mapping[str, Path], documents: Sequence[tuple[Role, bytes]]) -> None:
        """Take in variants whose files, by digest, are here, and what goes with them. Raises Refused."""
        ...


class HubHome:
    """At a hub."""

    def __init__(
        self,
        client: Client,
        name: str,
        version: str = "",
        *,
        namespace: str = DEFAULT_NAMESPACE,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        model = client.get(Model, name, namespace=namespace).resource
        found = model.spec.version(version) if version else model.spec.versions[-1] if model.spec.versions else None
        if found is None:
            there = ", ".join((*(v.version for v in model.spec.versions), *sorted(model.spec.aliases))) or "none"
            raise NotFound(f"{name} has no version {version!r}; there is: {there}", next_step="see `batuta model ls`")
        self.name, self.task, self.version = name, model.spec.task, found
        self._client, self._namespace, self._on_progress = client, namespace, on_progress

    def fetch(self, digest: str, path: Path) -> None:
        self._client.pull_artifact(digest, path)

    def keep(self, addition: Version, files: Mapping[str, Path], documents: Sequence[tuple[Role, bytes]]) -> None:
        for _, document in documents:
            self._client.push_bytes(document)
        push_version(
            self._client, self.name, addition, files, namespace=self._namespace, on_progress=self._on_progress
        )  # fmt: skip


class PackageHome:
    """In an OCI layout; its manifest becomes another, its files stay."""

    def __init__(self, layout: Layout, tag: str = "") -> None:
        self._layout = layout
        self._package = opened(layout, layout.manifest(tag))
        self.name, self.task, self.version = self._package.name, self._package.task, self._package.version

    def fetch(self, digest: str, path: Path) -> None:
        shutil.copyfile(self._layout.whole(digest, self._package.files[digest]), path)

    def keep(self, addition: Version, files: Mapping[str, Path], documents: Sequence[tuple[Role, bytes]]) -> None:
        model = Model(metadata=Metadata(name=self.name), spec=ModelSpec(versions=(self.version,)))
        (version,) = with_version(model, addition).spec.versions
        for path in files.values():
            self._layout.put(path)
        beside = {(b.role, b.digest): b for b in self._package.beside}
        for role, document in documents:
            digest = self._layout.put_document(document)
            beside[role, digest] = Beside(role, digest, len(document))
        package = self._package._replace(version=version, beside=tuple(beside.values()))
        kept(self._layout, package)
        self._package, self.version = package, version


def only(version: Version, variants: Sequence[Variant]) -> Version:
    """A version of that number with these variants and nothing else: what is to be added."""
    return msgspec.structs.replace(
        version, variants=tuple(variants), signature=None, golden=None, labels=(), drift=None, provenance=None
    )
