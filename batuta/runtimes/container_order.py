"""What an engine is told to make: an order becomes the body of `POST /containers/create`.

Everything is refused by default and allowed by name. The labels say whose container it is and what it was made for, so
that the next node agent finds it, and leaves alone what is not its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.errors import RuntimeFailure
from batuta.kinds.base import encode_hook
from batuta.kinds.container import BROKER_DIRECTORY
from batuta.runtimes.base import LOCK_DIRECTORY, LOCK_FILE
from batuta.runtimes.keeping import environment
from batuta.runtimes.kept import MARK
from batuta.runtimes.sandbox import OOM_SCORE, OPEN_FILES_MAX

if TYPE_CHECKING:
    from batuta.core.decided import Instance
    from batuta.kinds.container import ContainerUse, Mount
    from batuta.runtimes.base import Order

HOME_LABEL = "dev.batuta.home"
"""Whose it is: one node agent's state directory, so that several can share an engine."""
NODE_LABEL = "dev.batuta.node"
INSTANCE_LABEL = "dev.batuta.instance"
ORDER_LABEL = "dev.batuta.order"
"""What it was made for, as a digest."""
LOG_BYTES_MAX = 1 << 20
"""What the engine keeps of its output; the node agent keeps as much as of any instance."""
TMP_BYTES = 64 << 20
CPU_SHARES_OF_ONE = 1024
USER_PROCESSES_MAX = 16_384
"""The kernel counts all of a user for this one, so it is far beyond what is meant: that is `pids`."""
NAME_CHARS_MAX = 120


class Whose(NamedTuple):
    """The node agent that makes containers, and what it lets them see of the machine."""

    home: str
    node: str
    mountable: tuple[str, ...] = ()
    """Paths of this machine that containers may mount, with all that is below."""

    @property
    def mark(self) -> str:
        return hashlib.sha256(self.home.encode()).hexdigest()[:12]

    def name(self, instance: str) -> str:
        """What a container is called. No two instances, and no two node agents, come to the same."""
        words = re.sub(r"[^a-z0-9.-]+", "-", instance.replace("/", "."))[:NAME_CHARS_MAX]
        only = hashlib.sha256(f"{self.home} {instance}".encode()).hexdigest()[:12]
        return f"batuta.{words}.{only}"

    def volume(self, instance: Instance, name: str) -> str:
        """A volume is the application's: every instance of it here sees the same one."""
        return f"batuta.{instance.namespace}.{instance.application}.{name}.{self.mark}"

    def labels(self, instance: Instance) -> dict[str, str]:
        return {
            HOME_LABEL: self.mark,
            NODE_LABEL: self.node,
            INSTANCE_LABEL: instance.name,
            ORDER_LABEL: order_digest(instance),
        }


def order_digest(instance: Instance) -> str:
    """Equal for orders that the same container serves: for all but the epoch and how it would fall back."""
    bare = msgspec.structs.replace(instance, epoch=0, fallback=None, probation_ms=None, newcomer=None)
    said = msgspec.json.encode(bare, enc_hook=encode_hook)
    return f"sha256:{hashlib.sha256(said).hexdigest()}"


def body(order: Order, image: str, whose: Whose, starts: int) -> dict[str, Any]:
    """Raises RuntimeFailure `mount_refused` for a path of the machine that may not be mounted."""
    instance, use = order.instance, use_of(order)
    said: dict[str, Any] = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in variables(order, use, starts).items()],
        "Labels": whose.labels(instance),
        "HostConfig": _limits(order, use) | _rights(use) | _places(order, use, whose) | _network(use),
    }
    # An entrypoint that is given sets the image's own arguments aside; engines differ when only one of them is said.
    if use.command:
        said |= {"Entrypoint": list(use.command), "Cmd": list(use.args)}
    elif use.args:
        said["Cmd"] = list(use.args)
    if use.user is not None:
        said["User"] = use.user
    if use.working_directory is not None:
        said["WorkingDir"] = use.working_directory
    if use.publish:
        said["ExposedPorts"] = {f"{one.port}/tcp": {} for one in use.publish}
    return said


def use_of(order: Order) -> ContainerUse:
    if order.instance.container is None:
        raise RuntimeFailure("start_failed", f"{order.instance.name} is not a container")
    return order.instance.container


def variables(order: Order, use: ContainerUse, starts: int) -> dict[str, str]:
    """What every instance is told, but for what only makes sense outside of a container."""
    told = environment(order)
    # Nothing of the machine's: its own PATH and home are the image's to say.
    for name in ("PATH", "LANG", "HOME", MARK):
        del told[name]
    if use.broker:
        told["BATUTA_NATS_CREDENTIALS"] = f"{BROKER_DIRECTORY}/credentials"
    else:
        for name in ("BATUTA_NATS_URL", "BATUTA_NATS_CREDENTIALS", "BATUTA_NATS_DOMAIN", "BATUTA_MQTT"):
            del told[name]
    if use.network != "host":
        # The inference gateway listens at the node's loopback, which is another one in there.
        del told["BATUTA_INFERENCE_URL"], told["BATUTA_FLAGS_URL"]
    told["BATUTA_UPDATE_LOCK"] = f"{BROKER_DIRECTORY}/{LOCK_DIRECTORY}/{LOCK_FILE}"
    return {**told, "BATUTA_START": str(starts), **use.env}


def _limits(order: Order, use: ContainerUse) -> dict[str, Any]:
    memory = int(order.instance.memory_bytes)
    said: dict[str, Any] = {
        "CpuShares": max(2, int(order.instance.cpu_millis) * CPU_SHARES_OF_ONE // 1000),
        "PidsLimit": use.pids,
        "Ulimits": _ulimits(),
        "OomScoreAdj": OOM_SCORE,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": str(LOG_BYTES_MAX)}},
        # When it is started again is the node agent's to decide.
        "RestartPolicy": {"Name": "no"},
    }
    if memory:
        # No swap beside it: what is promised is what there is.
        said |= {"Memory": memory, "MemorySwap": memory}
    if use.cpu_limit is not None:
        said["NanoCpus"] = int(use.cpu_limit) * 1_000_000
    return said


def _ulimits() -> list[dict[str, Any]]:
    """As processes have them. What is left out, engines set to numbers of their own, and those may be out of reach."""
    said = {"nofile": OPEN_FILES_MAX, "core": 0, "nproc": USER_PROCESSES_MAX}
    return [{"Name": name, "Soft": most, "Hard": most} for name, most in said.items()]


def _rights(use: ContainerUse) -> dict[str, Any]:
    return {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": list(use.capabilities),
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": not use.writable_root,
    }


def _places(order: Order, use: ContainerUse, whose: Whose) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = []
    tmpfs: dict[str, str] = {}
    for mount in use.mounts:
        if mount.host is not None:
            source = allowed(mount, whose.mountable)
            mounts.append(
                {"Type": "bind", "Source": source, "Target": mount.at, "ReadOnly": mount.read_only,
                 "BindOptions": {"Propagation": "rprivate"}}
            )  # fmt: skip
        elif mount.volume is not None:
            mounts.append(
                {"Type": "volume", "Source": whose.volume(order.instance, mount.volume), "Target": mount.at,
                 "ReadOnly": mount.read_only}
            )  # fmt: skip
        elif mount.tmpfs is not None:
            tmpfs[mount.at] = f"rw,nosuid,nodev,size={int(mount.tmpfs)}"
    if not use.writable_root and all(mount.at != "/tmp" for mount in use.mounts):  # noqa: S108  the container's own
        tmpfs["/tmp"] = f"rw,nosuid,nodev,size={TMP_BYTES}"  # noqa: S108
    if use.broker:
        mounts.append(
            {"Type": "bind", "Source": order.broker.get("credentials", ""), "ReadOnly": True,
             "Target": f"{BROKER_DIRECTORY}/credentials", "BindOptions": {"Propagation": "rprivate"}}
        )  # fmt: skip
    mounts.append(
        {"Type": "bind", "Source": str(order.directory / LOCK_DIRECTORY), "ReadOnly": False,
         "Target": f"{BROKER_DIRECTORY}/{LOCK_DIRECTORY}", "BindOptions": {"Propagation": "rprivate"}}
    )  # fmt: skip
    devices = [
        {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"} for path in order.instance.devices
    ]
    said: dict[str, Any] = {"Mounts": mounts, "Tmpfs": tmpfs, "Devices": devices}
    if use.cdi_devices:
        said["DeviceRequests"] = [{"Driver": "cdi", "DeviceIDs": list(use.cdi_devices)}]
    return said


def _network(use: ContainerUse) -> dict[str, Any]:
    said: dict[str, Any] = {"NetworkMode": use.network}
    if use.publish:
        said["PortBindings"] = {
            f"{port}/tcp": [
                {"HostIp": one.address, "HostPort": str(one.to)} for one in use.publish if one.port == port
            ]
            for port in sorted({one.port for one in use.publish})
        }  # fmt: skip
    return said


def allowed(mount: Mount, mountable: tuple[str, ...]) -> str:
    """The path itself, links followed, when it lies within what the node's operator lets containers see."""
    assert mount.host is not None, "only paths of the machine are asked about"
    path = os.path.realpath(mount.host)
    if not any(path == top or path.startswith(top.rstrip("/") + "/") for top in map(os.path.realpath, mountable)):
        may = f"it may: {', '.join(mountable)}" if mountable else "it may mount none"
        raise RuntimeFailure("mount_refused", f"{mount.host}: {may}")
    if not os.path.exists(path):
        raise RuntimeFailure("mount_refused", f"{mount.host} is not there")
    return path
