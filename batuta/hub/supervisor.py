"""What `batuta up` runs: the broker and the hub process, each restarted without the other, both stopped together.

The broker keeps the links of all nodes, so its life is not the hub process's. A supervisor that was killed leaves its
broker running, and the next one adopts it; a hub process whose supervisor is gone reads the end of its standard input
and ends by itself. This process stays small: it imports neither the web server nor the core.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import psutil

from batuta.errors import BatutaError
from batuta.fabric.broker import Broker, BrokerFailed, HubBroker, TlsFiles, free_port, hub_config
from batuta.fabric.broker_health import UNSAID, Mending, ask
from batuta.fabric.tasks import end
from batuta.hub.run import Ports, Run, lock, read_secrets
from batuta.hub.secret_files import write_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.config import HubConfig

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LONGEST_S: Final = 10.0
STEADY_S: Final = 30.0
"""A process that ran for so long has earned a quick restart."""
STOP_S: Final = 10.0
FRUGAL: Final = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of the hub process: it decides in one thread, and pools of memory and threads for more only cost."""
READY_S: Final = 30.0
LOOK_EVERY_S: Final = 1.0
PREDECESSOR_S: Final = 15.0
PORT_TRIES: Final = 5
USUAL: Final = {"http": 8400, "https": 8443, "leaf": 7422}


class Supervisor:
    """One hub of one state directory."""

    def __init__(self, config: HubConfig, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._directory = config.directory
        self._broker = Broker(self._directory / "broker")
        self._hub: asyncio.subprocess.Process | None = None
        self._run: Run | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Until told to stop; 0 when everything ended in order."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        held = lock(self._directory / "up.lock")
        if held is None:
            raise BatutaError(
                f"another hub runs in {self._config.state}", next_step="stop it, or give this one its own --state"
            )
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, self._stopping.set)
        try:
            await self._predecessor_gone()
            await self._begin()
            await self._keep_up()
        finally:
            await self._end()
            held.close()
        return 0

    # --- Beginning ---

    async def _predecessor_gone(self) -> None:
        """The hub process of a supervisor that was killed ends by itself; both must not write the same tables."""
        until = time.monotonic() + PREDECESSOR_S
        while (held := lock(self._directory / "hub.lock")) is None:
            if time.monotonic() > until:
                raise BatutaError(
                    f"a hub process of {self._config.state} does not end", next_step="look for it with ps, and end it"
                )
            await asyncio.sleep(0.05)
        held.close()

    async def _begin(self) -> None:
        for left in reversed(range(PORT_TRIES)):
            run = self._run = Run(config=self._advertised(), ports=self._ports())
            write_secret(self._directory / "run.json", msgspec.json.encode(run).decode())
            if left == PORT_TRIES - 1:
                await self._prepare()
            try:
                await self._start_broker()
                break
            except BrokerFailed as error:
                # Somebody was quicker between our look and the broker's: look again.
                if error.code != "port_taken" or not left:
                    raise
        write_secret(self._directory / "ports.json", msgspec.json.encode(run.ports).decode())
        await self._start_hub()
        await self._ready()
        self._introduce()

    def _ports(self) -> Ports:
        """The ports that were asked for, else those of the last run, else the usual ones or the next that are free."""
        kept: dict[str, int] = {}
        with suppress(OSError, msgspec.DecodeError):
            kept = msgspec.json.decode((self._directory / "ports.json").read_bytes(), type=dict[str, int])
        chosen: dict[str, int] = {}
        for name, host in (("http", "127.0.0.1"), ("https", self._config.listen), ("leaf", self._config.listen)):
            asked: int | None = getattr(self._config, f"{name}_port")
            wanted = (asked or kept.get(name, 0)) if asked is not None else kept.get(name, USUAL[name])
            if name == "leaf" and wanted == kept.get(name) and self._broker_runs():
                chosen[name] = wanted
                continue
            found = free_port(host, wanted, taken=chosen.values())
            if asked and found != asked:
                raise BrokerFailed(
                    "port_taken",
                    f"port {asked} on {host} is in use by another program",
                    next_step=f"free it, or choose another --{name}-port",
                )
            if wanted and found != wanted:
                self._say(f"port {wanted} is taken; {name} is on {found}")
            chosen[name] = found
        client = kept.get("client", 0)
        if not (client and self._broker_runs()):
            client = free_port("127.0.0.1", client, taken=chosen.values())
        return Ports(**chosen, client=client)

    def _broker_runs(self) -> bool:
        """Does the broker of an earlier run still hold its ports?"""
        try:
            known = msgspec.json.decode((self._broker.directory / "broker.pid").read_bytes(), type=dict[str, object])
            return psutil.Process(int(str(known["pid"]))).create_time() == known["born"]
        except (OSError, ValueError, KeyError, msgspec.DecodeError, psutil.Error):
            return False

    def _advertised(self) -> HubConfig:
        """A hub that listens everywhere says where that is."""
        if self._config.names or self._config.listen not in ("0.0.0.0", "::"):  # noqa: S104  compared with
            return self._config
        found = [
            each.address
            for each in (a for addresses in psutil.net_if_addrs().values() for a in addresses)
            if each.family.name == "AF_INET" and not each.address.startswith("127.")
        ]
        return msgspec.structs.replace(self._config, advertise=tuple(sorted(found)))

    async def _prepare(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "batuta.hub.prepare", "--state", self._config.state, stdin=asyncio.subprocess.DEVNULL
        )
        if await process.wait():
            raise BatutaError("keys and certificates could not be made", next_step="see the lines above")

    async def _start_broker(self) -> None:
        assert self._run is not None
        drawn = read_secrets(Path(self._config.state))
        authority, ports = self._directory / "authority", self._run.ports
        settings = HubBroker(
            store=self._directory / "broker" / "store",
            client_port=ports.client,
            leaf_port=ports.leaf,
            tls=TlsFiles(authority / "listener.pem", authority / "listener.key", authority / "root.pem"),
            hub_password=drawn.hub_password,
            callout_password=drawn.callout_password,
            system_password=drawn.system_password,
            callout_issuer=drawn.callout_issuer,
            leaf_host=self._config.listen,
        )
        await self._broker.start(hub_config(settings))

    async def _start_hub(self) -> None:
        self._hub = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "batuta.web", "--state", self._config.state,
            stdin=asyncio.subprocess.PIPE, env={**FRUGAL, **os.environ},
        )  # fmt: skip

    async def _ready(self) -> None:
        """Returns when the hub answers; raises when it ends before, or takes too long."""
        assert self._hub is not None
        assert self._run is not None
        until = time.monotonic() + READY_S
        while not await _answers(self._run.ports.http):
            if self._hub.returncode is not None:
                raise BatutaError(f"the hub process ended with {self._hub.returncode}", next_step="see the lines above")
            if time.monotonic() > until:
                raise BatutaError(f"the hub did not answer within {READY_S:.0f} s", next_step="see the lines above")
            if self._stopping.is_set():
                return
            await asyncio.sleep(0.05)

    def _introduce(self) -> None:
        assert self._run is not None
        ports, listen = self._run.ports, self._config.listen
        context = {
            "server": f"http://127.0.0.1:{ports.http}",
            "tokenFile": str((self._directory / "admin.token").absolute()),
        }
        write_secret(Path(self._config.state) / "context.json", msgspec.json.encode(context).decode())
        self._say(f"hub      http://127.0.0.1:{ports.http} for this machine, https://{listen}:{ports.https} for others")
        self._say(f"links    {listen}:{ports.leaf}, where nodes connect")
        self._say(f"state    {self._config.state}")
        self._say("next     batuta token create --site NAME")

    # --- Keeping up ---

    async def _keep_up(self) -> None:
        stop = asyncio.create_task(self._stopping.wait())
        keepers = [asyncio.create_task(keep()) for keep in (self._keep_broker, self._keep_store, self._keep_hub)]
        try:
            done, _ = await asyncio.wait((stop, *keepers), return_when=asyncio.FIRST_COMPLETED)
            for task in done.intersection(keepers):
                task.result()
        finally:
            await end(stop, *keepers)

    async def _keep_broker(self) -> None:
        backoff = Backoff()
        while True:
            await self._broker.wait()
            self._say("the broker ended; it is started again")
            await backoff.pause()
            try:
                await self._start_broker()
            except BrokerFailed as error:
                self._say(f"the broker does not start: {error.message}. {error.next_step}")

    async def _keep_store(self) -> None:
        """A broker whose store has given up is stopped, and so started anew, once there is room on its disk."""
        assert self._run is not None
        password = read_secrets(Path(self._config.state)).system_password
        mending, said = Mending(self._broker.directory), ""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            # One that does not even greet is starting, or is looked after by whoever waits for its end.
            words = await ask(self._run.ports.client, "system", password) or ""
            if words.startswith(UNSAID):
                continue
            if words != said:
                self._say(f"the broker is not well: {words}" if words else "the broker is well again")
                said = words
            if mending.is_due(words, time.monotonic()):
                await self._broker.stop()

    async def _keep_hub(self) -> None:
        backoff = Backoff()
        while True:
            assert self._hub is not None
            status = await self._hub.wait()
            self._say(f"the hub process ended with {status}; it is started again")
            await backoff.pause()
            await self._start_hub()

    # --- The end ---

    async def _end(self) -> None:
        hub = self._hub
        if hub is not None and hub.returncode is None:
            with suppress(ProcessLookupError):
                hub.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await hub.wait()
            except TimeoutError:
                hub.kill()
                await hub.wait()
        await self._broker.stop()


class Backoff:
    """Longer and longer pauses between restarts, forgotten after a steady run."""

    def __init__(self) -> None:
        self._pause_s = BACKOFF_FIRST_S
        self._since = time.monotonic()

    async def pause(self) -> None:
        if time.monotonic() - self._since > STEADY_S:
            self._pause_s = BACKOFF_FIRST_S
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, BACKOFF_LONGEST_S)
        self._since = time.monotonic()


async def _answers(port: int) -> bool:
    """Does the hub say that it is ready?"""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            line = await reader.readline()
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
    return b" 200 " in line


def up(config: HubConfig, say: Callable[[str], None]) -> int:
    """Runs a hub in the foreground. Raises BatutaError when it cannot begin."""

    async def supervise() -> int:
        return await Supervisor(config, say).run()

    return asyncio.run(supervise())
