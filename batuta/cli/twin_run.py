"""`batuta twin run`: play a scenario in virtual time, and say what held, what broke, and what it cost."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.main import FAILED
from batuta.cli.text import clean, painted, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batuta.kinds.base import Problem
    from batuta.kinds.scenario import Scenario as Written
    from batuta.twin.run import Verdict
    from batuta.twin.scenario import Scenario

STORY_SHOWN = 12


@click.command()
@click.argument("scenario", metavar="[FILE]", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--seed", default=0, show_default=True, help="What is left to chance follows from it alone.")
@click.option("--seeds", metavar="A..B", help="Play once with every seed from A to B; stop at the first that breaks.")
@click.option("--report", metavar="FILE", type=click.Path(dir_okay=False), help="Write a page with plots, as HTML.")
@click.option("--story", is_flag=True, help="Show the last of what happened, also when all went well.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
def run(*, scenario: str | None, seed: int, seeds: str | None, report: str | None, story: bool, output: str) -> int:
    """Play a scenario in virtual time; without FILE, a small fleet that the seed makes up.

    The hub and the nodes of the twin follow the rules of the real ones. Ends with 1 when a law or an expectation is
    broken, and names the seed: the same seed plays the same run, on any machine.

    \b
    batuta twin run scenario.yaml --seed 7
    batuta twin run scenario.yaml --seeds 1..50
    batuta twin run scenario.yaml --report run.html
    """
    wanted = _seeds(seeds) if seeds is not None else range(seed, seed + 1)
    composed = _composer(scenario)
    played: list[dict[str, Any]] = []
    for each in wanted:
        plan = composed(each)
        verdict, spent = _play(plan, each, shows=output == "text")
        played.append(_document(plan, each, verdict, spent))
        if report is not None:
            from batuta.cli.twin_report import page

            Path(report).write_text(page(played[-1], [dict(look) for look in verdict.looks], plan), "utf-8")
        if output == "text":
            for line in _told(plan, each, verdict, spent, story=story or not verdict.ok):
                click.echo(line)
        if not verdict.ok:
            break
    if output == "json":
        from batuta.cli.get import as_text

        click.echo(as_text(played if seeds is not None else played[0], "json"), nl=False)
    elif report is not None:
        click.echo(f"report: {report}")
    if played[-1]["ok"]:
        return 0
    again = f"batuta twin run {scenario or ''} --seed {played[-1]['seed']}".replace("  ", " ")
    click.echo(f"seed {played[-1]['seed']} breaks: {clean(played[-1]['broken'][0]['detail'])}", err=True)
    click.echo(f"  again: {again}", err=True)
    return FAILED


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    if not dots or not first.isdigit() or not last.isdigit() or int(last) < int(first):
        raise click.BadParameter("write it like 1..50", param_hint="--seeds")
    return range(int(first), int(last) + 1)


def _composer(file: str | None) -> Callable[[int], Scenario]:
    """How a seed becomes a scenario to play: from what people wrote, or from nothing else."""
    if file is None:
        from batuta.twin.sketch import sketch

        return sketch
    from batuta.twin.compose import compose

    written, files = _read(Path(file))
    return lambda seed: compose(written, seed, files)


def _read(path: Path) -> tuple[Written, dict[str, Any]]:
    """The one scenario of a file, and what is in the files that it names, which lie beside it."""
    from batuta.errors import BatutaError, Refused
    from batuta.kinds import Scenario
    from batuta.kinds.manifest import parse

    found = parse(_bytes(path), str(path))
    scenarios = [resource for resource in found if isinstance(resource, Scenario)]
    if len(scenarios) != 1:
        raise BatutaError(f"{path} holds {len(scenarios)} scenarios", next_step="name a file with exactly one")
    files: dict[str, Any] = {}
    problems: list[Problem] = []
    for ask in scenarios[0].spec.asks:
        for name in ask.files:
            try:
                files[name] = parse(_bytes(path.parent / name), str(path.parent / name))
            except Refused as refused:
                problems += refused.problems
    if problems:
        raise Refused(problems)
    return scenarios[0], files


def _bytes(path: Path) -> bytes:
    from batuta.errors import BatutaError

    try:
        return path.read_bytes()
    except OSError as error:
        raise BatutaError(f"{path} cannot be read", next_step="files are named from where the scenario is") from error


class _Meter:
    """Seconds of processor that the hub's own rules took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def metered(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any) -> Any:
            began = time.process_time()
            try:
                return rule(*args)
            finally:
                self.seconds += time.process_time() - began

        return asked


def _play(plan: Scenario, seed: int, *, shows: bool) -> tuple[Verdict, dict[str, float]]:
    from batuta.twin.rules import RULES
    from batuta.twin.run import run as play

    meter, began = _Meter(), time.process_time()
    rules = RULES._replace(decide=meter.metered(RULES.decide), touched=meter.metered(RULES.touched))
    tell = _progress(began) if shows and sys.stderr.isatty() else None
    verdict = play(plan, seed, rules, tell)
    if tell is not None:
        click.echo("\r\x1b[K", nl=False, err=True)
    return verdict, {"cpuSeconds": round(time.process_time() - began, 2), "hubCpuSeconds": round(meter.seconds, 2)}


def _progress(began: float) -> Callable[[int, int], None]:
    def tell(at_ms: int, of_ms: int) -> None:
        done = at_ms / of_ms
        bar = "█" * int(done * 30)
        line = f"{bar:<30} {_span(at_ms)} of {_span(of_ms)}, {time.process_time() - began:.0f} s of processor"
        click.echo(f"\r{line}\x1b[K", nl=False, err=True)

    return tell


# --- Telling ----------------------------------------------------------------------------------------------------------


def _document(plan: Scenario, seed: int, verdict: Verdict, spent: dict[str, float]) -> dict[str, Any]:
    """A run as plain values. All but `spent` follows from the scenario and the seed."""
    counts = verdict.counts
    return {
        "scenario": plan.name, "seed": seed, "ok": verdict.ok, "trace": verdict.trace,
        "nodes": len(plan.machines), "virtualSeconds": plan.duration_ms // 1000,
        "convergedAfterMs": verdict.healed_ms,
        "broken": [b._asdict() for b in verdict.broken],
        "expectations": [
            {"name": e.name, "ok": not any(b.detail.startswith(f"{e.name}: ") for b in verdict.broken),
             "metAtMs": verdict.met.get(e.name)}
            for e in plan.expected
        ],
        "counts": counts,
        "sites": _uplinks(verdict),
        "spent": spent,
    }  # fmt: skip


def _uplinks(verdict: Verdict) -> list[dict[str, Any]]:
    return [{"site": site, "bytesUp": up, "bytesDown": down} for site, (up, down) in sorted(verdict.uplinks.items())]


def _told(plan: Scenario, seed: int, verdict: Verdict, spent: dict[str, float], *, story: bool) -> Iterator[str]:
    counts, broken = verdict.counts, verdict.broken
    laws = [b for b in broken if b.law != "expectation"]
    word = painted("held", "good") if verdict.ok else painted("broken", "bad")
    yield f"{plan.name}, seed {seed}: {word}; {len(plan.machines)} nodes, {_span(plan.duration_ms)}"
    yield f"  laws         {'all hold' if not laws else f'{len(laws)} times broken'}"
    for each in laws[:5]:
        yield f"    {each.law} at {_span(each.at_ms)}: {clean(each.detail)[:300]}"
    for expectation in plan.expected:
        failed = next((b for b in broken if b.detail.startswith(f"{expectation.name}: ")), None)
        met = verdict.met.get(expectation.name)
        said = "so all the time" if met is None else f"so at {_span(met)}"
        tone = painted("yes", "good") if failed is None else painted("no", "bad")
        why = (
            said if failed is None else f"{_span(failed.at_ms)}: {failed.detail.removeprefix(f'{expectation.name}: ')}"
        )
        yield f"  expected     {tone}  {expectation.name} ({why})"
    healed = "never" if verdict.healed_ms is None else f"{_span(verdict.healed_ms)} after all was healed"
    yield f"  converged    {healed}"
    yield f"  hub          {counts['decisions']} decisions, {counts['writes']} rows written, {counts['moves']} moves"
    dead, falsely = counts["dead verdicts"], counts["false dead verdicts"]
    yield f"  dead         {dead} nodes given up for silent, {falsely} of them falsely"
    yield f"  messages     {counts['messages']}, {counts['messages lost']} of them lost"
    yield f"  bytes        {size(counts['bytes up'])} up, {size(counts['bytes down'])} down"
    heaviest = sorted(verdict.uplinks.items(), key=lambda row: (-sum(row[1]), row[0]))[:3]
    if len(verdict.uplinks) > 1:
        yield "  uplinks      " + ", ".join(f"{s} {size(up)} up {size(down)} down" for s, (up, down) in heaviest)
    faults = {k.removeprefix("fault "): n for k, n in counts.items() if k.startswith("fault ")}
    yield "  faults       " + (", ".join(f"{n} {k}" for k, n in faults.items()) or "none")
    yield f"  trace        {verdict.trace}"
    yield f"  cost         {spent['cpuSeconds']} s of processor, {spent['hubCpuSeconds']} s of it the hub's deciding"
    if story:
        yield "  the last of it:"
        yield from (f"    {clean(line)}" for line in verdict.story[-STORY_SHOWN:])


def _span(ms: int) -> str:
    minutes, seconds = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes) + [f"{seconds} s"] * bool(seconds)
    return " ".join(parts) or f"{ms} ms"
