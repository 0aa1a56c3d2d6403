"""Accelerators: the GPUs, NPUs and TPUs of a machine, read from `/proc`, `/sys` and `/dev` below a `root`.

Rows, one per family; each looks for what its driver leaves in the file system, so nothing of a vendor is imported or
run. What is not there is not found, and what cannot be read is left out: a probe never fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batuta.core.observed import Accelerator
from batuta.kinds.base import Bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MOST: Final = 64
"""A machine with more accelerators than this is a mistake in what we read."""
MOST_TEXT: Final = 4096


def accelerators(root: Path) -> tuple[Accelerator, ...]:
    """All that are found, in the order of the rows."""
    found: list[Accelerator] = []
    for row in ROWS:
        try:
            found.extend(row(root))
        except (OSError, ValueError):  # a driver that half answers is a driver that is not usable
            continue
    return tuple(found[:MOST])


def text(path: Path) -> str:
    """The beginning of a file, stripped; "" when it cannot be read. Device trees end in NUL."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_TEXT).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    word = text(path)
    return int(word) if word.lstrip("-").isdigit() else None


def _nvidia(root: Path) -> Iterator[Accelerator]:
    """Discrete cards: the driver lists them with their names; memory is told only by its library, so it is not
    claimed."""
    cards = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    for card in cards:
        model = next(
            (line.partition(":")[2].strip() for line in text(card).splitlines() if line.startswith("Model")), ""
        )
        yield Accelerator(kind="nvidia", name=model)
    if not cards:
        for device in sorted((root / "dev").glob("nvidia[0-9]*")):
            yield Accelerator(kind="nvidia", name=device.name)


def _jetson(root: Path) -> Iterator[Accelerator]:
    """NVIDIA's boards: the GPU shares the machine's memory and is known from the device tree."""
    compatible = text(root / "proc/device-tree/compatible")
    if "nvidia,tegra" in compatible:
        yield Accelerator(kind="jetson", name=text(root / "proc/device-tree/model") or "NVIDIA Jetson")


def _graphics(root: Path) -> Iterator[Accelerator]:
    """Other GPUs with a render node. Drivers of virtual screens have one too, but compute nothing."""
    for node in sorted((root / "dev/dri").glob("renderD*")):
        driver = ""
        for line in text(root / "sys/class/drm" / node.name / "device/uevent").splitlines():
            if line.startswith("DRIVER="):
                driver = line.removeprefix("DRIVER=")
        if driver in {"nvidia", "virtio-pci", "virtio_gpu", "vgem", "vkms", "bochs-drm", "simple-framebuffer"}:
            continue
        vram = number(root / "sys/class/drm" / node.name / "device/mem_info_vram_total")
        yield Accelerator(kind="gpu", name=driver or node.name, memory_bytes=Bytes(max(0, vram or 0)))


def _coral(root: Path) -> Iterator[Accelerator]:
    """Google's Edge TPU: on PCIe it has a device; on USB it is known by its ids, before and after its firmware is
    loaded."""
    for device in sorted((root / "dev").glob("apex_[0-9]*")):
        yield Accelerator(kind="coral", name=f"Edge TPU on PCIe ({device.name})")
    for vendor in sorted((root / "sys/bus/usb/devices").glob("*/idVendor")):
        if (text(vendor), text(vendor.parent / "idProduct")) in {("1a6e", "089a"), ("18d1", "9302")}:
            yield Accelerator(kind="coral", name="Edge TPU on USB")


def _hailo(root: Path) -> Iterator[Accelerator]:
    for device in sorted((root / "dev").glob("hailo[0-9]*")):
        yield Accelerator(kind="hailo", name=device.name)


ROWS: tuple[Callable[[Path], Iterator[Accelerator]], ...] = (_nvidia, _jetson, _graphics, _coral, _hailo)
