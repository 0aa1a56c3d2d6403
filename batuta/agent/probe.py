"""Probe: what this machine is and has (Inventory), and how it is right now (Vitals).

Everything is read below a `root`, so that tests give it the file trees of machines we do not own. What is absent is
None or empty; what is unreadable is absent; nothing here raises. Limits of the control group count: in a container
with half a core, half a core is all there is.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

import batuta
from batuta.agent.abilities import precisions
from batuta.agent.accelerators import accelerators, number, text
from batuta.core.observed import Inventory, Vitals
from batuta.kinds.base import Bytes, Millicores

if TYPE_CHECKING:
    from collections.abc import Iterable

ARCHITECTURES: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
"""The words that containers and packages use; others stay as the kernel says them."""
DEVICES: Final = (
    "video[0-9]*", "ttyUSB[0-9]*", "ttyACM[0-9]*", "ttyAMA[0-9]*", "i2c-[0-9]*", "spidev[0-9]*", "gpiochip[0-9]*",
)  # fmt: skip
"""Cameras, serial lines and buses: what an instance may need for itself."""
DEVICES_MAX: Final = 64
PLAUSIBLE_C: Final = (-40.0, 150.0)


class Probe:
    """Looks at one machine. Overrides let several nodes share it, each offering a part."""

    def __init__(
        self,
        directory: Path,
        *,
        runtimes: Iterable[str] = (),
        cpu_millis: int | None = None,
        memory_bytes: int | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.directory = directory
        """The disk that counts is the one that keeps the node's state."""
        self.runtimes = tuple(sorted(runtimes))
        self.cpu_millis = cpu_millis
        self.memory_bytes = memory_bytes
        self.root = root
        self._self = psutil.Process()
        psutil.cpu_percent(interval=None)  # the first call only starts the measuring

    def inventory(self) -> Inventory:
        """What changes only when the machine does; asked at the start."""
        release = os_release(text(self.root / "etc/os-release"))
        return Inventory(
            architecture=architecture(platform.machine()),
            cpu_millis=Millicores(self.cpu_millis or self._cpu_millis()),
            memory_bytes=Bytes(self.memory_bytes or self._memory_bytes()),
            disk_bytes=Bytes(disk_bytes(self.directory)[0]),
            accelerators=(cards := accelerators(self.root)),
            precisions=precisions(self.root, len(cards)),
            runtimes=self.runtimes,
            os=release.get("PRETTY_NAME") or release.get("ID", ""),
            kernel=platform.release(),
            hostname=platform.node(),
            hardware=hardware(self.root),
            devices=devices(self.root),
            link=link(self.root),
            agent_version=batuta.__version__,
        )

    def vitals(self, broker_pid: int | None = None) -> Vitals:
        """How it is now; about a millisecond."""
        free = psutil.virtual_memory().available
        if (limit := memory_limit_bytes(self.root)) is not None:
            free = max(0, min(free, limit - (memory_used_bytes(self.root) or 0)))
        return Vitals(
            cpu_percent=psutil.cpu_percent(interval=None),
            memory_free_bytes=Bytes(free),
            disk_free_bytes=Bytes(disk_bytes(self.directory)[1]),
            temperature_c=temperature_c(self.root),
            battery_percent=battery_percent(self.root),
            agent_rss_bytes=Bytes(self._self.memory_info().rss),
            broker_rss_bytes=rss_bytes(broker_pid),
        )

    def _cpu_millis(self) -> int:
        allowed = len(os.sched_getaffinity(0)) * 1000
        limit = cpu_limit_millis(self.root)
        return min(allowed, limit) if limit is not None else allowed

    def _memory_bytes(self) -> int:
        total = psutil.virtual_memory().total
        limit = memory_limit_bytes(self.root)
        return min(total, limit) if limit is not None else total


def architecture(machine: str) -> str:
    return ARCHITECTURES.get(machine.lower(), machine.lower())


def os_release(content: str) -> dict[str, str]:
    """The words of an os-release file; lines that are none are left out."""
    words: dict[str, str] = {}
    for line in content.splitlines():
        key, equals, value = line.partition("=")
        if not equals or key.startswith("#"):
            continue
        try:
            words[key.strip()] = " ".join(shlex.split(value))
        except ValueError:  # an unclosed quote
            continue
    return words


def cgroup(root: Path) -> Path:
    """This process's control group in the unified hierarchy."""
    for line in text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            return root / "sys/fs/cgroup" / line.removeprefix("0::").strip("/")
    return root / "sys/fs/cgroup"


def _upwards(root: Path) -> Iterable[Path]:
    """A limit of any group above binds too."""
    top, here = root / "sys/fs/cgroup", cgroup(root)
    while here != top and top in here.parents:
        yield here
        here = here.parent
    yield top


def cpu_limit_millis(root: Path) -> int | None:
    """What the control groups allow, version 2 or 1; None when they do not limit."""
    limits = []
    for group in _upwards(root):
        words = text(group / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            limits.append(int(words[0]) * 1000 // int(words[1]))
    quota, period = (
        number(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
        number(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    )
    if quota and period and quota > 0 and period > 0:
        limits.append(quota * 1000 // period)
    return min(limits, default=None)


def memory_limit_bytes(root: Path) -> int | None:
    limits = [limit for group in _upwards(root) if (limit := number(group / "memory.max")) is not None]
    old = number(root / "sys/fs/cgroup/memory/memory.limit_in_bytes")
    if old is not None and 0 < old < 2**60:  # version 1 writes a huge number for "no limit"
        limits.append(old)
    return min(limits, default=None)


def memory_used_bytes(root: Path) -> int | None:
    used = number(cgroup(root) / "memory.current")
    return used if used is not None else number(root / "sys/fs/cgroup/memory/memory.usage_in_bytes")


def disk_bytes(directory: Path) -> tuple[int, int]:
    """Size and free space of the disk below `directory`; the nearest parent that exists answers for it."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        usage = psutil.disk_usage(str(directory))
    except OSError:
        return 0, 0
    return usage.total, usage.free


def temperature_c(root: Path) -> float | None:
    """The hottest plausible zone: sensors that are not connected answer nonsense."""
    found = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        value = number(zone)
        if value is not None and PLAUSIBLE_C[0] <= value / 1000 <= PLAUSIBLE_C[1]:
            found.append(value / 1000)
    return max(found, default=None)


def battery_percent(root: Path) -> float | None:
    """The weakest battery of the machine itself; those of mice and pens have the scope `Device`."""
    found = []
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        if text(supply / "type") == "Battery" and text(supply / "scope") != "Device":
            value = number(supply / "capacity")
            if value is not None and 0 <= value <= 100:
                found.append(float(value))
    return min(found, default=None)


def link(root: Path) -> str:
    """The default route's interface, its kind and speed: `wlan0 wifi`, `eth0 ethernet 1000 Mbit/s`; "" when there is
    none."""
    for line in text(root / "proc/net/route").splitlines()[1:]:
        words = line.split()
        if len(words) > 1 and words[1] == "00000000":
            name = words[0]
            break
    else:
        return ""
    device = root / "sys/class/net" / name
    if (device / "wireless").exists() or (device / "phy80211").exists():
        return f"{name} wifi"
    if name.startswith(("wwan", "ppp", "rmnet", "usb")):
        return f"{name} mobile"
    speed = number(device / "speed")
    return f"{name} ethernet" + (f" {speed} Mbit/s" if speed is not None and speed > 0 else "")


def hardware(root: Path) -> str:
    """The machine's class: what its device tree calls its model, else what its firmware does; in lower case, digits
    and dashes. "" when neither says anything."""
    said = text(root / "proc/device-tree/model")
    if not said:
        said = " ".join(text(root / "sys/class/dmi/id" / name) for name in ("sys_vendor", "product_name"))
    # A board's revision does not make it faster: `Raspberry Pi 4 Model B Rev 1.4`.
    said = re.sub(r"\bRev [0-9.]+\s*$", "", said)
    return re.sub(r"[^a-z0-9.]+", "-", said.lower())[:128].strip("-.")


def devices(root: Path) -> tuple[str, ...]:
    """Paths of what is attached."""
    found = {path.name for pattern in DEVICES for path in (root / "dev").glob(pattern)}
    return tuple(f"/dev/{name}" for name in sorted(found)[:DEVICES_MAX])


def rss_bytes(pid: int | None) -> Bytes | None:
    """What a process keeps in memory; None when it is not there."""
    if pid is None:
        return None
    try:
        return Bytes(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
