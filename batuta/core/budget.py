"""Budgets: how much of a component may be missing by our own doing, at one site or in one failure domain at a time.

A replica is missing where it is, where it was last, or where it must be, for as long as it is ready nowhere. What fails
by itself counts too: a site in trouble is left alone. But what is missing already costs nothing more, so whatever is
broken may always be replaced, and a budget never keeps a repair away. Healing asks nobody, nor does what takes nothing
away: new before old. So a budget is asked before something that works is stopped with nothing ready in its place:
when both do not fit, when it must never run twice, when a higher priority wants its room.

All of it follows from the tables, so nothing is booked and nothing has to be given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.core.autoscale import as_scaled
from batuta.core.trusted import followed
from batuta.core.wish import Ask, slots_of

if TYPE_CHECKING:
    from batuta.core.decided import Released
    from batuta.core.draft import Draft
    from batuta.core.state import Held
    from batuta.kinds.rolling import Disruption

SITE = ""
"""The label of those domains that are sites; no node's label is called so."""


class Domain(NamedTuple):
    """What falls together: a site, or all nodes whose label has one and the same value."""

    label: str
    value: str

    def __str__(self) -> str:
        return f"{self.label} {self.value}".strip()


class Books:
    """Of one component: which of its replicas are missing, by domain, as drafted."""

    def __init__(self, draft: Draft, app: str, released: Released, limits: dict[str, int]) -> None:
        self.draft, self.app, self.component = draft, app, released.component.name
        self.after_ms = max(int(released.component.failover.after_ms), draft.missed_ms)
        self.limits = limits
        """How many may be missing, by label."""
        mine = [h for h in draft.held(app) if h.instance.component == self.component]
        rows = [row for h in mine if (row := draft.fleet.row_of.get(h.node)) is not None]
        ask = Ask(app, as_scaled(draft, app, released), draft.fleet)
        self.slots = {slot.name: slot for slot in slots_of(ask, rows)}
        """Those that are wanted."""
        self.held: dict[str, list[Held]] = {name: [] for name in self.slots}
        self.missing: dict[Domain, set[str]] = {}
        """The slots that are."""
        self._missing_in: dict[str, set[Domain]] = {}
        self._said: dict[Domain, str] = {}
        for h in mine:
            if h.instance.slot in self.held:
                self.held[h.instance.slot].append(h)
        for name in self.slots:
            self._count(name)

    def in_the_way(self, held: Held) -> str | None:
        """What keeps a holder from being stopped before anything else of its slot is ready; None when nothing does."""
        name = held.instance.slot
        if name not in self.slots or not self.is_ready(held):
            return None
        if any(other != held and self.is_ready(other) for other in self.held[name]):
            return None
        full = (d for d in sorted(self._domains(held.node)) if len(self.missing.get(d, ())) >= self.limits[d.label])
        domain = next(full, None)
        if domain is not None and domain not in self._said:
            self._said[domain] = self._say(domain)
        return self._said[domain] if domain is not None else None

    def _say(self, domain: Domain) -> str:
        limit, missing = self.limits[domain.label], sorted(self.missing.get(domain, ()))
        if not limit:
            return f"none may be missing at {domain}"
        who = ", ".join(f"{self.component}/{slot}" for slot in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"{limit} may be missing at {domain}, and {who}{more} {'are' if len(missing) > 1 else 'is'}"

    def spare(self, held: Held) -> int:
        """How many more may go with it, if it is to be one of them."""
        if self.in_the_way(held) is not None:
            return 0
        name = held.instance.slot
        if name not in self.slots or name in self._missing_in or not self.is_ready(held):
            return 1  # It is missing already.
        domains = self._domains(held.node)
        return min((self.limits[d.label] - len(self.missing.get(d, ())) for d in domains), default=1)

    def is_ready(self, held: Held) -> bool:
        """Does it work, as far as anybody knows? Its node said so, and is heard: by the hub, or by its neighbours so
        lately that nobody gives it up."""
        draft, row = self.draft, self.draft.fleet.row_of.get(held.node)
        if row is None:
            return False
        if not draft.fleet.fresh[row]:
            silent_ms = draft.silent_ms(held.node)
            is_known = silent_ms < draft.missed_ms or draft.ears.cut_off(held.node) is not None
            if silent_ms >= self.after_ms or not is_known:
                return False
        report = draft.reported(held.node, held.instance)
        return report is not None and report.phase == "ready"

    # --- Following the draft ---

    def gave(self, held: Held) -> None:
        if held.instance.slot in self.held:
            self.held[held.instance.slot].append(held)
            self._count(held.instance.slot)

    def took(self, held: Held) -> None:
        name = held.instance.slot
        if name in self.held:
            self.held[name].remove(held)
            self._count(name)

    def _count(self, name: str) -> None:
        for domain in self._missing_in.pop(name, ()):
            self.missing[domain].discard(name)
            self._said.pop(domain, None)
        slot, held = self.slots[name], self.held[name]
        if any(self.is_ready(h) for h in held):
            return
        nodes = [h.node for h in held] or self._was_at(name)
        if slot.node is not None and held and not any(self._is_heard(node) for node in nodes):
            return  # Nobody misses on a machine what is away with the machine.
        awaited = self.draft.awaited(self.app, self.component, name)
        domains = {d for node in (*nodes, *((awaited.left,) if awaited else ())) for d in self._domains(node)}
        if slot.site is not None and SITE in self.limits:
            domains.add(Domain(SITE, slot.site))
        for domain in domains:
            self.missing.setdefault(domain, set()).add(name)
            self._said.pop(domain, None)
        if domains:
            self._missing_in[name] = domains

    def _was_at(self, name: str) -> list[str]:
        """Where a slot was that nobody holds, as far as that is remembered."""
        fence = self.draft.fence(self.app, self.component, name)
        displaced = self.draft.displacement(self.app, self.component, name)
        return [row.node for row in (fence, displaced) if row is not None]

    def _is_heard(self, node: str) -> bool:
        row = self.draft.fleet.row_of.get(node)
        return row is not None and bool(self.draft.fleet.fresh[row])

    def _domains(self, node: str) -> set[Domain]:
        resource = self.draft.state.nodes.get(node)
        if resource is None:
            return set()
        labels = {SITE: resource.spec.site} | {k: v for k, v in resource.metadata.labels.items() if k != SITE}
        return {Domain(label, labels[label]) for label in self.limits if label in labels}


def books_of(draft: Draft, app: str, component: str) -> Books | None:
    """The books of a component; None when as many of it may be missing as you like."""
    key = (app, component)
    if key not in draft.books:
        application = draft.state.application(app)
        limits = limits_of(application.spec.rollout.disruption) if application is not None else {}
        to_run = followed(draft, app) if limits else None
        components = to_run.components if to_run is not None else ()
        released = next((r for r in components if r.component.name == component), None)
        draft.books[key] = Books(draft, app, released, limits) if released is not None else None
    return draft.books[key]


def limits_of(disruption: Disruption) -> dict[str, int]:
    """How many may be missing, by the label of what falls together."""
    limits = dict(disruption.per_domain)
    return limits if disruption.per_site is None else {SITE: disruption.per_site, **limits}


def in_the_way(draft: Draft, held: Held) -> str | None:
    """What keeps an instance from being stopped before another is ready; None when nothing does."""
    books = books_of(draft, held.instance.app, held.instance.component)
    return books.in_the_way(held) if books is not None else None


def spare(draft: Draft, held: Held) -> int | None:
    """How many more of its component may go where it is, this one among them; None for any number."""
    books = books_of(draft, held.instance.app, held.instance.component)
    return books.spare(held) if books is not None else None
