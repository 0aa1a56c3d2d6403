"""The hub process: the deciding loop and both listeners, in one event loop, until told to stop.

It ends when its standard input ends, which is how it learns that its supervisor is gone; when a signal says so; or
when a part of it failed: then its successor begins from what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from batuta.errors import BatutaError
from batuta.fabric.clock import LifeClock
from batuta.fabric.nats import connect_hub
from batuta.fabric.tasks import end
from batuta.hub.hub import Hub
from batuta.hub.links import Links, widen_duplicates
from batuta.hub.run import lock, read_run, read_secrets
from batuta.hub.secret_files import secret_in
from batuta.web.app import doors
from batuta.web.patience import Patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

    from batuta.hub.run import Run

log = logging.getLogger(__name__)

JUMP_MS: Final = 1_000
"""Less than this is the clock being kept right."""
LOOK_EVERY_S: Final = 1.0


class Listener(uvicorn.Server):
    """One listener of several: signals are the process's, not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(run: Run) -> None:
    """Runs the hub until it should end."""
    config, ports = run.config, run.ports
    secrets = read_secrets(Path(config.state))
    clock = LifeClock()
    url = f"nats://127.0.0.1:{ports.client}"
    fabric = await connect_hub(url, "hub", secrets.hub_password, clock)
    await widen_duplicates(fabric)
    hub: Hub | None = None

    def link_closed(node: str) -> None:
        if hub is not None:
            hub.sightings.link_closed(node)

    links = Links(clock, link_closed)
    hub = Hub(config, fabric, clock, hubs=run.hubs, leafs=run.leafs, kick=links.kick)
    try:
        await hub.start()
        gc.collect()
        gc.freeze()  # What was read from the tables lives for long: it is not looked through again and again.
        hub.links_denied = lambda: links.denied
        links.namespaces, hub.elsewhere.relink = hub.elsewhere.namespaces, links.widen
        await links.open(url, secrets, hub.enrolment)
        await _listen(run, hub, clock)
    finally:
        await hub.stop()
        await links.close()
        await fabric.close()


async def _listen(run: Run, hub: Hub, clock: LifeClock) -> None:
    plain, tls = doors(hub, secret_in(run.config.directory / "admin.token"))
    files = hub.authorities.listener
    listeners = [
        Listener(settings(plain)),
        Listener(settings(tls, ssl_certfile=str(files.chain), ssl_keyfile=str(files.key))),
    ]
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, ending.set)
    if not sys.stdin.isatty():
        loop.add_reader(sys.stdin.fileno(), _supervisor_spoke, ending)
    sockets = [_bound("127.0.0.1", run.ports.http), _bound(run.config.listen, run.ports.https)]
    serving = [asyncio.create_task(listener.serve([bound])) for listener, bound in zip(listeners, sockets, strict=True)]
    failing = asyncio.create_task(hub.failed())
    jumping = asyncio.create_task(_jumped(clock))
    stop = asyncio.create_task(ending.wait())
    try:
        done, _ = await asyncio.wait((stop, failing, jumping, *serving), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for listener in listeners:
            listener.should_exit = True
        await asyncio.gather(*serving, return_exceptions=True)
        await end(failing, jumping, stop)


async def _jumped(clock: LifeClock) -> None:
    """Raises once the machine's clock was set: what this process heard, it heard by the old time, and certificates and
    tokens hold by the new. Its successor listens by the new one before it decides."""
    while abs(apart_ms := clock.apart_ms()) < JUMP_MS:  # noqa: ASYNC110  a clock has no event to await
        await asyncio.sleep(LOOK_EVERY_S)
    way = "ahead" if apart_ms > 0 else "back"
    raise BatutaError(
        f"this machine's clock went {abs(apart_ms) / 1000:.0f} s {way}",
        next_step="The hub begins anew by it; if it was not you who set it, check the time service",
    )


def _bound(host: str, port: int) -> socket.socket:
    """Bound here and not by the server, which would end the process without a word that helps."""
    try:
        bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BatutaError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            next_step="another program may have taken the port meanwhile; see `ss -ltnp`",
        ) from error
    # asyncio sets this on sockets that name their protocol, which these do not; without it each answer on a kept
    # connection waits 40 ms for an acknowledgement. Accepted connections inherit it.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def settings(app: ASGIApp, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=75,
        ws="none",
        http=Patient,
        **more,
    )


def _supervisor_spoke(ending: asyncio.Event) -> None:
    """The supervisor never says anything; what can be read is the end of its pipe."""
    if not os.read(sys.stdin.fileno(), 1):
        ending.set()


def main(state: Path) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run = read_run(state)
    held = lock(run.config.directory / "hub.lock")
    if held is None:
        log.error("another hub process runs in %s", state)
        return 1
    try:
        asyncio.run(serve(run))
    except BatutaError as error:
        log.error("%s. %s", error.message, error.next_step)  # noqa: TRY400  one line says it
        return 1
    finally:
        held.close()
    return 0
