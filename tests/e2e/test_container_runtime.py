"""The runtime of containers against a real Podman: images, logs, probes, and what belongs to others."""

from __future__ import annotations

import asyncio
import hashlib
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.agent.actuator import unlock
from batuta.core.decided import Instance
from batuta.errors import RuntimeFailure
from batuta.fabric.broker import free_port
from batuta.kinds.base import Bytes, Millis
from batuta.kinds.container import Archive, ContainerUse, Mount, Publish
from batuta.kinds.program import HttpProbe, Probe
from batuta.model_sign import make_key, sign_file
from batuta.runtimes.base import Order, lock_of
from batuta.runtimes.container import ContainerRuntime
from batuta.runtimes.container_order import Whose
from batuta.runtimes.logs import FILE_BYTES_MAX, OLD_FILES
from tests.e2e.test_model_package import registry  # noqa: F401  a fixture
from tests.engines import Built, Engine, any_engine, docker, podman  # noqa: F401  fixtures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batuta.runtimes.base import Condition, Handle

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Bench:
    """A runtime and orders for it."""

    def __init__(self, directory: Path, engine: Engine, **more: Any) -> None:
        self.directory = directory
        self.engine = engine
        self.built = Built(directory)
        mountable = more.pop("mountable", ())
        self.whose = Whose(home=str(directory), node="n1", mountable=mountable)
        self.runtime = ContainerRuntime(str(engine.socket), self.whose, directory / "containers", **more)

    def order(self, line: str = "exec sleep 600", name: str = "box", signers: Any = (), **use: Any) -> Order:
        given = {
            "image": self.built.image, "archive": Archive(digest=self.built.digest, size_bytes=Bytes(1)),
            "args": (line,), "stop_grace_ms": Millis(1_000), **use,
        }  # fmt: skip
        made = Instance(
            namespace="default", application="app", component=name, revision=1, slot="0", epoch=1,
            container=ContainerUse(**given), memory_bytes=Bytes(64 << 20), signers=signers,
        )  # fmt: skip
        files = {self.built.digest: self.built.path}
        archive = made.container.archive if made.container is not None else None
        for digest in archive.signatures if archive is not None else ():
            files[digest] = self.directory / digest.removeprefix("sha256:")
        return Order(made, self.directory / name, files, {"node": "n1"})

    async def until(self, order: Order, *states: str) -> Condition:
        async with asyncio.timeout(90):
            while (condition := await self.runtime.inspect(order.instance.name)).state not in states:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return condition

    def printed(self, order: Order) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((order.directory / "log").glob("std*.log*")))

    async def until_printed(self, order: Order, text: str) -> str:
        async with asyncio.timeout(90):
            while text not in (said := self.printed(order)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return said


@pytest.fixture
async def bench(tmp_path: Path, any_engine: Engine) -> AsyncIterator[Bench]:  # noqa: F811
    made = Bench(tmp_path, any_engine)
    yield made
    await made.runtime.close()


def exists(path: str) -> bool:
    return Path(path).exists()


def inside(bench: Bench, handle: Handle, path: str) -> Path:
    """A path of a running container, as this machine sees it."""
    found = bench.engine.inspect(str(handle["id"]))
    assert found is not None
    return Path(f"/proc/{found['State']['Pid']}/root/{path}")


async def test_what_it_prints_is_read_kept_small_and_not_read_twice(bench: Bench) -> None:
    order = bench.order(
        "echo first; echo complaint >&2; while ! test -e /tmp/go; do sleep 0.1; done; echo second; exec sleep 600"
    )
    handle = await bench.runtime.start(order)
    await bench.until_printed(order, "complaint\n")
    await bench.until_printed(order, "first\n")
    await bench.runtime.close()

    again = ContainerRuntime(str(bench.engine.socket), bench.whose, bench.directory / "containers")
    assert await again.recover(order, handle)
    inside(bench, handle, "tmp/go").touch()
    said = await bench.until_printed(order, "second\n")
    assert (said.count("first\n"), said.count("complaint\n"), said.count("second\n")) == (1, 1, 1)
    assert (order.directory / "log" / "stderr.log").read_text() == "complaint\n"
    await again.stop(order.instance.name, 1_000)
    await again.close()


async def test_who_floods_the_log_fills_no_disk_and_is_still_heard_afterwards(bench: Bench) -> None:
    order = bench.order("seq 1 400000; echo the-end; while true; do sleep 1; echo still-there; done")
    await bench.runtime.start(order)
    await bench.until_printed(order, "still-there\n")
    sizes = [path.stat().st_size for path in (order.directory / "log").glob("std*")]
    assert sum(sizes) <= (OLD_FILES + 1) * (FILE_BYTES_MAX + (256 << 10))
    await bench.runtime.stop(order.instance.name, 0)


async def test_its_last_words_are_kept(bench: Bench) -> None:
    order = bench.order("trap 'echo goodbye; exit 0' TERM; echo up; while true; do sleep 0.1; done")
    await bench.runtime.start(order)
    await bench.until_printed(order, "up\n")
    await bench.runtime.stop(order.instance.name, 5_000)
    assert "goodbye\n" in bench.printed(order)


async def test_it_can_take_its_update_lock_whoever_it_is_inside(bench: Bench) -> None:
    order = bench.order('echo busy > "$BATUTA_UPDATE_LOCK" && echo locked; exec sleep 600', user="1234:1234")
    unlock(order.directory)
    await bench.runtime.start(order)
    await bench.until_printed(order, "locked\n")
    assert lock_of(order.directory).exists()
    await bench.runtime.stop(order.instance.name, 0)
    unlock(order.directory)
    assert not lock_of(order.directory).exists()


async def test_probes_ask_by_http_and_by_commands_inside(bench: Bench) -> None:
    port = free_port("127.0.0.1")
    order = bench.order(
        "mkdir -p /tmp/w; echo fine > /tmp/w/health; exec httpd -f -p 8080 -h /tmp/w",
        network="bridge",
        publish=(Publish(port=8080, to=port),),
        ready=Probe(http=HttpProbe(port=port, path="/health"), every_ms=Millis(200), timeout_ms=Millis(5_000)),
        live=Probe(exec=("test", "-e", "/tmp/w/health"), every_ms=Millis(200), timeout_ms=Millis(5_000), failures=1),
    )  # fmt: skip
    handle = await bench.runtime.start(order)
    condition = await bench.until(order, "ready")
    assert condition.measures is not None
    inside(bench, handle, "tmp/w/health").unlink()
    condition = await bench.until(order, "unready")
    async with asyncio.timeout(60):
        while condition.code != "not_live":
            await asyncio.sleep(0.1)
            condition = await bench.until(order, "unready")
    assert "command test ended with 1" in condition.detail
    await bench.runtime.stop(order.instance.name, 0)


async def test_memory_is_measured(bench: Bench) -> None:
    order = bench.order()
    await bench.runtime.start(order)
    async with asyncio.timeout(60):
        while not (taken := (await bench.until(order, "ready")).measures) or not taken.rss_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert 0 < taken.rss_bytes < 64 << 20
    await bench.runtime.stop(order.instance.name, 0)


async def test_a_path_is_mounted_only_where_the_operator_lets_it(tmp_path: Path, any_engine: Engine) -> None:  # noqa: F811
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "way-out").symlink_to("/etc")
    bench = Bench(tmp_path, any_engine, mountable=(str(tmp_path / "open"),))
    await bench.runtime.start(bench.order(mounts=(Mount(at="/m", host=str(tmp_path / "open")),)))
    await bench.runtime.stop("default/app/box-1-0", 0)
    for path in ("/etc", str(tmp_path), str(tmp_path / "open" / "way-out"), str(tmp_path / "open" / "none")):
        with pytest.raises(RuntimeFailure) as failure:
            await bench.runtime.start(bench.order(mounts=(Mount(at="/m", host=path),)))
        assert failure.value.code == "mount_refused"
    assert any_engine.containers(node="n1") == []
    await bench.runtime.close()


async def test_a_command_that_is_not_in_the_image_says_so_and_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(RuntimeFailure) as failure:
        await bench.runtime.start(bench.order(command=("/no/such/program",)))
    assert failure.value.code == "start_failed"
    assert "/no/such/program" in failure.value.message
    assert bench.engine.containers(node="n1") == []


async def test_users_capabilities_devices_and_networks_are_as_asked(bench: Bench) -> None:
    device = next(path for path in ("/dev/kmsg", "/dev/fuse", "/dev/loop-control", "/dev/net/tun") if exists(path))
    look = "while read key value; do case $key in CapEff:|CapBnd:|NoNewPrivs:) echo $key$value;; esac; done"
    line = (
        f"id -u; test -c {device} && echo device-there; {look} < /proc/self/status; ls /sys/class/net; exec sleep 600"
    )
    plain = bench.order(line, name="plain", network="none")
    more = bench.order(line, name="more", user="1000", capabilities=("NET_BIND_SERVICE",), writable_root=True)
    more = more._replace(instance=msgspec.structs.replace(more.instance, devices=(device,)))
    for order in (plain, more):
        await bench.runtime.start(order)
        await bench.until_printed(order, "lo\n")
    said = bench.printed(plain).split()
    assert said[0] == "0"
    assert "device-there" not in said
    assert [line for line in said if ":" in line] == ["CapEff:" + "0" * 16, "CapBnd:" + "0" * 16, "NoNewPrivs:1"]
    assert said[-1] == "lo", "it sees no network but itself"
    said = bench.printed(more).split()
    assert said[0] == "1000"
    assert "device-there" in said
    assert "CapBnd:" + f"{1 << 10:016x}" in said
    for order in (plain, more):
        await bench.runtime.stop(order.instance.name, 0)


async def test_more_processes_than_it_may_have_cannot_be_started(bench: Bench) -> None:
    order = bench.order("for k in 1 2 3 4 5 6 7 8 9; do sleep 600 & done; echo all-of-them; wait", pids=4)
    await bench.runtime.start(order)
    condition = await bench.until(order, "gone")
    assert "all-of-them" not in bench.printed(order)
    assert "fork" in condition.detail


async def test_an_accelerator_that_the_engine_does_not_give_is_missed(bench: Bench) -> None:
    """This Podman says yes to such names, and gives nothing."""
    with pytest.raises(RuntimeFailure) as failure:
        await bench.runtime.start(bench.order(cdi_devices=("nobody.example/gpu=0",)))
    assert failure.value.code in ("device_missing", "start_failed")
    assert bench.engine.containers(node="n1") == []


async def test_an_image_is_loaded_once_and_removed_when_nobody_needs_it_but_only_ours(bench: Bench) -> None:
    other = Built(bench.directory, name="somebody-elses", Labels={"mine": "no"})
    headers = {"Content-Type": "application/x-tar"}
    bench.engine.ask("POST", "/images/load", content=other.path.read_bytes(), headers=headers)
    bench.built = Built(bench.directory, name="ours", Labels={"only": bench.directory.name})
    before = bench.engine.images()
    one, two = bench.order(name="one"), bench.order(name="two")
    await asyncio.gather(bench.runtime.start(one), bench.runtime.start(two))
    assert bench.engine.images() - before == {bench.built.id}

    await bench.runtime.sweep([one.instance, two.instance], keep_s=0)
    assert bench.built.id in bench.engine.images(), "it is needed"
    for order in (one, two):
        await bench.runtime.stop(order.instance.name, 0)
    await bench.runtime.sweep([])
    assert bench.built.id in bench.engine.images(), "it is kept for a while"

    # Another node agent at the same engine runs it still: it stays.
    third = bench.order(name="three")
    stranger = ContainerRuntime(str(bench.engine.socket), Whose("/elsewhere", "n2"), bench.directory / "elsewhere")
    await stranger.start(third)
    await bench.runtime.sweep([], keep_s=0)
    assert bench.built.id in bench.engine.images()
    assert len(bench.engine.containers(node="n2")) == 1, "and so does its container"
    await stranger.stop(third.instance.name, 0)
    await stranger.close()
    await bench.runtime.sweep([], keep_s=0)
    assert bench.built.id not in bench.engine.images()
    assert other.id in bench.engine.images(), "it was not ours"


async def test_an_archive_is_loaded_only_when_a_trusted_key_signed_it(bench: Bench) -> None:
    private, public = make_key(bench.directory / "ours")
    stranger, _ = make_key(bench.directory / "theirs")

    def signed(key: Path) -> str:
        bundle = bench.directory / "bundle"
        sign_file(bench.built.path, key, bundle)
        digest = f"sha256:{hashlib.sha256(bundle.read_bytes()).hexdigest()}"
        bundle.rename(bench.directory / digest.removeprefix("sha256:"))
        return digest

    signers = ((public.read_text(),),)

    def order(*bundles: str) -> Order:
        archive = Archive(digest=bench.built.digest, size_bytes=Bytes(1), signatures=bundles)
        return bench.order(archive=archive, signers=signers)

    for bundles, code in (((), "signature_missing"), ((signed(stranger),), "signer_unknown")):
        with pytest.raises(RuntimeFailure) as failure:
            await bench.runtime.start(order(*bundles))
        assert failure.value.code == code
    await bench.runtime.start(order(signed(private)))
    await bench.runtime.stop("default/app/box-1-0", 0)


def manifest_of(registry: str, repository: str) -> str:  # noqa: F811
    """The digest under which the registry keeps tag 1."""
    kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    asked = urllib.request.Request(f"http://{registry}/v2/{repository}/manifests/1", headers={"Accept": kinds})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return f"sha256:{hashlib.sha256(answer.read()).hexdigest()}"


async def test_an_image_is_pulled_by_its_digest_where_that_is_allowed(bench: Bench, registry: tuple[str, Path]) -> None:  # noqa: F811
    built = Built(bench.directory, name="pulled", Labels={"pulled": "yes"})
    headers = {"Content-Type": "application/x-tar"}
    bench.engine.ask("POST", "/images/load", content=built.path.read_bytes(), headers=headers)
    place = f"{registry[0]}/team/pulled"
    bench.engine.ask("POST", f"/images/{built.id}/tag", params={"repo": place, "tag": "1"})
    bench.engine.ask(
        "POST", f"/images/{place}/push", params={"tag": "1", "tlsVerify": "false"}, headers={"X-Registry-Auth": "e30="}
    )
    manifest = await asyncio.to_thread(manifest_of, registry[0], "team/pulled")
    bench.engine.ask("DELETE", f"/images/{built.id}", params={"force": "1"})
    assert built.id not in bench.engine.images()

    order = bench.order(image=f"{place}@{manifest}", archive=None)
    alone = ContainerRuntime(str(bench.engine.socket), bench.whose, bench.directory / "alone", may_pull=False)
    with pytest.raises(RuntimeFailure) as failure:
        await alone.start(order)
    assert failure.value.code == "image_missing"

    await bench.runtime.start(order)
    found = bench.engine.inspect((await _only(bench))["Id"])
    assert found is not None
    assert found["Image"] in (built.id, built.id.removeprefix("sha256:"))
    await bench.runtime.stop(order.instance.name, 0)

    absent = bench.order(image=f"{place}@sha256:{'9' * 64}", archive=None)
    with pytest.raises(RuntimeFailure) as failure:
        await bench.runtime.start(absent)
    assert failure.value.code == "image_missing"


async def _only(bench: Bench) -> dict[str, Any]:
    (found,) = bench.engine.containers(node="n1")
    return found


async def test_what_another_order_left_is_replaced(bench: Bench) -> None:
    order = bench.order()
    handle = await bench.runtime.start(order)
    await bench.runtime.close()
    changed = order._replace(
        instance=msgspec.structs.replace(order.instance, cpu_millis=order.instance.cpu_millis, ports=(1,))
    )
    second = ContainerRuntime(str(bench.engine.socket), bench.whose, bench.directory / "containers")
    assert not await second.recover(changed, handle)
    again = await second.start(changed)
    assert again["id"] != handle["id"]
    newer = changed._replace(instance=msgspec.structs.replace(changed.instance, epoch=7))
    await second.close()
    third = ContainerRuntime(str(bench.engine.socket), bench.whose, bench.directory / "containers")
    assert await third.recover(newer, again), "another epoch of the same is the same"
    await third.stop(order.instance.name, 0)
    await third.close()
