"""ContainerUse: a component that is an OCI image, run by the node's own Podman or Docker.

What an image may do is what its document says and nothing else: no capabilities, a root that cannot be written, no
path of the node and no credentials of its broker, unless they are named here.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from batuta.kinds.base import Bytes, Digest, Millicores, Millis, Name, Problem, Record
from batuta.kinds.hardware import Architecture, architecture_problems
from batuta.kinds.program import Port, Probe, env_problems, probe_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

ImageName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([a-z0-9._/-]|:[0-9]{1,5}/){0,254}@sha256:[0-9a-f]{64}$",
        max_length=340,
        description="An image by its digest, for tags move: `registry.example/team/detector@sha256:…`.",
    ),
]
AbsolutePath = Annotated[
    str, Meta(pattern=r"^/[^\x00:,]*$", max_length=512, description="An absolute path, without colons and commas.")
]
Capability = Annotated[
    str, Meta(pattern=r"^[A-Z][A-Z_]{1,30}$", description="As Linux calls it, without CAP_: NET_BIND_SERVICE, …")
]
CdiDevice = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*$",
        max_length=255,
        description="A device of the Container Device Interface: `nvidia.com/gpu=0`.",
    ),
]
BROKER_DIRECTORY = "/run/batuta"
"""Where a container finds the credentials of its node's broker."""


class Archive(Record):
    """The image as an archive that the hub keeps, as `batuta image push` prints it: nodes need no registry."""

    digest: Digest
    size_bytes: Bytes = msgspec.field(name="size")
    signatures: Annotated[tuple[Digest, ...], Meta(max_length=16)] = ()
    """Sigstore bundles of those who vouch for it."""


class Mount(Record):
    """A place in the container: exactly one of host, volume, tmpfs."""

    at: AbsolutePath
    """Where the container sees it."""
    host: AbsolutePath | None = None
    """A path of the node, below one that the node's operator allows (`batuta join --allow-mount`)."""
    volume: Name | None = None
    """A volume of the application on this node, kept when the container goes."""
    tmpfs: Bytes | None = None
    """So much memory; what is in it goes with the container."""
    read_only: bool = False


class Publish(Record):
    """A port of the container, seen at a port of the node."""

    port: Port
    """In the container."""
    to: Port
    """At the node: nobody else there may have it."""
    address: Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]{2,45}$")] = "127.0.0.1"
    """Where the node listens: loopback, so that only its own programs reach it; `0.0.0.0` for everybody."""


class ContainerUse(Record):
    """An OCI image, run by the node's Podman or Docker."""

    image: ImageName
    archive: Archive | None = None
    """Left out: the node pulls the image from its registry, where it may."""
    architectures: tuple[Architecture, ...] = ()
    """Processors that the image is for, such as `arm64`; all of them when left out."""
    command: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    """Instead of the image's entrypoint; then the image's own arguments are left out too."""
    args: Annotated[tuple[str, ...], Meta(max_length=1024)] = ()
    """Instead of the image's arguments."""
    env: dict[str, str] = {}
    working_directory: AbsolutePath | None = None
    user: Annotated[str, Meta(pattern=r"^[a-z0-9_][a-z0-9_.-]{0,31}(:[a-z0-9_][a-z0-9_.-]{0,31})?$")] | None = None
    """`1000`, `1000:44` or a name that the image knows; the image's own when left out."""
    mounts: Annotated[tuple[Mount, ...], Meta(max_length=64)] = ()
    network: Literal["host", "bridge", "none"] = "host"
    """`host`: the node's own, with its broker at loopback. `bridge`: one of its own; see `publish`. `none`: none."""
    publish: Annotated[tuple[Publish, ...], Meta(max_length=64)] = ()
    """With `network: bridge`: ports that are to be reached from outside."""
    broker: bool = False
    """Mount the credentials of the node's broker, and say where they are; with `network: host`."""
    cdi_devices: Annotated[tuple[CdiDevice, ...], Meta(max_length=16)] = ()
    """Accelerators as the node's CDI calls them."""
    capabilities: Annotated[tuple[Capability, ...], Meta(max_length=41)] = ()
    """What it may do beside the nothing that it may do by default."""
    writable_root: bool = False
    """Let it write into its own file system; what it writes goes with the container."""
    cpu_limit: Millicores | None = None
    """Never more processor time than this. `resources.cpu` is its share when others want some too."""
    pids: Annotated[int, Meta(ge=1, le=65_536)] = 512
    """At most so many processes and threads."""
    ready: Probe | None = None
    live: Probe | None = None
    stop_grace_ms: Millis = msgspec.field(default_factory=lambda: Millis(10_000), name="stopGrace")
    """Between the polite signal and the last one."""

    @property
    def name(self) -> str:
        """What people call the image."""
        return self.image.partition("@")[0]

    @property
    def digest(self) -> str:
        return self.image.partition("@")[2]

    @property
    def artifacts(self) -> tuple[str, ...]:
        """What must be on the node before it can start, signatures aside."""
        return () if self.archive is None else (self.archive.digest,)


def container_problems(here: str, use: ContainerUse, *, never_twice: bool) -> Iterator[Problem]:
    if never_twice:
        yield Problem(
            path=here,
            code="value",
            message="a container outlives the node agent that counts its lease, so it cannot be never-twice",
            hint="use a process, or runs: at-least-once",
        )
    if use.archive is None and not re.match(r"(localhost|[^/]*[.:][^/]*)/", use.name):
        yield Problem(
            path=f"{here}.image",
            code="value",
            message=f"{use.name!r} does not say which registry it is pulled from",
            hint="write it whole, such as docker.io/library/busybox@sha256:…; or push it: `batuta image push`",
        )
    yield from architecture_problems(f"{here}.architectures", use.architectures)
    for name in ("ready", "live"):
        probe: Probe | None = getattr(use, name)
        yield from probe_problems(f"{here}.{name}", probe)
        if probe is not None and probe.exec is None and use.network == "none":
            message = "without a network it cannot be asked at a port"
            yield Problem(path=f"{here}.{name}", code="value", message=message, hint="use exec")
    yield from env_problems(f"{here}.env", use.env)
    if use.broker and use.network != "host":
        message = "the node's broker listens at loopback, which only network: host reaches"
        yield Problem(path=f"{here}.broker", code="value", message=message)
    yield from _mount_problems(here, use)
    yield from _port_problems(here, use)


def _mount_problems(here: str, use: ContainerUse) -> Iterator[Problem]:
    seen: set[str] = {BROKER_DIRECTORY} if use.broker else set()
    for i, mount in enumerate(use.mounts):
        path = f"{here}.mounts[{i}]"
        if sum(each is not None for each in (mount.host, mount.volume, mount.tmpfs)) != 1:
            yield Problem(path=path, code="one_of", message="say exactly one of host, volume, tmpfs")
        for field in ("at", "host"):
            text: str | None = getattr(mount, field)
            if text is not None and text != posixpath.normpath(text):
                message = f"{text!r} is not in its plain form"
                yield Problem(
                    path=f"{path}.{field}", code="value", message=message, hint=f"write {posixpath.normpath(text)!r}"
                )
        if mount.at == "/":
            yield Problem(path=f"{path}.at", code="value", message="the root is the image's own")
        if mount.at in seen:
            yield Problem(path=f"{path}.at", code="duplicate", message=f"{mount.at} is there twice")
        if mount.tmpfs is not None and mount.read_only:
            yield Problem(path=f"{path}.readOnly", code="value", message="a tmpfs that cannot be written is of no use")
        seen.add(mount.at)


def _port_problems(here: str, use: ContainerUse) -> Iterator[Problem]:
    if use.publish and use.network != "bridge":
        message = f"with network: {use.network} there is nothing to publish"
        yield Problem(path=f"{here}.publish", code="value", message=message, hint="say network: bridge")
    for i, one in enumerate(use.publish):
        if any(other.to == one.to for other in use.publish[:i]):
            yield Problem(path=f"{here}.publish[{i}].to", code="duplicate", message=f"{one.to} is there twice")
