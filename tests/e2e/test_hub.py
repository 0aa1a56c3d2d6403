"""`batuta up` as a user starts it: a real broker, real processes, and what happens when they are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batuta.errors import FabricUnavailable
from batuta.fabric import broker, identity, nats, subjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.e2e

APP = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: one}
spec:
  components:
  - name: run
    process: {command: [sleep, "1000"]}
"""


PATIENCE = 4.0
"""How many times longer than usual a busy machine may take."""


def until(what: str, holds: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds * PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return found


class Up:
    """One `batuta up` and how to ask it."""

    def __init__(self, state: Path, *options: str) -> None:
        self.state = state
        self.out = state.with_suffix(".out")
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "batuta", "up", "--state", str(state), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if not k.startswith("BATUTA_")},
            )

    def ready(self) -> Up:
        def answers() -> bool:
            assert self.process.poll() is None, self.said()
            return "next " in self.said() and self.get("/readyz") is not None

        until("the hub", answers, 30)
        return self

    def said(self) -> str:
        return self.out.read_text()

    def ports(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.state / "hub" / "ports.json").read_text())
        return found

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        token = (self.state / "hub" / "admin.token").read_text().strip()
        kind = "application/yaml" if path == "/apply" else "application/json"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports()['http']}{path}",
            body,
            {"Authorization": f"Bearer {token}", "Content-Type": kind},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                code, data = 200, answer.read()
        except urllib.error.HTTPError as error:
            code, data = error.code, error.read()
        return code, json.loads(data) if data[:1] == b"{" else data

    def get(self, path: str) -> Any:
        """The answer, or None while nobody answers."""
        try:
            code, found = self.ask("GET", path)
        except OSError:
            return None
        return found if code == 200 else None

    def children(self) -> dict[str, psutil.Process]:
        """Broker and hub process, by what they are."""
        found = {}
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if any(str(self.state) in word for word in words) and process.pid != self.process.pid:
                found["broker" if "nats-server" in words[0] else "hub"] = process
        return found

    def metric(self, name: str) -> float:
        text = (self.get("/metrics") or b"").decode()
        rows = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(row.rpartition(" ")[2]) for row in rows)

    def enrol(self, token: str, node: str, key: str, **more: Any) -> tuple[int, Any]:
        """As a node does it: the root by its pin, then everything verified."""
        read = identity.read_token(token)
        hub = read.hubs[0]
        unverified = ssl.create_default_context()
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(f"{hub}/ca.pem", context=unverified, timeout=10) as answer:
            root = answer.read().decode()
        identity.check_pin(root, read.pin)
        said = {
            "tokenId": read.id,
            "secret": read.secret,
            "node": node,
            "request": identity.make_request(key, node),
            "now": time.time_ns() // 1_000_000,
            **more,
        }
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{hub}/enrol", json.dumps(said).encode(), kind)
        try:
            with urllib.request.urlopen(request, context=ssl.create_default_context(cadata=root), timeout=10) as got:
                return 200, json.loads(got.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def token(self, **wanted: Any) -> str:
        _, made = self.ask("POST", "/tokens", json.dumps({"site": "berlin", **wanted}).encode())
        return str(made["token"])

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


@contextmanager
def hub(*options: str, state: Path | None = None) -> Iterator[Up]:
    """A hub that must leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="batuta-hub-") as directory:
        options = options or ("--http-port", "0", "--https-port", "0", "--leaf-port", "0")
        made = Up(state or Path(directory) / "state", *options)
        try:
            yield made.ready()
            assert made.stop() == 0, made.said()
            assert made.children() == {}
        finally:
            for process in (*made.children().values(), made.process):
                process.kill()
            made.process.wait(10)


def test_the_hub_process_dies_and_its_successor_decides_nothing_anew() -> None:
    with hub() as up:
        key = identity.make_key()
        code, answer = up.enrol(up.token(), "pi-1", key)
        assert (code, answer["site"]) == (200, "berlin")
        assert up.ask("POST", "/apply", APP.encode())[0] == 200
        until("the release", lambda: up.metric("batuta_decisions_total"))
        before = up.children()
        version = up.get("/apis/batuta.dev/v1/nodes")["metadata"]["resourceVersion"]
        before["hub"].kill()
        until("the next hub", lambda: up.metric("batuta_hub_epoch") == 2)
        after = up.children()
        assert after["broker"] == before["broker"]
        assert after["hub"] != before["hub"]
        until("its first full pass", lambda: up.metric("batuta_passes_full_total"))
        assert up.metric("batuta_decisions_total") == 0
        assert [n["metadata"]["name"] for n in up.get("/apis/batuta.dev/v1/nodes")["items"]] == ["pi-1"]
        assert up.ask("GET", f"/apis/batuta.dev/v1/nodes?watch=true&resourceVersion={version}")[0] == 410
        assert "the hub process ended with -9" in up.said()


def test_the_broker_dies_and_every_row_is_still_there() -> None:
    with hub() as up:
        assert up.ask("POST", "/apply", APP.encode())[0] == 200
        until("the release", lambda: up.metric("batuta_decisions_total"))
        decided = up.metric("batuta_decisions_total")
        before = up.children()
        before["broker"].kill()
        until("the next broker", lambda: up.children().get("broker") not in (None, before["broker"]))
        until("a hub that is ready", lambda: up.get("/readyz"))
        assert up.get("/apis/batuta.dev/v1/namespaces/default/applications/one")["metadata"]["generation"] == 1
        assert up.children()["hub"] == before["hub"], up.said()
        changed = APP.replace("1000", "2000").encode()
        until("a write", lambda: up.ask("POST", "/apply", changed)[0] == 200)
        until("a decision", lambda: up.metric("batuta_decisions_total") > decided)


def test_a_killed_supervisor_leaves_a_broker_that_the_next_one_adopts() -> None:
    with hub() as first:
        assert first.ask("POST", "/apply", APP.encode())[0] == 200
        before, ports = first.children(), first.ports()
        first.process.kill()
        first.process.wait(10)
        until("the hub process to notice", lambda: not before["hub"].is_running() or before["hub"].status() == "zombie")
        assert before["broker"].is_running()
        first.out.unlink()
        second = Up(first.state, "--http-port", "0", "--https-port", "0", "--leaf-port", "0").ready()
        try:
            assert second.children()["broker"] == before["broker"]
            assert second.ports() == ports
            assert second.get("/apis/batuta.dev/v1/namespaces/default/applications/one")
        finally:
            assert second.stop() == 0
        first.process = second.process


def test_tokens_are_spent_once_end_in_time_and_names_are_taken_once() -> None:
    with hub() as up:
        token, key = up.token(), identity.make_key()
        assert up.enrol(token, "pi-1", key)[0] == 200
        assert up.enrol(token, "pi-1", key)[0] == 200
        code, said = up.enrol(token, "pi-2", identity.make_key())
        assert (code, said["error"]) == (403, "token_used")
        code, said = up.enrol(up.token(), "pi-1", identity.make_key())
        assert (code, said["error"]) == (409, "name_taken")
        short = up.token(ttlMs=1_000)
        until("its end", lambda: up.enrol(short, "pi-3", key)[1].get("error") == "token_expired")
        late = time.time_ns() // 1_000_000 - 3_600_000
        code, said = up.enrol(up.token(), "pi-3", key, now=late)
        assert (code, said["error"]) == (422, "clock_wrong")


def test_two_hubs_cannot_share_a_state_nor_take_a_port_that_was_asked_for() -> None:
    with hub() as up:
        other = Up(up.state, "--http-port", "0")
        other.out = up.out
        assert other.process.wait(20) == 1
        assert "another hub runs in" in up.said()
        with socket.socket() as taken, tempfile.TemporaryDirectory() as directory:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            third = Up(Path(directory) / "state", "--http-port", str(port))
            assert third.process.wait(20) == 1
            assert f"port {port}" in third.said()
            assert third.children() == {}


async def test_a_link_that_closes_is_seen_and_a_removed_node_stays_out() -> None:
    with hub() as up, tempfile.TemporaryDirectory(prefix="batuta-node-") as directory:
        key, here = identity.make_key(), Path(directory)
        _, answer = up.enrol(up.token(), "pi-1", key)
        for name, text in (("chain", answer["chain"]), ("key", key), ("root", answer["root"])):
            (here / name).write_text(text)
        settings = broker.NodeBroker(
            node="pi-1",
            store=here / "store",
            client_port=broker.free_port("127.0.0.1"),
            mqtt_port=broker.free_port("127.0.0.1"),
            agent_password="a",
            site_password="s",
            tls=broker.TlsFiles(here / "chain", here / "key", here / "root"),
            hub_urls=tuple(answer["leafs"]),
        )
        process = broker.Broker(here / "broker", tied=True)

        async def connect() -> nats.NatsFabric:
            await process.start(broker.node_config(settings))
            made = await nats.connect_node("pi-1", f"nats://127.0.0.1:{settings.client_port}", "agent", "a")
            await made.wait_connected(10)
            return made

        async def beat(node: nats.NatsFabric) -> dict[str, Any]:
            said: dict[str, Any] = json.loads(await node.request(subjects.alive("pi-1"), b"{}", 2))
            return said

        async def answered(node: nats.NatsFabric) -> None:
            """Until the link carries what is asked: who answers is heard of a moment after it is there."""
            async with asyncio.timeout(60):
                while True:
                    with suppress(FabricUnavailable):
                        await beat(node)
                        return
                    await asyncio.sleep(0.05)

        async def closed(node: nats.NatsFabric) -> None:
            # Closing is not what this is about, and a cancellation can get lost in it; the timeout is a second one.
            with suppress(TimeoutError):
                await asyncio.wait_for(node.close(), 120)

        def link() -> dict[str, Any]:
            found: dict[str, Any] = up.get("/apis/batuta.dev/v1/nodes/pi-1")["status"]["link"]
            return found

        try:
            node = await connect()
            await answered(node)
            # An assignment of nothing, which still names neighbours.
            assert await beat(node) == {"serial": 1, "everyMs": 1000, "hubEpoch": 1}
            assert link()["word"] == "online"
            await closed(node)
            os.kill(process.pid, signal.SIGKILL)
            began = time.monotonic()
            until("the closed link", lambda: "closed" in link()["reason"], 2)
            assert time.monotonic() - began < 2

            node = await connect()
            await answered(node)
            assert link()["word"] == "online"
            assert up.ask("DELETE", "/apis/batuta.dev/v1/nodes/pi-1")[0] == 200
            with pytest.raises(FabricUnavailable):
                await beat(node)
            until("a refusal", lambda: up.metric("batuta_links_denied"))
            with pytest.raises(FabricUnavailable):
                await beat(node)
            await closed(node)
        finally:
            await process.stop()


def test_it_is_small_and_idle() -> None:
    with hub() as up:
        for n in range(6):
            assert up.enrol(up.token(), f"pi-{n}", identity.make_key())[0] == 200
        up.get("/doctor")
        supervisor = psutil.Process(up.process.pid)
        resident = supervisor.memory_info().rss + up.children()["hub"].memory_info().rss
        assert resident < 120 * 2**20, f"{resident / 2**20:.0f} MiB"
        hub_process = up.children()["hub"]
        began = sum(hub_process.cpu_times()[:2]) + sum(supervisor.cpu_times()[:2])
        time.sleep(3)  # what is measured is three seconds of nothing
        spent = sum(hub_process.cpu_times()[:2]) + sum(supervisor.cpu_times()[:2]) - began
        print(f"resident {resident / 2**20:.1f} MiB, idle {spent / 3 * 100:.2f} % of a core")
        assert spent / 3 < 0.05
