"""What is asked of rollouts, and the history behind them.

POST …/rollouts/NAME/{pause,resume,approve,abort,undo,retry}; GET …/applications/NAME/history and …/difference.

An ask is applied to the rollout's record beside the hub's own decisions, and never over one that it has not seen. To
go back to a release that is not being rolled out is to declare it again: judged and audited as every declaration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.routing import Route

from batuta.core.history import difference, history, returned
from batuta.core.reasons import Reason
from batuta.core.rollout_asks import WHILE, asked, can_be_undone, unknown
from batuta.core.state import Change
from batuta.core.turns import plan_of
from batuta.errors import NotFound, Refused, Stale
from batuta.hub.audit import ASKER
from batuta.hub.audit_reading import Wanted, find
from batuta.kinds.application import Application
from batuta.kinds.base import API_VERSION, Problem, Record, encode_hook
from batuta.web.answers import ABOUT, Wrong, said
from batuta.web.applying import by_update, writer_of
from batuta.web.bodies import record_of
from batuta.web.queries import dry_run_of, number
from batuta.web.rollouts import BASE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.core.decided import Release
    from batuta.core.history import Chapter
    from batuta.core.rollout import Rollout
    from batuta.core.rollout_asks import Ask
    from batuta.core.state import State
    from batuta.hub.audit import AuditEntry
    from batuta.hub.hub import Hub

TRIES: Final = 10
ENTRIES_MAX: Final = 500
"""Of the audit, looked through for who made a release."""
SAYS: Final[dict[Ask, str]] = {
    "pause": "paused: nothing changes until it is resumed or undone",
    "resume": "goes on",
    "approve": "approved: the next wave begins when this one is through",
    "abort": "aborted: no further node gets it, and those that have it keep it",
    "undo": "is being undone",
    "retry": "begins anew",
}


class Asked(Record):
    """What a body says; an empty one says nothing."""

    reason: Annotated[str, Meta(max_length=500)] = ""
    """For people: why."""
    to: Annotated[int, Meta(ge=1)] | None = None
    """Of an undo: the release to go back to; the last that was trusted when left out."""


def rollout_ask_routes(hub: Hub) -> list[Route]:
    asks = RolloutAsks(hub)
    one, application = (f"{BASE}/namespaces/{{namespace}}/{plural}/{{name}}" for plural in ("rollouts", "applications"))
    return [
        *(Route(f"{one}/{ask}", asks.asking(ask), methods=["POST"]) for ask in WHILE),
        Route(f"{application}/history", asks.history, methods=["GET"]),
        Route(f"{application}/difference", asks.difference, methods=["GET"]),
    ]


class RolloutAsks:
    """Endpoints about how releases arrive."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def asking(self, ask: Ask) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            body, dry_run = await record_of(request, Asked, 16_384), dry_run_of(request)
            if body.to is not None and ask != "undo":
                raise Wrong(422, f"to is for undo, and this is {ask}")
            app = _app(request, "rollouts")
            rollout = self._hub.loop.state.rollouts.get(app)
            if ask == "undo" and not can_be_undone(rollout, body.to):
                return await self._return_to(request, app, body, dry_run=dry_run)
            return await self._apply(app, ask, body.reason, dry_run=dry_run)

        return answer

    async def _apply(self, app: str, ask: Ask, reason: str, *, dry_run: bool) -> Response:
        hub, what = self._hub, f"rollouts/{app}"
        row = self._asked(app, ask, reason)
        if not dry_run:
            before = hub.loop.state.rollouts[app]
            now = {"release": row.revision, "state": row.phase, **({"reason": reason} if reason else {})}
            await hub.audit.accepted(ask, what, {"release": before.revision, "state": before.phase}, now)
            for tries_left in reversed(range(TRIES)):
                # Looked at again: the hub goes on deciding meanwhile. Nothing is awaited before the write has its
                # revision.
                row = self._asked(app, ask, reason)
                try:
                    await hub.store.commit(Change("decided", row.key, row))
                    break
                except Stale:
                    await hub.store.reread("decided", row.key)
                    if not tries_left:
                        raise
        return _done(app, f"release {row.revision} {SAYS[ask]}", row.revision)

    def _asked(self, app: str, ask: Ask, reason: str) -> Rollout:
        hub = self._hub
        state = hub.loop.state
        rollout = state.rollouts.get(app)
        if rollout is None:
            raise _refusal(unknown(app))
        found = asked(rollout, plan_of(state.application(app)), ask, hub.clock.now(), _said(reason))
        if isinstance(found, Reason):
            raise _refusal(found)
        return found

    async def _return_to(self, request: Request, app: str, body: Asked, *, dry_run: bool) -> Response:
        """Declares a kept release again."""
        hub, state = self._hub, self._hub.loop.state
        rollout, present = state.rollouts.get(app), state.application(app)
        if present is None:
            raise _no_application(app)
        to = body.to
        if to is None and rollout is not None:
            if rollout.phase in ("undoing", "undone"):
                raise _refusal(_unfit(app, f"release {rollout.revision} is {rollout.phase} already"))
            to = rollout.previous
        found = returned(state, app, to)
        if isinstance(found, Reason):
            raise _refusal(found)
        if found.spec == present.spec:
            raise _refusal(_unfit(app, "what is declared is what that release was"))

        def same(seen: State) -> None:
            if seen.application(app) != present:
                raise Stale(f"{present.ref} was changed meanwhile", next_step="look at it, then undo it again")

        owners = by_update(writer_of(request, "Update"), hub.clock)
        await hub.declarations.apply([found], dry_run=dry_run, unless=same, owners=owners)
        kept = state.releases[app]
        number_of = to if to is not None else kept[-2].revision
        return _done(app, f"release {number_of} is declared again, and comes as a release of its own", number_of)

    # --- History ---

    async def history(self, request: Request) -> Response:
        """Every kept release, the newest first."""
        app = _app(request, Application.plural)
        state = self._hub.loop.state
        if app not in state.releases:
            raise _no_application(app)
        chapters = history(state, app)
        by = await self._who(state, app, chapters)
        rollout = state.rollouts.get(app)
        phases = {rollout.revision: str(rollout.phase)} if rollout is not None else {}
        items = [
            {**_plain(c), **_where(by, "by", c.revision), **_where(phases, "rollout", c.revision)} for c in chapters
        ]
        return said({"kind": "History", "apiVersion": API_VERSION, "application": app, "items": items})

    async def difference(self, request: Request) -> Response:
        """In which fields two kept releases differ."""
        app, query = _app(request, Application.plural), request.query_params
        older, newer = (_kept(self._hub.loop.state, app, number(query, word)) for word in ("from", "to"))
        fields = [_plain(change) for change in difference(older, newer)]
        return said({
            "kind": "Difference", "apiVersion": API_VERSION, "application": app,
            "from": older.revision, "to": newer.revision, "fields": fields,
        })  # fmt: skip

    async def _who(self, state: State, app: str, chapters: tuple[Chapter, ...]) -> dict[int, str]:
        """Who made each release, as far as the audit still knows: the last who changed the application, or a model that
        it names, before the release was made and after the one before."""
        models = {
            f"models/{app.partition('/')[0]}/{released.version.name}"
            for release in state.releases[app] for released in release.components if released.version is not None
        }  # fmt: skip
        entries: list[AuditEntry] = []
        for what in (f"applications/{app}", *sorted(models)):
            found = await find(self._hub.audit, Wanted(what=what, limit=ENTRIES_MAX))
            entries += [e for _, e in found.items if e.outcome == "accepted" and e.verb in _MAKING]
        entries.sort(key=lambda e: e.at)
        by, after = {}, 0
        for chapter in sorted(chapters, key=lambda c: c.revision):
            mine = [e for e in entries if after < e.at <= chapter.at]
            if mine:
                by[chapter.revision] = mine[-1].name or mine[-1].who
            after = chapter.at
        return by


_MAKING: Final = frozenset({"create", "apply", "replace", "patch", "undo", "delete"})
"""Verbs of the audit that may have made a release."""


def _where(found: Mapping[int, str], word: str, revision: int) -> dict[str, str]:
    return {word: found[revision]} if revision in found else {}


def _said(reason: str) -> str:
    asker = ASKER.get()
    return f"by {asker.name or asker.who}" + (f": {reason}" if reason else "")


def _unfit(app: str, detail: str) -> Reason:
    return Reason(code="rollout_unfit", subject=f"application/{app.rpartition('/')[2]}", detail=detail)


def _refusal(reason: Reason) -> Exception:
    if reason.code == "rollout_unknown":
        return NotFound(str(reason), next_step=reason.next_step)
    return Refused([Problem(path="", code=reason.code, message=str(reason), hint=reason.next_step)])


def _done(app: str, message: str, revision: int) -> Response:
    name = app.rpartition("/")[2]
    details = {"kind": "rollouts", "group": API_VERSION.partition("/")[0], "name": name, "release": revision}
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    return said({**status, "message": f"rollouts/{name}: {message}", "details": details})


def _kept(state: State, app: str, revision: int) -> Release:
    kept = state.releases.get(app)
    if kept is None:
        raise _no_application(app)
    found = next((release for release in kept if release.revision == revision), None)
    if found is None:
        there = ", ".join(str(release.revision) for release in kept)
        raise NotFound(f"release {revision} of {app} is not kept; there is: {there}",
                       next_step=f"batuta rollout history {app.rpartition('/')[2]}")  # fmt: skip
    return found


def _app(request: Request, plural: str) -> str:
    namespace, name = request.path_params["namespace"], request.path_params["name"]
    request.scope[ABOUT] = {"group": API_VERSION.partition("/")[0], "kind": plural, "name": name[:80]}
    return f"{namespace}/{name}"


def _no_application(app: str) -> NotFound:
    return NotFound(f"applications {app.rpartition('/')[2][:80]!r} not found", next_step="batuta get applications")


def _plain(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(record, enc_hook=encode_hook)
    return found
