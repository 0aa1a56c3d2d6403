"""View: the status of any resource, computed from the three tables. Never stored, so never stale.

Plain dictionaries in the wire's camelCase, matching the columns of the kinds. Instants are milliseconds; nothing in
here changes merely because time passes, so that a watch speaks only when there is news.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.channels import channels
from batuta.core.liveness import link_rule
from batuta.core.touched import below
from batuta.core.view_application import application_status
from batuta.core.view_drain import drain_status
from batuta.core.view_flag import flag_status
from batuta.core.view_policy import policy_status
from batuta.core.words import WORDS, worst
from batuta.kinds.application import Application
from batuta.kinds.base import encode_hook
from batuta.kinds.flag import Flag
from batuta.kinds.model import Model
from batuta.kinds.node import Node
from batuta.kinds.policy import Policy
from batuta.kinds.scenario import Scenario
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from batuta.core.decided import Assignment
    from batuta.core.fleet import Fleet
    from batuta.core.observed import Report
    from batuta.core.state import State
    from batuta.kinds.base import Ref


def status(state: State, ref: Ref, now: int, fleet: Fleet | None = None) -> dict[str, Any]:
    """What is so about a resource; empty for one that is not there."""
    resource = state.get(ref)
    if isinstance(resource, Node):
        return node_status(state, resource, now) | drain_status(state, resource, now, fleet)
    if isinstance(resource, Site):
        return site_status(state, resource, now)
    if isinstance(resource, Model):
        return model_status(state, resource)
    if isinstance(resource, Policy):
        return policy_status(state, resource, now, fleet)
    if isinstance(resource, Application):
        return application_status(state, resource, now, fleet)
    if isinstance(resource, Flag):
        return flag_status(state, resource, now)
    if isinstance(resource, Scenario):
        return scenario_status(resource)
    return {}


def scenario_status(scenario: Scenario) -> dict[str, Any]:
    """A hub keeps scenarios and plays none: whoever wants to know plays it."""
    return {"state": "ok", "nodes": sum(group.nodes for group in scenario.spec.fleet)}


# --- Node -------------------------------------------------------------------------------------------------------------


def node_status(state: State, node: Node, now: int) -> dict[str, Any]:
    name = node.metadata.name
    report, assignment = state.observed.get(name), state.assignments.get(name)
    link = _link(state, name, now)
    sync = _pending(node) or _held(node, now) or _sync(report, assignment, link["word"])
    health = _health(report, assignment, link["word"])
    facets = {"link": link, "sync": sync, "health": health}
    state_word = worst(facet["word"] for facet in facets.values())
    if sync["word"] == "pending":
        state_word = "pending"
    elif link["word"] == "never":
        state_word = "never"  # Nothing is known because nothing was ever said: that is worth saying first.
    elif state_word == "ok" and sync["word"] == "unassigned":
        state_word = "unassigned"
    telling = next((f for f in facets.values() if f["word"] == state_word), link)
    held = len(assignment.instances) if assignment is not None else 0
    found: dict[str, Any] = {
        "state": state_word,
        "since": telling["since"],
        "reason": telling["reason"],
        "next": telling["next"] if state_word == "pending" else WORDS[state_word].next_step,
        **facets,
        "instances": f"{_ready_count(report, assignment)}/{held}",
    }
    if assignment is not None:
        found["serial"] = assignment.serial
    if report is not None:
        found |= {
            "serialSeen": report.serial,
            "reportedAt": report.at,
            "address": report.address,
            "mqtt": report.mqtt,
            "inference": report.inference,
            "inventory": _plain(report.inventory),
            "vitals": _plain(report.vitals),
            "problems": [_plain(problem) | {"sentence": str(problem)} for problem in report.problems],
        }
    return found


def _facet(word: str, since: int | None, reason: str = "", next_step: str = "") -> dict[str, Any]:
    row = WORDS[word]
    return {"word": word, "since": since, "reason": reason or row.meaning, "next": next_step or row.next_step}


def _link(state: State, node: str, now: int) -> dict[str, Any]:
    rule, sighting = link_rule(state, node, now), state.sightings.get(node)
    if sighting is None:
        return _facet(rule.word, state.hub_since if rule.word != "never" else None, rule.sentence)
    since = sighting.online_since if rule.word == "online" else sighting.disconnected_at or sighting.last_seen
    return _facet(rule.word, since, rule.sentence)


def _pending(node: Node) -> dict[str, Any] | None:
    """It has no certificate, so nothing else is known of it."""
    if not node.spec.pending:
        return None
    return _facet("pending", None, "", WORDS["pending"].next_step.replace("NAME", node.metadata.name))


def _held(node: Node, now: int) -> dict[str, Any] | None:
    """What its owner says comes before what it runs."""
    hold = node.spec.hold
    if hold is None or not hold.holds_at(now):
        return None
    said = [hold.reason, f"until {hold.until.text()}" if hold.until is not None else ""]
    step = WORDS["held"].next_step.replace("NAME", node.metadata.name)
    return _facet("held", None, "; ".join(filter(None, said)), step)


def _sync(report: Report | None, assignment: Assignment | None, link: str) -> dict[str, Any]:
    """Does it run what it was asked to run? Ordered: the first that holds."""
    if assignment is None or (not assignment.instances and (report is None or not report.instances)):
        return _facet("unassigned", None)
    since = max((i.since for i in report.instances), default=report.at) if report is not None else None
    if report is None or report.serial < assignment.serial:
        if link in ("offline", "never"):
            return _facet("deferred", since, "its newest assignment waits for its link")
        return _facet("updating", since, "it has not yet taken its newest assignment")
    there = {(i.name, i.epoch): i for i in report.instances}
    refused = next((i for i in report.instances if i.phase == "refused"), None)
    if refused is not None:
        return _facet("failed", refused.since, str(refused.reason or refused.name), _next_of(refused.reason))
    wanted = {(i.name, i.epoch) for i in assignment.instances}
    missing = sorted(name for name, epoch in wanted - there.keys())
    extra = sorted(i.name for key, i in there.items() if key not in wanted and i.phase != "stopping")
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} was not asked for"
        return _facet("drifted", since, what)
    moving = [i for i in report.instances if i.phase in ("waiting", "fetching", "proving", "starting", "stopping")]
    if moving:
        return _facet("updating", max(i.since for i in moving), f"{moving[0].name} is {moving[0].phase}")
    return _facet("in-sync", since)


def _health(report: Report | None, assignment: Assignment | None, link: str) -> dict[str, Any]:
    """Do the node and what it is to run work? Nobody can tell of a node that is not there; and what was taken from it
    ails nobody, though its last report still tells of it."""
    if report is None or link in ("offline", "never"):
        return _facet("unknown", None)
    wanted = {i.name for i in assignment.instances} if assignment is not None else set()
    instances = [i for i in report.instances if i.name in wanted]
    broken = [i for i in instances if i.phase in ("backoff", "refused")]
    if broken:
        first = min(broken, key=lambda i: i.name)
        return _facet("failing", first.since, f"{first.name}: {first.reason or first.phase}", _next_of(first.reason))
    ailing = next((p for p in report.problems if not p.is_waiting), None)
    if ailing is not None:
        return _facet("degraded", None, str(ailing), ailing.next_step)
    unready = [i for i in instances if i.phase == "unready"]
    if unready:
        first = min(unready, key=lambda i: i.name)
        return _facet("degraded", first.since, f"{first.name}: {first.reason or first.phase}", _next_of(first.reason))
    return _facet("ok", max((i.since for i in instances), default=None))


def _ready_count(report: Report | None, assignment: Assignment | None) -> int:
    if report is None or assignment is None:
        return 0
    ready = {(i.name, i.epoch) for i in report.instances if i.phase == "ready"}
    return sum((i.name, i.epoch) in ready for i in assignment.instances)


def _next_of(reason: Any) -> str:
    return reason.next_step if reason is not None else ""


# --- Site and model ---------------------------------------------------------------------------------------------------


def site_status(state: State, site: Site, now: int) -> dict[str, Any]:
    """As bad as the worst of its nodes and of the sites below it."""
    names = sorted(below(state, site.metadata.name))
    nodes = [node for name in names for node in state.nodes_of_site.get(name, ())]
    found = {node: node_status(state, state.nodes[node], now) for node in nodes}
    word = worst(f["state"] for f in found.values()) if nodes else "empty"
    culprit = next((node for node, f in sorted(found.items()) if f["state"] == word), "")
    reason = WORDS[word].meaning if not culprit or word in ("ok", "unassigned") else f"{culprit}: {word}"
    return {
        "state": word,
        "nodes": len(nodes),
        "online": sum(f["link"]["word"] == "online" for f in found.values()),
        "reason": reason,
        "next": WORDS[word].next_step,
    }


def model_status(state: State, model: Model) -> dict[str, Any]:
    ref = model.ref
    users = sorted(state.users_of_model.get(f"{ref.namespace}/{ref.name}", ()))
    running: dict[str, int] = {}
    for app in users:
        for held in state.held.get(app, ()):
            order, report = held.instance.model, state.observed.get(held.node)
            if order is None or order.name != ref.name or report is None:
                continue
            if any(
                (i.name, i.epoch, i.phase) == (held.instance.name, held.instance.epoch, "ready")
                for i in report.instances
            ):
                running[order.version] = running.get(order.version, 0) + 1
    versions = [v.version for v in model.spec.versions]
    count = sum(running.values())
    word = "empty" if not versions else "unused" if not users else "ok" if count else "waiting"
    next_step = f"push a version: `batuta model push FILE --name {ref.name} --version 1`"
    return {
        "state": word,
        "versions": ", ".join(versions),
        "running": count,
        "runningByVersion": dict(sorted(running.items())),
        "applications": users,
        "channels": channels(state, model),
        "profiles": _profiles(state, model),
        "reason": WORDS[word].meaning,
        "next": next_step if word == "empty" else WORDS[word].next_step,
    }


def _profiles(state: State, model: Model) -> list[dict[str, Any]]:
    """How fast nodes found its variants to be, by class of hardware."""
    return [
        {
            "version": version.version, "variant": variant.name, "hardware": row.hardware, "p50Us": row.p50_us,
            "p99Us": row.p99_us, "memory": row.memory_bytes.text(), "samples": row.samples, "runtime": row.runtime,
            "at": row.at, "by": f"node/{row.node}",
        }
        for version in model.spec.versions
        for variant in version.variants
        for _, row in sorted(state.profiles.get(variant.digest, {}).items())
    ]  # fmt: skip


def _plain(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(record, enc_hook=encode_hook)
    return found
