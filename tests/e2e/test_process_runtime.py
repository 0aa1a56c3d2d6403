"""What only real processes can show: sessions, limits, probes, logs, ends in words."""
# ruff: noqa: ASYNC110, ASYNC220, ASYNC221, ASYNC230

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.core.decided import Instance
from batuta.errors import RuntimeFailure
from batuta.fabric.broker import free_port
from batuta.kinds.application import ProcessUse
from batuta.kinds.base import Bytes, Millis
from batuta.kinds.program import HttpProbe, Probe
from batuta.runtimes import processes
from batuta.runtimes.base import Order
from batuta.runtimes.logs import Logs
from batuta.runtimes.process import ProcessRuntime
from batuta.runtimes.sandbox import LAUNCHER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.runtimes.base import Condition

pytestmark = pytest.mark.e2e
NAME = "default/app/proc-1-0"


def order(directory: Path, *command: str, memory: int = 0, **use: Any) -> Order:
    made = Instance(
        namespace="default",
        application="app",
        component="proc",
        revision=1,
        slot="0",
        epoch=4,
        process=ProcessUse(command=command, **use),
        memory_bytes=Bytes(memory),
    )
    broker = {"url": "nats://127.0.0.1:4222", "credentials": "/secret/file", "node": "pi-4", "mqtt": "127.0.0.1:1883"}
    return Order(made, directory / "instance", {}, broker)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[ProcessRuntime]:
    made = ProcessRuntime()
    yield made
    await made.stop(NAME, 0)
    await made.close()
    assert processes.marked("BATUTA_DIRECTORY", str(tmp_path / "instance")) == []


@pytest.fixture
def port() -> int:
    return free_port("127.0.0.1")


async def until(runtime: ProcessRuntime, state: str, code: str = "", timeout_s: float = 60.0) -> Condition:
    async with asyncio.timeout(timeout_s):
        while True:
            condition = await runtime.inspect(NAME)
            if condition.state == state and (not code or condition.code == code):
                return condition
            await asyncio.sleep(0.02)


def printed(directory: Path, stream: str = "stdout") -> str:
    return Logs(directory / "instance").path(stream).read_text()


async def printed_at_all(directory: Path) -> str:
    async with asyncio.timeout(60):
        while not printed(directory):
            await asyncio.sleep(0.02)
    return printed(directory)


async def test_it_is_told_where_it_is_and_nothing_else(
    runtime: ProcessRuntime, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    code = (
        "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid()]), flush=True)"
    )
    await runtime.start(order(tmp_path, *python(code), env={"MINE": "yes", "BATUTA_DIRECTORY": "a lie"}))
    await until(runtime, "gone")
    env, cwd, leads = json.loads(printed(tmp_path))
    assert leads
    assert cwd == str(tmp_path / "instance")
    assert "SECRET_OF_THE_AGENT" not in env
    assert env["MINE"] == "yes"
    assert env["BATUTA_DIRECTORY"] == str(tmp_path / "instance")
    assert (env["BATUTA_INSTANCE"], env["BATUTA_NODE"], env["BATUTA_START"]) == (NAME, "pi-4", "1")
    assert env["BATUTA_NATS_CREDENTIALS"] == "/secret/file"


async def test_limits_are_the_kernels(runtime: ProcessRuntime, tmp_path: Path) -> None:
    handle = await runtime.start(order(tmp_path, "sleep", "600", memory=64 << 20))
    pid = handle["pid"]
    with open(f"/proc/{pid}/limits") as file:
        limits = {line[:25].strip(): line[26:].split()[:2] for line in file}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == ["4096", "4096"]
    assert limits["Max data size"] == [str((64 << 20) * 2 + (512 << 20))] * 2
    with open(f"/proc/{pid}/status") as file:
        assert "NoNewPrivs:\t1\n" in file.read()
    with open(f"/proc/{pid}/oom_score_adj") as file:
        assert file.read().strip() == "300"
    assert os.getpriority(os.PRIO_PROCESS, int(pid)) >= 5


async def test_it_inherits_no_descriptor_but_the_three(runtime: ProcessRuntime, tmp_path: Path) -> None:
    await runtime.start(order(tmp_path, *python("import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))")))
    await until(runtime, "gone")
    assert printed(tmp_path) == "[0, 1, 2, 3]\n", "the fourth is the directory being listed"


async def test_more_memory_than_allowed_ends_it_with_a_reason(runtime: ProcessRuntime, tmp_path: Path) -> None:
    code = "x = bytearray(200 << 20); import time; time.sleep(600)"
    await runtime.start(order(tmp_path, *python(code), memory=64 << 20))
    condition = await until(runtime, "gone")
    assert condition.detail.startswith("killed for its memory: 2")
    assert "64Mi allowed" in condition.detail


async def test_a_moment_over_its_memory_counts_too(runtime: ProcessRuntime, tmp_path: Path) -> None:
    code = "x = bytearray(200 << 20); del x; import time; time.sleep(600)"
    await runtime.start(order(tmp_path, *python(code), memory=64 << 20))
    assert "64Mi allowed" in (await until(runtime, "gone")).detail


async def test_who_dies_of_much_memory_before_anybody_looked_has_the_reason(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    # More than this process ever held: the kernel's books on its children begin with that.
    held = processes.peak_bytes(os.getpid()) + (100 << 20)
    code = f"import os; x = bytearray({held}); os._exit(3)"
    await runtime.start(order(tmp_path, *python(code), memory=held // 2))
    condition = await until(runtime, "gone")
    assert (condition.code, f"{held // 2 >> 20}Mi allowed" in condition.detail) == ("memory_exceeded", True)


async def test_who_ends_because_it_is_refused_memory_has_the_reason(runtime: ProcessRuntime, tmp_path: Path) -> None:
    await runtime.start(order(tmp_path, *python("x = bytearray(10 << 30)"), memory=64 << 20))
    condition = await until(runtime, "gone")
    assert condition.code == "memory_exceeded"
    assert condition.detail.startswith("exit status 1, as it was refused more memory: 64Mi allowed: ")
    # What it said then is no word on its next end.
    await runtime.start(order(tmp_path, "sh", "-c", "exit 3", memory=64 << 20))
    condition = await until(runtime, "gone")
    assert (condition.code, condition.detail.startswith("exit status 3: ")) == ("exited", True)


async def test_a_childs_memory_counts_too(runtime: ProcessRuntime, tmp_path: Path) -> None:
    grow = "x = bytearray(200 << 20); import time; time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grow!r}])"
    await runtime.start(order(tmp_path, *python(code), memory=64 << 20))
    assert "64Mi allowed" in (await until(runtime, "gone")).detail


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("sh", "-c", "exit 0"), "exit status 0"),
        (("sh", "-c", "echo one; echo two >&2; exit 3"), "exit status 3: two"),
        (("sh", "-c", "kill -SEGV $$"), "killed by SIGSEGV"),
        (("sh", "-c", "kill -KILL $$"), "killed by SIGKILL (out of memory?)"),
    ],
)
async def test_ends_in_words(runtime: ProcessRuntime, tmp_path: Path, command: tuple[str, ...], words: str) -> None:
    await runtime.start(order(tmp_path, *command))
    condition = await until(runtime, "gone")
    assert (condition.detail, condition.code) == (words, "exited")


@pytest.mark.parametrize("command", ["no-such-command", "/etc/hostname", "/nowhere/at/all"])
async def test_what_is_not_there_or_no_program_is_missing(
    runtime: ProcessRuntime, tmp_path: Path, command: str
) -> None:
    with pytest.raises(RuntimeFailure) as failure:
        await runtime.start(order(tmp_path, command))
    assert failure.value.code == "command_missing"
    assert command in failure.value.message


async def test_a_working_directory_that_is_not_there(runtime: ProcessRuntime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="does not exist"):
        await runtime.start(order(tmp_path, "true", working_directory="/nowhere"))


async def test_stopping_is_polite_first(runtime: ProcessRuntime, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (print('goodbye', flush=True), sys.exit(0)))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    await runtime.start(order(tmp_path, *python(code)))
    await printed_at_all(tmp_path)
    await runtime.stop(NAME, 10_000)
    assert printed(tmp_path) == "up\ngoodbye\n"


async def test_the_stubborn_and_the_hidden_are_ended_too(runtime: ProcessRuntime, tmp_path: Path) -> None:
    """A leader deaf to SIGTERM, a child of its group, and one that made a session of its own."""
    code = (
        "import os, signal, subprocess, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '601'])\n"
        "subprocess.Popen(['sleep', '602'], start_new_session=True)\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )
    await runtime.start(order(tmp_path, *python(code)))
    await printed_at_all(tmp_path)
    mark = ("BATUTA_DIRECTORY", str(tmp_path / "instance"))
    assert len(processes.marked(*mark)) == 3
    begun = asyncio.get_running_loop().time()
    await runtime.stop(NAME, 300)
    assert 0.3 <= asyncio.get_running_loop().time() - begun < 5
    assert processes.marked(*mark) == []


async def test_what_a_dead_leader_left_is_ended(runtime: ProcessRuntime, tmp_path: Path) -> None:
    await runtime.start(order(tmp_path, "sh", "-c", "sleep 600 & exit 1"))
    assert (await until(runtime, "gone")).detail.startswith("exit status 1")
    assert processes.marked("BATUTA_DIRECTORY", str(tmp_path / "instance")) == []


async def test_it_survives_the_death_of_the_agents_process(runtime: ProcessRuntime, tmp_path: Path) -> None:
    """A process of its own starts it, is killed, and this one finds it by the note alone."""
    code = f"""
import asyncio, os, pathlib, sys
sys.path.insert(0, {str(tmp_path)!r})
from batuta.core.decided import Instance
from batuta.kinds.application import ProcessUse
from batuta.runtimes.base import Order
from batuta.runtimes.process import ProcessRuntime
async def main():
    made = Instance(namespace="default", application="app", component="proc", revision=1, slot="0", epoch=4,
                    process=ProcessUse(command=("sleep", "600")))
    await ProcessRuntime().start(Order(made, pathlib.Path({str(tmp_path / "instance")!r}), {{}}, {{}}))
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    agent = subprocess.run([sys.executable, "-c", code], check=False, timeout=20)
    assert agent.returncode == -signal.SIGKILL
    it = order(tmp_path, "sleep", "600")
    assert await runtime.recover(it, {})
    assert (await runtime.inspect(NAME)).state == "ready"
    (seen,) = processes.marked("BATUTA_DIRECTORY", str(tmp_path / "instance"))
    os.kill(seen.pid, 9)
    assert "not known" in (await until(runtime, "gone")).detail


AGENT = """
import asyncio, pathlib, sys
from batuta.core.decided import Instance
from batuta.kinds.application import ProcessUse
from batuta.runtimes.base import Order
from batuta.runtimes.process import ProcessRuntime
async def main():
    runtime = ProcessRuntime()
    for component, lease_ms in (("leased", 5_000), ("unleased", None)):
        # Two of its own: one that can be told by its environment, and one that has wiped it.
        use = ProcessUse(command=("sh", "-c", "sleep 600 & env -i sleep 600 & wait"))
        made = Instance(namespace="default", application="app", component=component, revision=1, slot="0", epoch=4,
                        process=use, lease_ms=lease_ms)
        handle = await runtime.start(Order(made, pathlib.Path(sys.argv[1], component), {}, {}))
        print(handle["pid"], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def session_of(pid: int, count: int) -> list[int]:
    """Its living processes, once they are so many."""
    async with asyncio.timeout(60):
        while len(left := processes.of_session(pid)) != count:
            await asyncio.sleep(0.005)
    return [seen.pid for seen in left]


async def two_and_their_agents_death(directory: Path) -> tuple[int, int, float]:
    """The process that has a lease, the one that has none, and how long the first outlived the agent."""
    with subprocess.Popen([sys.executable, "-c", AGENT, str(directory)], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        leased, unleased = (int(agent.stdout.readline()) for _ in range(2))
        for pid in (leased, unleased):
            await session_of(pid, 3)
        killed_at = time.monotonic()
        agent.kill()
        async with asyncio.timeout(60):
            while (seen := processes.look(leased)) is not None and seen.is_alive:
                await asyncio.sleep(0.001)
        return leased, unleased, time.monotonic() - killed_at


async def test_what_has_a_lease_dies_with_the_agent_and_all_of_it_when_the_next_one_comes(
    runtime: ProcessRuntime, tmp_path: Path
) -> None:
    leased, unleased, took_s = await two_and_their_agents_death(tmp_path)
    # Its lease would have let it run for seconds.
    assert took_s < 0.5
    # The kernel knows only its own child: what that had begun lives on until somebody looks.
    assert len(await session_of(leased, 2)) == 2
    assert len(await session_of(unleased, 3)) == 3

    def found(component: str, lease_ms: int | None) -> Order:
        of_it = order(tmp_path, "sh")
        made = msgspec.structs.replace(of_it.instance, component=component, lease_ms=lease_ms)
        return of_it._replace(instance=made, directory=tmp_path / component)

    assert not await runtime.recover(found("leased", 5_000), {})
    assert processes.of_session(leased) == []
    other = found("unleased", None)
    assert await runtime.recover(other, {})
    await runtime.stop(other.instance.name, 0)
    assert processes.of_session(unleased) == []


async def test_what_would_be_tied_to_an_agent_that_is_gone_does_not_begin(tmp_path: Path) -> None:
    """It may end between the fork and the tie; then the kernel never tells."""
    with socket.socket() as some:
        gone = {"status": some.fileno(), "command": ["touch", str(tmp_path / "begun")], "limits": {}, "tiedTo": 1}
        script = [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(gone)]
        assert subprocess.run(script, check=False, pass_fds=(some.fileno(),), timeout=10).returncode == 127
    assert not (tmp_path / "begun").exists()


async def test_what_no_note_knows_is_ended_before_a_new_start(runtime: ProcessRuntime, tmp_path: Path) -> None:
    first = ProcessRuntime()
    old = await first.start(order(tmp_path, "sleep", "600"))
    await first.close()
    (tmp_path / "instance" / "run.json").unlink()
    assert not await runtime.recover(order(tmp_path, "sleep", "600"), {})
    assert processes.look(int(old["pid"])) is None or not processes.look(int(old["pid"])).is_alive  # type: ignore[union-attr]


async def test_ready_by_http_and_no_longer(runtime: ProcessRuntime, tmp_path: Path, port: int) -> None:
    code = (
        "import http.server, pathlib\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(int(pathlib.Path('status').read_text())); self.end_headers()\n"
        f"http.server.HTTPServer(('127.0.0.1', {port}), H).serve_forever()"
    )
    probe = Probe(http=HttpProbe(port=port, path="/well"), every_ms=Millis(50), failures=2)
    (tmp_path / "instance").mkdir()
    status = tmp_path / "instance" / "status"
    status.write_text("503")
    await runtime.start(order(tmp_path, *python(code), ready=probe))
    async with asyncio.timeout(60):
        while (said := await runtime.inspect(NAME)).detail != "GET /well answered 503":
            assert said.state == "running"
            await asyncio.sleep(0.02)
    status.write_text("204")
    await until(runtime, "ready")
    status.write_text("500")
    assert (await until(runtime, "unready", "not_ready")).detail == "GET /well answered 500"
    status.write_text("301")
    await until(runtime, "ready")


async def test_not_live_by_tcp_once_it_was_ready(runtime: ProcessRuntime, tmp_path: Path, port: int) -> None:
    code = (
        "import pathlib, socket, time\n"
        f"s = socket.create_server(('127.0.0.1', {port}))\n"
        "while not pathlib.Path('close').exists(): time.sleep(0.02)\n"
        "s.close(); time.sleep(600)"
    )
    probe = Probe(tcp=port, every_ms=Millis(50), failures=2)
    await runtime.start(order(tmp_path, *python(code), ready=probe, live=probe))
    await until(runtime, "ready")
    (tmp_path / "instance" / "close").touch()
    condition = await until(runtime, "unready", "not_live")
    assert condition.detail.startswith(f"connecting to port {port} failed")


async def test_a_probe_by_command_sees_what_the_instance_sees(runtime: ProcessRuntime, tmp_path: Path) -> None:
    probe = Probe(exec=("sh", "-c", "test -e $BATUTA_DIRECTORY/ok"), every_ms=Millis(50))
    await runtime.start(order(tmp_path, "sleep", "600", ready=probe))
    async with asyncio.timeout(60):
        while (await runtime.inspect(NAME)).detail != "command sh ended with 1":
            await asyncio.sleep(0.02)
    (tmp_path / "instance" / "ok").touch()
    await until(runtime, "ready")


async def test_a_probe_that_hangs_is_cut_off(runtime: ProcessRuntime, tmp_path: Path) -> None:
    probe = Probe(exec=("sleep", "30"), every_ms=Millis(50), timeout_ms=Millis(100))
    await runtime.start(order(tmp_path, "sleep", "600", ready=probe))
    async with asyncio.timeout(60):
        while (await runtime.inspect(NAME)).detail != "command sleep did not answer within 100 ms":
            await asyncio.sleep(0.02)


async def test_logs_stay_small_and_the_newest_is_kept(runtime: ProcessRuntime, tmp_path: Path) -> None:
    code = (
        "import time\n"
        "for i in range(60000):\n"
        "    print(f'line {i:06} ' + 'x' * 88, flush=i % 100 == 99)\n"
        "    if i % 2000 == 1999: time.sleep(0.1)\n"
        "print('the end', flush=True); time.sleep(600)"
    )
    await runtime.start(order(tmp_path, *python(code)))
    directory = tmp_path / "instance" / "log"
    async with asyncio.timeout(30):
        while "the end" not in "".join(p.read_text() for p in sorted(directory.glob("stdout.log*"))):
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.6)
    files = sorted(directory.glob("stdout.log*"))
    assert [f.name for f in files] == ["stdout.log", "stdout.log.1", "stdout.log.2"]
    assert all(f.stat().st_size <= (1 << 20) + 400_000 for f in files)
    text = "".join(f.read_text() for f in reversed(files))
    found = [int(line[5:11]) for line in text.splitlines() if line.startswith("line ") and len(line) == 100]
    assert found == sorted(found)
    assert found[-1] == 59_999


async def test_it_inherits_no_held_back_signals(runtime: ProcessRuntime, tmp_path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        await runtime.start(order(tmp_path, "sleep", "600"))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    begun = asyncio.get_running_loop().time()
    await runtime.stop(NAME, 10_000)
    assert asyncio.get_running_loop().time() - begun < 5, "SIGTERM was enough"
