"""Uplinks: what went over the links of sites today, and what may still go. The rules are in `core.uplink`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.uplink import class_of, day_of, held, links
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.core.state import State
    from batuta.core.uplink import Class, Held
    from batuta.fabric.clock import Clock
    from batuta.kinds.site import Site

log = logging.getLogger(__name__)

WRITE_EVERY_MS: Final = 5_000
CLASS_HOLDS_MS: Final = 5_000
"""So long what a file is for is remembered: it takes a look at every node of the site."""
CLASSES_MOST: Final = 1_024


class Spent(Record):
    """What went over one uplink on one day of its site."""

    day: int
    size_bytes: int


class Uplinks:
    """Books of all sites; they survive a restart."""

    def __init__(self, path: Path, state: Callable[[], State], clock: Clock) -> None:
        self._path = path
        self._state = state
        self._clock = clock
        self._spent: dict[str, Spent] = {}
        self._classes: dict[tuple[str, str], tuple[int, Class]] = {}
        self._written_at = 0

    def now(self) -> int:
        return self._clock.now()

    def open(self) -> None:
        try:
            self._spent = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Spent])
        except FileNotFoundError:
            self._spent = {}
        except (OSError, msgspec.MsgspecError):
            log.warning("the books of uplinks in %s cannot be read; they begin anew", self._path)
            self._spent = {}

    def close(self) -> None:
        if self._written_at:
            self._write()

    def held(self, node: str, digest: str, way: tuple[Site, ...] | None = None) -> Held | None:
        """Why an artifact may not go to this node now; None when it may. `way`: the sites whose links it takes, when
        it does not come from the hub."""
        now = self.now()
        way = self._way(node) if way is None else way
        if all(not (s.spec.uplink.windows or s.spec.uplink.budget or s.spec.uplink.metered) for s in way):
            return None
        spent = {site.metadata.name: self.spent(site, now) for site in way}
        return held(way, spent, self._class(way[0].metadata.name, digest, now), now)

    def spend(self, node: str, size_bytes: int, way: tuple[Site, ...] | None = None) -> None:
        """So much has gone to a node, over every link on the way."""
        now = self.now()
        for site in self._way(node) if way is None else way:
            if site.spec.uplink.budget is None:
                continue
            today = day_of(site, now)
            self._spent[site.metadata.name] = Spent(day=today, size_bytes=self.spent(site, now) + size_bytes)
            if now - self._written_at >= WRITE_EVERY_MS:
                self._written_at = now
                self._write()

    def spent(self, site: Site, now: int) -> int:
        """Bytes of today."""
        book = self._spent.get(site.metadata.name)
        return book.size_bytes if book is not None and book.day == day_of(site, now) else 0

    def _way(self, node: str) -> tuple[Site, ...]:
        state = self._state()
        resource = state.nodes.get(node)
        return links(resource.spec.site, state.site) if resource is not None else ()

    def _class(self, site: str, digest: str, now: int) -> Class:
        """By the highest priority of the applications that need it at this site."""
        known = self._classes.get((site, digest))
        if known is not None and now - known[0] < CLASS_HOLDS_MS:
            return known[1]
        state = self._state()
        apps = {
            instance.app
            for node in state.nodes_of_site.get(site, ())
            if (assignment := state.assignments.get(node)) is not None
            for instance in assignment.instances
            if digest in instance.artifacts or (instance.newcomer is not None and digest in instance.newcomer.artifacts)
        }
        declared = [found for app in apps if (found := state.application(app)) is not None]
        # What no application is known to need yet is treated as most are.
        what = class_of(max((app.spec.priority for app in declared), default=0))
        if len(self._classes) >= CLASSES_MOST:
            self._classes.clear()
        self._classes[site, digest] = (now, what)
        return what

    def _write(self) -> None:
        # Books that cannot be written cost a day's exactness, and must not stop what goes over the links.
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(self._spent))
            new.replace(self._path)
        except OSError as error:
            log.warning("the books of uplinks cannot be written: %s", error)
