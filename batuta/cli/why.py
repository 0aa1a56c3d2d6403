"""`batuta why`: why each instance is where it is, and why others are nowhere. From Reasons, not from logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from batuta.cli.completing import applications
from batuta.cli.options import namespace_option, talks_to_hub
from batuta.cli.text import clean, painted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.client import Client


@click.command()
@click.argument("application", metavar="APP[/COMPONENT]", shell_complete=applications)
@click.option("--node", default="", metavar="NODE", help="Why it is, or is not, on this node.")
@namespace_option
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How to print it.")
@talks_to_hub
def why(hub: Client, application: str, *, node: str, namespace: str, output: str) -> None:
    """Why is it where it is, and why not elsewhere?

    \b
    batuta why meter-reader
    batuta why meter-reader/read --node pi-4
    """
    name, _, component = application.partition("/")
    answers = hub.why(name, component=component, node=node, namespace=namespace)
    if output != "text":
        from batuta.cli.get import as_text

        click.echo(as_text(list(answers), output), nl=False)
        return
    if not answers:
        what = f"component {component!r} of {name}" if component else name
        hint = f" See `batuta why {name}`." if component else ""
        click.echo(f"Nothing has been decided about {what} yet.{hint}", err=True)
        return
    for answer in answers:
        for line in told(answer):
            click.echo(line)


def told(answer: Mapping[str, Any]) -> Iterator[str]:
    """One slot: where it is and why, or what turned it away and how near it was."""
    what = " ".join(filter(None, (answer.get("component", ""), answer.get("slot", ""))))
    holders = answer.get("holders") or ()
    for holder in holders:
        tone, word = ("good", "ready") if holder.get("ready") else ("wait", "not ready")
        yield f"{painted(what, 'strong')} is on {clean(holder['node'])}, {painted(word, tone)}"
        reason = holder.get("reason")
        if reason is None or holder.get("verdict") != "keep":
            yield f"  {clean(holder.get('rule', ''))}"
        if reason is not None:
            yield f"  {clean(reason['sentence'])}"
            yield f"    next: {clean(reason['next'])}"
        yield from _scored(holder)
        if "today" in holder:
            yield f"  it would not be placed there today: {clean(holder['today']['sentence'])}"
    if not holders:
        yield f"{painted(what, 'strong')} {_NOWHERE.get(answer.get('state', ''), 'is nowhere')}"
    if "follows" in answer:
        yield f"  follows {following(answer['follows'])}"
    if "autoscale" in answer:
        yield f"  {clean(answer['autoscale']['says'])}"
    for reason in answer.get("reasons") or ():
        yield f"  {clean(reason['sentence'])}"
        yield f"    next: {clean(reason['next'])}"
    for reason in answer.get("displaced") or ():
        yield f"  {clean(reason['sentence'])}"
    if "moved" in answer:
        yield f"  {clean(answer['moved']['says'])}"
    yield from _elsewhere(answer)
    asked = answer.get("asked")
    if asked is not None:
        if "reason" in asked:
            yield f"  on {clean(asked['node'])}: {clean(asked['reason']['sentence'])}"
            yield f"    next: {clean(asked['reason']['next'])}"
        else:
            yield f"  on {clean(asked['node'])}: it fits"
            yield from _scored(asked)


def following(follows: Mapping[str, str]) -> str:
    """Which channel, and the version that it stood for when the release was made."""
    return clean(f"channel {follows['channel']} of model {follows['model']}: version {follows['version']}")


_NOWHERE = {
    "unplaced": "is nowhere",
    "unresolved": "cannot be resolved",
    "undone": "is as it was before its newest release",
    "unwanted": "is not wanted anywhere",
    "autoscaled": "has as many replicas as its hours and its load ask for",
}


def _scored(answer: Mapping[str, Any]) -> Iterator[str]:
    if "score" in answer:
        parts = ", ".join(f"{clean(name)} {value}" for name, value in (answer.get("parts") or {}).items())
        yield f"  score {answer['score']}" + (f": {parts}" if parts else "")


def _elsewhere(answer: Mapping[str, Any]) -> Iterator[str]:
    """How many nodes turned it away, by reason, and which came nearest."""
    from batuta.core.reasons import CATALOGUE

    for code, count in (answer.get("refused") or {}).items():
        sentence = CATALOGUE[code].sentence if code in CATALOGUE else code
        yield f"  {count} node{'s' if count != 1 else ''}: {clean(sentence)}"
    if answer.get("fits"):
        yield f"  {answer['fits']} node{'s' if answer['fits'] != 1 else ''} could take it"
    if nearest := answer.get("nearest"):
        yield f"  nearest: {clean(nearest['says'])}"
    if second := answer.get("second"):
        yield f"  next best: {clean(second['node'])}"
        yield from (f"  {line}" for line in _scored(second))
    for policy, count in (answer.get("policies") or {}).items():
        yield f"  policy {clean(policy)} turns {count} node{'s' if count != 1 else ''} away"
    contradiction = answer.get("contradiction")
    for reason in (*([contradiction] if contradiction else ()), *(answer.get("unanswered") or ())):
        yield f"  {clean(reason['sentence'])}"
        yield f"    next: {clean(reason['next'])}"
