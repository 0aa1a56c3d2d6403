"""What must hold of every preemption: strictly downwards, never on by who gave way, and never beyond a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.standing import Displaced

if TYPE_CHECKING:
    from batuta.core.decided import Instance
    from batuta.core.state import State


def check(before: State, after: State) -> None:
    """One decision, from the state it was made on to the state it made."""
    old, new = _rows(before), _rows(after)
    came = {key: row for key, row in new.items() if old.get(key) != row}
    for row in came.values():
        assert row.by_priority > row.priority, f"{row} was displaced by its equal"
        assert row.priority == after.declared[row.app].spec.priority
        _no_cascade(row, old, after)
        _no_cascade_at_once(row, before, after)
        _within_budget(row, before, after)
    gone = [row for key, row in old.items() if key not in new]
    for row in gone:
        held = any(_slot(h.instance) == _about(row) for h in after.held.get(row.app, ()))
        assert held or row.app not in after.declared or not _is_wished(after, row), f"{row} was forgotten"


def _no_cascade(row: Displaced, old: dict[str, Displaced], after: State) -> None:
    """Whoever displaced it had not given way itself, unless it was raised since."""
    app, _, name = row.by.rpartition("/")
    for other in old.values():
        if other.app == app and name.startswith(f"{other.component}-") and name.endswith(f"-{other.slot}"):
            raised = after.declared[app].spec.priority > other.priority
            assert raised, f"{row.by} gave way to {other.by} and displaced {row.app} {row.component}/{row.slot}"


def _no_cascade_at_once(row: Displaced, before: State, after: State) -> None:
    """Nor in one go: whoever displaced it did not leave its own place to a higher one in the same decision."""
    app = row.by.rpartition("/")[0]
    now = [h for h in after.held.get(app, ()) if h.instance.name == row.by]
    for holder in now:
        for was in before.held.get(app, ()):
            if _slot(was.instance) != _slot(holder.instance) or was.node == holder.node or was in after.held[app]:
                continue
            there = after.assignments[was.node].instances if was.node in after.assignments else ()
            came = [i for i in there if i not in before.assignments[was.node].instances]
            above = [i.name for i in came if after.declared[i.app].spec.priority > after.declared[app].spec.priority]
            assert not above, f"{row.by} gave way to {above} and displaced {row.app} {row.component}/{row.slot}"


def _within_budget(row: Displaced, before: State, after: State) -> None:
    budget = after.declared[row.app].spec.rollout.disruption.per_site
    was = [h for h in before.held.get(row.app, ()) if _slot(h.instance) == _about(row) and h.node == row.node]
    if budget is None or not any(_is_ready(before, h.node, h.instance) for h in was):
        return
    site = before.nodes[row.node].spec.site
    ready, known = set(), set()
    for h in after.held.get(row.app, ()):
        if h.instance.component == row.component and h.node in after.nodes and after.nodes[h.node].spec.site == site:
            known.add(h.instance.slot)
            if _is_ready(before, h.node, h.instance):
                ready.add(h.instance.slot)
    displaced = [
        r for r in _rows(after).values()
        if (r.app, r.component) == (row.app, row.component) and r.node in after.nodes
        and after.nodes[r.node].spec.site == site
    ]  # fmt: skip
    # What was given a place in this very decision is on its way and was nobody's doing.
    given = {h.instance.slot for h in after.held.get(row.app, ()) if h not in before.held.get(row.app, ())}
    missing = len(known - ready - given) + len(displaced)
    assert missing <= budget, f"{missing} of {row.app} {row.component} are missing at {site}, {budget} may be"


def _rows(state: State) -> dict[str, Displaced]:
    return {k: r for rows in state.standing.values() for k, r in rows.items() if isinstance(r, Displaced)}


def _about(row: Displaced) -> tuple[str, str]:
    return (row.component, row.slot)


def _slot(instance: Instance) -> tuple[str, str]:
    return (instance.component, instance.slot)


def _is_ready(state: State, node: str, instance: Instance) -> bool:
    report = state.observed.get(node)
    return report is not None and any(
        i.name == instance.name and i.epoch == instance.epoch and i.phase == "ready" for i in report.instances
    )


def _is_wished(state: State, row: Displaced) -> bool:
    """Counted slots can be told from outside; whether a site or a node still has one, only placement knows."""
    component = next((c for c in state.declared[row.app].spec.components if c.name == row.component), None)
    count = component.replicas.count if component is not None else None
    return count is not None and row.slot.isdigit() and int(row.slot) < count
