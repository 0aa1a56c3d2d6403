"""What a client asks of rollouts: `hub.rollouts.get("reader")`, `hub.rollouts.pause("reader", reason="audit")`.

A rollout has the name of its application. `batuta.client_async` asks the same, each with `await`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from batuta.answers import Chapter, Pinned
from batuta.kinds.base import API_VERSION, DEFAULT_NAMESPACE
from batuta.kinds.rollout import Rollout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from batuta.answers import Event, Found
    from batuta.client import Client
    from batuta.client_async import AsyncClient
    from batuta.wire import Wire

OVER: Final = ("done", "undone", "aborted")
"""Phases in which nothing more happens by itself. `paused` waits for somebody."""


class Rollouts:
    """How releases arrive, at one hub."""

    def __init__(self, hub: Client, wire: Wire) -> None:
        self._hub = hub
        self._wire = wire

    def get(self, application: str, *, namespace: str = DEFAULT_NAMESPACE) -> Found[Rollout]:
        """Where it stands. NotFound while the first release of the application is its only one."""
        return self._hub.get(Rollout, application, namespace=namespace)

    def list(self, *, namespace: str | None = DEFAULT_NAMESPACE) -> tuple[Found[Rollout], ...]:
        return self._hub.list(Rollout, namespace=namespace)

    def watch(
        self, application: str = "", *, namespace: str | None = DEFAULT_NAMESPACE, timeout_s: float | None = None
    ) -> Iterator[Event[Rollout]]:
        return self._hub.watch(Rollout, name=application, namespace=namespace, timeout_s=timeout_s)

    def wait(
        self, application: str, release: int = 0, *, namespace: str = DEFAULT_NAMESPACE, timeout_s: float = 600.0
    ) -> Found[Rollout]:
        """The rollout of this release, or of a later one, as soon as it is over or paused. Raises WaitedTooLong."""
        return self._hub.wait(
            Rollout,
            application,
            lambda found: found.resource.spec.release >= release and found.status.get("phase") in (*OVER, "paused"),
            namespace=namespace,
            timeout_s=timeout_s,
        )

    # --- Asking ---

    def pause(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        """Nothing changes any more, in either direction. Returns what the hub says became of it."""
        return self._ask(application, "pause", namespace, reason)

    def resume(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        """It goes on where it was paused."""
        return self._ask(application, "resume", namespace, reason)

    def approve(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        """Its next wave may begin when this one is through."""
        return self._ask(application, "approve", namespace, reason)

    def abort(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        """No further node gets it; those that have it keep it."""
        return self._ask(application, "abort", namespace, reason)

    def undo(
        self, application: str, *, to: int | None = None, reason: str = "", namespace: str = DEFAULT_NAMESPACE
    ) -> str:
        """Every node gets back what it had; or release `to` is declared again."""
        return self._ask(application, "undo", namespace, reason, {"to": to} if to is not None else {})

    def retry(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        """As if no node had refused it."""
        return self._ask(application, "retry", namespace, reason)

    # --- Looking back ---

    def history(self, application: str, *, namespace: str = DEFAULT_NAMESPACE) -> tuple[Chapter, ...]:
        """Every release that is kept, the newest first."""
        path = f"{_place('applications', namespace, application)}/history"
        return tuple(_chapter(item) for item in self._wire.ask("GET", path).get("items", ()))

    def difference(
        self, application: str, older: int, newer: int, *, namespace: str = DEFAULT_NAMESPACE
    ) -> tuple[Mapping[str, Any], ...]:
        """In which fields two releases differ: each with `op` (`+`, `-` or `~`), `path`, `before` and `after`."""
        path = f"{_place('applications', namespace, application)}/difference"
        return tuple(self._wire.ask("GET", path, {"from": str(older), "to": str(newer)}).get("fields", ()))

    def _ask(
        self, application: str, ask: str, namespace: str, reason: str, more: Mapping[str, Any] | None = None
    ) -> str:
        body = msgspec.json.encode({**({"reason": reason} if reason else {}), **(more or {})})
        path = f"{_place('rollouts', namespace, application)}/{ask}"
        return str(self._wire.ask("POST", path, body=body, may_repeat=False).get("message", ""))


class AsyncRollouts:
    """The same for one event loop."""

    def __init__(self, hub: AsyncClient) -> None:
        self._hub = hub

    async def get(self, application: str, *, namespace: str = DEFAULT_NAMESPACE) -> Found[Rollout]:
        return await self._hub.get(Rollout, application, namespace=namespace)

    async def list(self, *, namespace: str | None = DEFAULT_NAMESPACE) -> tuple[Found[Rollout], ...]:
        return await self._hub.list(Rollout, namespace=namespace)

    def watch(
        self, application: str = "", *, namespace: str | None = DEFAULT_NAMESPACE, timeout_s: float | None = None
    ) -> AsyncGenerator[Event[Rollout], None]:
        return self._hub.watch(Rollout, name=application, namespace=namespace, timeout_s=timeout_s)

    async def wait(
        self, application: str, release: int = 0, *, namespace: str = DEFAULT_NAMESPACE, timeout_s: float = 600.0
    ) -> Found[Rollout]:
        return await self._hub.ask(
            lambda hub: hub.rollouts.wait(application, release, namespace=namespace, timeout_s=timeout_s)
        )

    async def pause(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        return await self._hub.ask(lambda hub: hub.rollouts.pause(application, reason=reason, namespace=namespace))

    async def resume(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        return await self._hub.ask(lambda hub: hub.rollouts.resume(application, reason=reason, namespace=namespace))

    async def approve(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        return await self._hub.ask(lambda hub: hub.rollouts.approve(application, reason=reason, namespace=namespace))

    async def abort(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        return await self._hub.ask(lambda hub: hub.rollouts.abort(application, reason=reason, namespace=namespace))

    async def undo(
        self, application: str, *, to: int | None = None, reason: str = "", namespace: str = DEFAULT_NAMESPACE
    ) -> str:
        return await self._hub.ask(
            lambda hub: hub.rollouts.undo(application, to=to, reason=reason, namespace=namespace)
        )

    async def retry(self, application: str, *, reason: str = "", namespace: str = DEFAULT_NAMESPACE) -> str:
        return await self._hub.ask(lambda hub: hub.rollouts.retry(application, reason=reason, namespace=namespace))

    async def history(self, application: str, *, namespace: str = DEFAULT_NAMESPACE) -> tuple[Chapter, ...]:
        return await self._hub.ask(lambda hub: hub.rollouts.history(application, namespace=namespace))

    async def difference(
        self, application: str, older: int, newer: int, *, namespace: str = DEFAULT_NAMESPACE
    ) -> tuple[Mapping[str, Any], ...]:
        return await self._hub.ask(lambda hub: hub.rollouts.difference(application, older, newer, namespace=namespace))


def _place(plural: str, namespace: str, name: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{quote(namespace, safe='')}/{plural}/{quote(name, safe='')}"


def _chapter(item: Mapping[str, Any]) -> Chapter:
    pins = tuple(Pinned(p["component"], p["what"], p["digest"]) for p in item.get("pins", ()))
    return Chapter(
        item["revision"], item["at"], bool(item.get("isNewest", False)), pins, tuple(item.get("changes", ())),
        str(item.get("by", "")), str(item.get("rollout", "")),
    )  # fmt: skip
