"""The client for programs that run an event loop: `async with connect() as hub: await hub.get(Application, "reader")`.

It is `batuta.client` on a few threads, not another client: the same wire, the same errors, and nothing is blocked. A
question that is cancelled is answered all the same, and its answer dropped. Every watch has a thread and a connection
of its own, and hangs up when it is closed or cancelled.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar

from batuta.client import Applied, Client, Event, Foreseen, Found, WaitedTooLong
from batuta.client_rollouts import AsyncRollouts
from batuta.context import context
from batuta.kinds.base import DEFAULT_NAMESPACE, Resource

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

R = TypeVar("R", bound=Resource)
T = TypeVar("T")

AT_ONCE: Final = 4
"""Questions that are asked at the same time; further ones wait for their turn."""


def connect(
    state: str | os.PathLike[str] | None = None, *, server: str | None = None, token_file: str | None = None
) -> AsyncClient:
    """A client of the hub that this user knows. Nothing is sent yet."""
    return AsyncClient(*context(state, server=server, token_file=token_file))


class AsyncClient:
    """One hub, for one event loop."""

    def __init__(
        self, server: str, token: str = "", ca: str = "", *, timeout_s: float = 30.0, at_once: int = AT_ONCE
    ) -> None:
        self._make: Callable[[], Client] = lambda: Client(server, token, ca, timeout_s=timeout_s)
        self._make().close()  # What is wrong with the address is said here and now.
        self.rollouts = AsyncRollouts(self)
        """How releases arrive: where they stand, and what is asked of them."""
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="batuta-client")
        self._mine = threading.local()
        self._clients: list[Client] = []
        """One for each thread that has asked something."""

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for the questions that are under way."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        for client in self._clients:
            client.close()

    # --- Resources ---

    async def get(self, kind: type[R], name: str, *, namespace: str = DEFAULT_NAMESPACE) -> Found[R]:
        return await self.ask(lambda hub: hub.get(kind, name, namespace=namespace))

    async def list(
        self, kind: type[R], *, namespace: str | None = DEFAULT_NAMESPACE, selector: str = ""
    ) -> tuple[Found[R], ...]:
        return await self.ask(lambda hub: hub.list(kind, namespace=namespace, selector=selector))

    async def apply(
        self, what: str | Iterable[Resource], *, file: str = "", namespace: str = "", dry_run: bool = False
    ) -> tuple[Applied, ...]:
        said = what if isinstance(what, str) else tuple(what)
        return await self.ask(lambda hub: hub.apply(said, file=file, namespace=namespace, dry_run=dry_run))

    async def diff(self, what: str | Iterable[Resource], *, file: str = "", namespace: str = "") -> Foreseen:
        said = what if isinstance(what, str) else tuple(what)
        return await self.ask(lambda hub: hub.diff(said, file=file, namespace=namespace))

    async def update(
        self,
        kind: type[R],
        name: str,
        change: Callable[[R], R],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        tries: int = 5,
    ) -> Found[R]:
        """As in `batuta.client`; `change` is called in another thread, and again when somebody else wrote first."""
        return await self.ask(lambda hub: hub.update(kind, name, change, namespace=namespace, tries=tries))

    async def delete(self, kind: type[Resource], name: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        await self.ask(lambda hub: hub.delete(kind, name, namespace=namespace))

    async def watch(
        self,
        kind: type[R],
        *,
        name: str = "",
        namespace: str | None = DEFAULT_NAMESPACE,
        selector: str = "",
        timeout_s: float | None = None,
        patience_s: float = 30.0,
    ) -> AsyncGenerator[Event[R], None]:
        """What is there, as ADDED, and then every change. Left early, close it: `async with aclosing(hub.watch(…))`."""

        def begin(hub: Client) -> Iterator[Event[R]]:
            return hub.watch(
                kind, name=name, namespace=namespace, selector=selector, timeout_s=timeout_s, patience_s=patience_s
            )

        async for event in self._stepped(begin):
            yield event

    async def wait(
        self,
        kind: type[R],
        name: str,
        until: Callable[[Found[R]], bool],
        *,
        namespace: str = DEFAULT_NAMESPACE,
        timeout_s: float = 60.0,
    ) -> Found[R]:
        """The resource as soon as `until` is true of it. Raises WaitedTooLong."""
        async with aclosing(self.watch(kind, name=name, namespace=namespace, timeout_s=timeout_s)) as events:
            async for event in events:
                if event.type != "DELETED" and until(event.found):
                    return event.found
        raise WaitedTooLong(
            f"{kind.__name__} {name} is not as awaited after {timeout_s:g} s",
            next_step=f"see `batuta describe {kind.__name__.lower()} {name}`",
        )

    async def logs(
        self,
        application: str,
        *,
        component: str = "",
        instance: str = "",
        tail: int = 100,
        follow: bool = False,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> AsyncGenerator[str, None]:
        """Lines that its instances printed; `follow` goes on until closed."""

        def begin(hub: Client) -> Iterator[str]:
            return hub.logs(
                application, component=component, instance=instance, tail=tail, follow=follow, namespace=namespace
            )

        async for line in self._stepped(begin):
            yield line

    # --- Threads ---

    async def ask(self, question: Callable[[Client], T]) -> T:
        """Anything else that `batuta.client` can be asked: `await hub.ask(lambda hub: hub.doctor())`."""

        def asked() -> T:
            mine: Client | None = getattr(self._mine, "client", None)
            if mine is None:
                mine = self._mine.client = self._make()
                self._clients.append(mine)
            return question(mine)

        return await asyncio.get_running_loop().run_in_executor(self._threads, asked)

    async def _stepped(self, begin: Callable[[Client], Iterator[T]]) -> AsyncGenerator[T, None]:
        """What an iterator yields, step by step, each in the one thread that it has to itself."""
        client, thread, end = self._make(), ThreadPoolExecutor(1, thread_name_prefix="batuta-watch"), object()
        loop = asyncio.get_running_loop()
        steps = begin(client)
        try:
            while True:
                step: Any = await loop.run_in_executor(thread, next, steps, end)
                if step is end:
                    return
                yield step
        finally:
            # The thread may be in the middle of a step: hung up, it ends by itself, and nobody waits for it here.
            client.hang_up()
            thread.submit(_ended, steps, client)
            thread.shutdown(wait=False)


def _ended(steps: Any, client: Client) -> None:
    steps.close()
    client.close()
