"""`batuta top`: what nodes and instances use and do, as it changes."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.options import milliseconds, talks_to_hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.cli.rates import Rates, Sample
    from batuta.client import Client

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's other screen, without a cursor; and back to what was there before."""
HOME, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"

NODE_HEADINGS = [
    "NODE", "SITE", "STATE", "CPU", "MEM FREE", "DISK FREE", "TEMP", "AGENT", "BROKER", "INSTANCES",
    "IN/S", "OUT/S", "ERR/S",
]  # fmt: skip
INSTANCE_HEADINGS = [
    "INSTANCE", "APP", "NODE", "PHASE", "RSS", "IN/S", "OUT/S", "ERR/S", "P50", "P99", "ERRORS",
]  # fmt: skip


@click.command()
@click.argument("what", type=click.Choice(["nodes", "instances"]), default="nodes")
@click.option("--every", default="2s", show_default=True, metavar="DURATION", help="Time between two samples.")
@click.option("--sort", default="name", type=click.Choice(["name", "rate", "rss", "p99"]), help="Which come first.")
@click.option("--once", is_flag=True, help="One table, also at a terminal.")
@click.option("-n", "--namespace", metavar="NAME", help="Count only what runs there [default: every one].")
@talks_to_hub
def top(hub: Client, what: str, *, every: str, sort: str, once: bool, namespace: str | None) -> None:
    """What nodes or instances use and do: live at a terminal, one table elsewhere.

    Rates are counted over two samples, so the first table comes after one interval.

    \b
    batuta top
    batuta top instances --sort rate
    """
    from batuta.cli.rates import sample
    from batuta.cli.text import table

    every_s = max(0.2, milliseconds(every, "--every") / 1000)
    is_live = sys.stdout.isatty() and not once
    before, after = None, sample(hub, namespace)
    if not is_live:
        time.sleep(every_s)
        before, after = after, sample(hub, namespace)
        for line in table(*rows(what, before, after, sort)):
            click.echo(line)
        return
    try:
        click.echo(ENTER, nl=False)
        while True:
            _show([_title(what, after, every), "", *table(*rows(what, before, after, sort))])
            time.sleep(every_s)
            before, after = after, sample(hub, namespace)
    finally:
        click.echo(LEAVE, nl=False)


def rows(what: str, before: Sample | None, after: Sample, sort: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, sorted."""
    from batuta.cli.rates import rates, total

    each = [(instance, rates(before, after, instance)) for instance in after.instances]
    if what == "instances":
        each.sort(key=lambda pair: (_weight(sort, *pair), pair[0]["name"], pair[0]["node"]))
        return INSTANCE_HEADINGS, [_instance_row(*pair) for pair in each]
    of_node = {name: total(r for i, r in each if i["node"] == name) for name in after.nodes}
    names = sorted(after.nodes, key=lambda n: (-(of_node[n].received or 0.0) if sort == "rate" else 0, n))
    return NODE_HEADINGS, [_node_row(name, after, of_node[name]) for name in names]


def _weight(sort: str, instance: Mapping[str, Any], found: Rates) -> float:
    from batuta.kinds.base import Bytes

    measures = instance.get("measures") or {}
    if sort == "rate":
        return -(found.received or 0.0)
    if sort == "rss":
        return -float(Bytes.parse(measures["rss"]) if measures.get("rss") is not None else 0)
    return -float(measures.get("latencyP99Ms") or 0.0) if sort == "p99" else 0.0


def _node_row(name: str, after: Sample, found: Rates) -> list[str]:
    node = after.nodes[name]
    status, vitals = node.status, node.status.get("vitals") or {}
    # What a node said before it fell silent is no longer so.
    known: Callable[[str], Any] = vitals.get if status["link"]["word"] in ("online", "late") else lambda _: None
    return [
        name, node.resource.spec.site, str(status["state"]), _percent(known("cpuPercent")), _size(known("memoryFree")),
        _size(known("diskFree")), _number(known("temperatureC"), "°C"),
        _size(known("agentRss")), _size(known("brokerRss")), str(status.get("instances", "")),
        *(_rate(r) for r in found),
    ]  # fmt: skip


def _instance_row(instance: Mapping[str, Any], found: Rates) -> list[str]:
    measures, name = instance.get("measures") or {}, str(instance["name"]).rpartition("/")[2]
    return [
        name, instance["application"], str(instance["node"]), str(instance["phase"]),
        _size(measures.get("rss")), *(_rate(r) for r in found),
        _number(measures.get("latencyP50Ms"), " ms"), _number(measures.get("latencyP99Ms"), " ms"),
        str(measures.get("errors", 0)) if measures else "-",
    ]  # fmt: skip


def _size(quantity: Any) -> str:
    from batuta.cli.text import ABSENT, size
    from batuta.kinds.base import Bytes

    return ABSENT if quantity is None else size(int(Bytes.parse(quantity)))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}%"


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3g}{unit}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _title(what: str, after: Sample, every: str) -> str:
    states: dict[str, int] = {}
    for node in after.nodes.values():
        word = str(node.status["state"])
        states[word] = states.get(word, 0) + 1
    count = ", ".join(f"{n} {word}" for word, n in sorted(states.items()))
    return f"batuta top {what} · {len(after.nodes)} nodes ({count}) · every {every} · Ctrl-C ends"


def _show(lines: list[str]) -> None:
    """Paint over what was there, line by line, so that nothing flickers; what does not fit is counted."""
    height = shutil.get_terminal_size().lines
    if len(lines) > height:
        lines = [*lines[: height - 1], f"… {len(lines) - height + 1} more"]
    body = "\r\n".join(line + TO_LINE_END for line in lines)
    click.echo(f"{HOME}{body}{TO_SCREEN_END}", nl=False)
