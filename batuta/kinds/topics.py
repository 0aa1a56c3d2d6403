"""Topics: what MQTT allows, and what a component may read and write. How topics become addresses is the fabric's."""

from __future__ import annotations

import re
from typing import NamedTuple

# First levels that are not topics. No device may publish or listen below them, no component may read or write them.
RESERVED_ROOTS = ("_INBOX", "batuta", "ctl", "out")

_ROOT = re.compile(r"[A-Za-z0-9_-]+")


class WhyNot(NamedTuple):
    """What is wrong with a topic, and what to write instead."""

    message: str
    hint: str


def why_not_input(topic: str) -> WhyNot | None:
    """Why a component cannot read `topic`; None when it can."""
    if wrong := why_no_topic(topic):
        return wrong
    root = topic.split("/", 1)[0]
    if root.startswith("$") or root in RESERVED_ROOTS:
        return WhyNot(f"topics that begin with {root!r} belong to the fabric", "begin with another word")
    return None


def why_not_output(topic: str) -> WhyNot | None:
    """Why a component cannot write to `topic` (captures such as `{1}` may stand below the first level)."""
    if wrong := why_not_input(topic):
        return wrong
    if "+" in topic or "#" in topic:
        return WhyNot("an output topic has no wildcards", "use {1}, {2}, …")
    if re.search(r"[{}]", re.sub(r"\{[^{}]*\}", "", topic)):
        return WhyNot("a brace of an output topic has no other half", "use {1}, {2}, …")
    # Results of one root share a store, and a store is made before the first result, so the root is known by then.
    root, _, below = topic.partition("/")
    if not _ROOT.fullmatch(root):
        message = "the first level of an output topic is a fixed word of letters, digits, '-' and '_'"
        return WhyNot(message, f"for example results/{topic.lstrip('/')}")
    if not below:
        return WhyNot("an output topic has at least two levels", f"for example {root}/all")
    return None


def why_no_topic(topic: str) -> WhyNot | None:
    """Why no broker takes `topic`, as a topic or as a filter; None when brokers do."""
    if not topic:
        return WhyNot("a topic has at least one level", "for example cameras/+/frame")
    if any(char.isspace() or char in "\0\x7f" or char < " " for char in topic):
        return WhyNot("brokers drop topics with white space or control characters without a word", "leave them out")
    if "*" in topic or ">" in topic:
        return WhyNot("a topic holds neither '*' nor '>'", "its wildcards are + for one level and # for the rest")
    levels = topic.split("/")
    if any("+" in level and level != "+" for level in levels):
        return WhyNot("'+' stands for a whole level", "for example cameras/+/frame")
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        return WhyNot("'#' stands alone, and last", "for example cameras/#")
    return None


def wildcards(topic: str) -> int:
    """How many levels of a filter are wildcards: so many captures its messages have."""
    return sum(level in ("+", "#") for level in topic.split("/"))


def captures(pattern: str, topic: str) -> tuple[str, ...] | None:
    """What each wildcard of `pattern` matched in `topic`, in order; None when it does not match."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return None
    found: list[str] = []
    for i, level in enumerate(wanted):
        if level == "#":
            return (*found, "/".join(levels[i:]))
        if i >= len(levels):
            return None
        if level == "+":
            found.append(levels[i])
        elif level != levels[i]:
            return None
    return tuple(found) if len(levels) == len(wanted) else None
