"""What the probe makes of machines that we do not own: their file trees, and the absence of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batuta.agent import probe
from batuta.agent.accelerators import accelerators

if TYPE_CHECKING:
    from pathlib import Path


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_an_empty_machine_is_no_error(tmp_path: Path) -> None:
    here = probe.Probe(tmp_path / "not" / "yet", runtimes=("process",), root=tmp_path)
    inventory, vitals = here.inventory(), here.vitals(broker_pid=2**22)
    assert inventory.cpu_millis >= 1000
    assert inventory.memory_bytes > 2**26
    assert inventory.disk_bytes > 0
    assert inventory.runtimes == ("process",)
    assert (inventory.accelerators, inventory.os, inventory.link) == ((), "", "")
    assert (vitals.temperature_c, vitals.battery_percent, vitals.broker_rss_bytes) == (None, None, None)
    assert vitals.agent_rss_bytes


def test_a_node_may_offer_a_part(tmp_path: Path) -> None:
    inventory = probe.Probe(tmp_path, cpu_millis=500, memory_bytes=2**28, root=tmp_path).inventory()
    assert (inventory.cpu_millis, inventory.memory_bytes) == (500, 2**28)


@pytest.mark.parametrize(
    ("machine", "word"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("armv7l", "armv7l"), ("AMD64", "amd64")]
)
def test_architectures_have_the_words_of_containers(machine: str, word: str) -> None:
    assert probe.architecture(machine) == word


def test_os_release_is_read_as_the_shell_would() -> None:
    said = probe.os_release('# c\nID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nBAD=\'x\n\nnonsense')
    assert said == {"ID": "debian", "PRETTY_NAME": "Debian GNU/Linux 12 (bookworm)"}


def test_limits_of_every_group_above_bind(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/batuta.service\n",
            "sys/fs/cgroup/system.slice/batuta.service/cpu.max": "max 100000",
            "sys/fs/cgroup/system.slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/system.slice/batuta.service/memory.max": "536870912",
            "sys/fs/cgroup/system.slice/memory.max": "max",
            "sys/fs/cgroup/system.slice/batuta.service/memory.current": "1000",
        },
    )
    assert probe.cpu_limit_millis(root) == 1500
    assert probe.memory_limit_bytes(root) == 2**29
    assert probe.memory_used_bytes(root) == 1000
    assert probe.Probe(tmp_path, root=root).inventory().memory_bytes <= 2**29


def test_limits_of_old_control_groups(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/x\n1:name=systemd:/x\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert probe.cpu_limit_millis(root) == 500
    assert probe.memory_limit_bytes(root) is None


def test_nonsense_is_absent(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/fs/cgroup/cpu.max": "much",
            "sys/fs/cgroup/memory.max": "\0\xff",
            "sys/class/thermal/thermal_zone0/temp": "-274000",
            "sys/class/power_supply/BAT0/type": "Battery",
            "sys/class/power_supply/BAT0/capacity": "300",
            "proc/net/route": "Iface",
        },
    )
    assert probe.cpu_limit_millis(root) is None
    assert probe.memory_limit_bytes(root) is None
    assert probe.temperature_c(root) is None
    assert probe.battery_percent(root) is None
    assert probe.link(root) == ""


def test_temperature_battery_and_link(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone1/temp": "61000\n",
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": "80\n",
            "sys/class/power_supply/hidpp/type": "Battery\n",
            "sys/class/power_supply/hidpp/scope": "Device\n",
            "sys/class/power_supply/hidpp/capacity": "3\n",
            "proc/net/route": "Iface Destination Gateway\neth1 0000A8C0 0\neth0 00000000 0102A8C0\n",
            "sys/class/net/eth0/speed": "1000\n",
        },
    )
    assert probe.temperature_c(root) == 61.0
    assert probe.battery_percent(root) == 80.0
    assert probe.link(root) == "eth0 ethernet 1000 Mbit/s"
    tree(root, {"sys/class/net/wlan0/wireless/x": "", "proc/net/route": "h\nwlan0 00000000 0\n"})
    assert probe.link(root) == "wlan0 wifi"


def test_hardware(tmp_path: Path) -> None:
    assert probe.hardware(tree(tmp_path / "none", {"x": ""})) == ""
    pi = tree(tmp_path / "pi", {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    assert probe.hardware(pi) == "raspberry-pi-4-model-b"
    nuc = tree(
        tmp_path / "nuc",
        {"sys/class/dmi/id/sys_vendor": "Intel(R) Client Systems\n", "sys/class/dmi/id/product_name": "NUC8i5BEH\n"},
    )
    assert probe.hardware(nuc) == "intel-r-client-systems-nuc8i5beh"


def test_devices(tmp_path: Path) -> None:
    names = ("video1", "video0", "ttyUSB0", "i2c-1", "tty0", "sda", "videodev")
    root = tree(tmp_path, {f"dev/{name}": "" for name in names})
    assert probe.devices(root) == ("/dev/i2c-1", "/dev/ttyUSB0", "/dev/video0", "/dev/video1")
    many = tree(tmp_path / "many", {f"dev/video{k}": "" for k in range(99)})
    assert len(probe.devices(many)) == probe.DEVICES_MAX


def test_accelerators_of_many_makers(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA RTX A2000\nIRQ: 1\n",
            "proc/device-tree/compatible": "nvidia,p3768-0000\0nvidia,tegra234\0",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
            "dev/nvidia0": "",
            "dev/dri/renderD128": "",
            "sys/class/drm/renderD128/device/uevent": "DRIVER=amdgpu\nPCI_ID=1\n",
            "sys/class/drm/renderD128/device/mem_info_vram_total": "8573157376",
            "dev/dri/renderD129": "",
            "sys/class/drm/renderD129/device/uevent": "DRIVER=virtio-pci\n",
            "dev/apex_0": "",
            "sys/bus/usb/devices/1-1/idVendor": "18d1\n",
            "sys/bus/usb/devices/1-1/idProduct": "9302\n",
            "sys/bus/usb/devices/1-2/idVendor": "dead\n",
            "dev/hailo0": "",
        },
    )
    assert [(a.kind, a.name, int(a.memory_bytes)) for a in accelerators(root)] == [
        ("nvidia", "NVIDIA RTX A2000", 0),
        ("jetson", "NVIDIA Jetson Orin Nano", 0),
        ("gpu", "amdgpu", 8573157376),
        ("coral", "Edge TPU on PCIe (apex_0)", 0),
        ("coral", "Edge TPU on USB", 0),
        ("hailo", "hailo0", 0),
    ]
