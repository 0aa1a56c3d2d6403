"""`batuta model optimize`: smaller and faster variants of a model, each with what it costs in quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.options import may_talk_to_hub, namespace_option
from batuta.cli.text import size, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.client import Client
    from batuta.tuning.candidates import Candidate
    from batuta.tuning.homes import Home
    from batuta.tuning.optimize import Outcome

DATA = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("model", metavar="NAME[:VERSION]|DIR")
@click.option(
    "--int8", multiple=True, type=click.Choice(["dynamic", "static"]),
    help="Weights in 8 bits; `static` also what passes through, by ranges that --calibrate shows. May be given twice.",
)  # fmt: skip
@click.option("--fp16", is_flag=True, help="Weights and arithmetic in 16 bits.")
@click.option("--simplify", is_flag=True, help="Constants folded and what does nothing left out; the same answers.")
@click.option("--shapes", multiple=True, metavar="INPUT=1,28,28", help="Fix the shape of an input, in every variant.")
@click.option("--calibrate", type=DATA, metavar="DATA", help="Inputs like those in the field, for --int8 static.")
@click.option("--evaluate", type=DATA, metavar="DATA", help="Inputs and what is right: .npz, .csv, or images by class.")
@click.option("--floor", multiple=True, metavar="METRIC=VALUE", help="Refuse variants below: accuracy=0.95.")
@click.option("--base", default="", metavar="VARIANT", help="The variant to begin from [default: fp32].")
@click.option("--label-column", default="", metavar="NAME", help="Of a .csv, the column that says what is right.")
@click.option("--white", default=1.0, show_default=True, help="Of images, the number that the brightest pixel becomes.")
@click.option("--hardware", default="", metavar="CLASS", help="This machine's class [default: as a node would say].")
@click.option("--dry-run", is_flag=True, help="Make, evaluate and measure them, and keep none.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="How to print it.")
@namespace_option
@may_talk_to_hub
def optimize(
    connect: Callable[[], Client],
    model: str,
    *,
    int8: tuple[str, ...],
    fp16: bool,
    simplify: bool,
    shapes: tuple[str, ...],
    calibrate: Path | None,
    evaluate: Path | None,
    floor: tuple[str, ...],
    base: str,
    label_column: str,
    white: float,
    hardware: str,
    dry_run: bool,
    output: str,
    namespace: str,
) -> None:
    """Make variants of a model, see what each is worth, and keep those that are good enough.

    The model is a version at a hub, or a package: a directory that `batuta model pack` made. Each variant is made with
    ONNX Runtime's tools, evaluated, measured on this machine in a process of its own, and becomes a variant of the same
    version, so that placement chooses among them. Of a .npz, `x` is what goes in and `y` what is right. The exit code
    is 1 when one was refused. Needs batuta[optimize].
    """
    wanted = {
        name: tuple(_number(n, int, "--shapes") for n in each.split(",")) for name, each in _pairs(shapes, "--shapes")
    }
    floors = {name: _number(value, float, "--floor") for name, value in _pairs(floor, "--floor")}
    try:
        from batuta.tuning.optimize import Wishes
        from batuta.tuning.optimize import optimize as optimize_model
    except ImportError as error:
        from batuta.errors import BatutaError

        raise BatutaError(
            f"this needs packages that cannot be loaded here: {error}", next_step="pip install 'batuta[optimize]'"
        ) from None
    from batuta.agent.probe import hardware as hardware_here

    wishes = Wishes(
        int8=tuple(dict.fromkeys(int8)), fp16=fp16, simplify=simplify, shapes=wanted, calibrate=calibrate,  # type: ignore[arg-type]
        evaluate=evaluate, floors=floors, base=base, column=label_column, white=white,
    )  # fmt: skip
    with _Home(connect, model, namespace) as home:
        outcome = optimize_model(
            home, wishes, hardware=hardware or hardware_here(Path("/")), keep=not dry_run, told=_tell
        )
    if output == "json":
        import msgspec

        click.echo(msgspec.json.encode(as_document(outcome)).decode())
    else:
        _print(outcome)
    if any(candidate.reason is not None for candidate in outcome.candidates):
        raise SystemExit(1)


def as_document(outcome: Outcome) -> dict[str, Any]:
    """For programs."""
    return {
        "model": outcome.name, "version": outcome.version, "hardware": outcome.hardware, "kept": outcome.kept,
        "variants": [
            {
                "name": c.name, "base": c.is_base, "digest": c.digest, "sizeBytes": c.size_bytes, "how": c.how,
                "quality": dict(c.quality), "onFront": c.on_front,
                "p50Us": c.measured.p50_us if c.measured else None, "p99Us": c.measured.p99_us if c.measured else None,
                "peakBytes": int(c.measured.memory_bytes) if c.measured else None,
                "reason": {"code": c.reason.code, "detail": c.reason.detail} if c.reason else None,
            }
            for c in outcome.candidates
        ],
    }  # fmt: skip


def _print(outcome: Outcome) -> None:
    from batuta.core.reasons import CATALOGUE

    metrics = [m for m in ("accuracy", "r2", "error", "agreement") if any(m in c.quality for c in outcome.candidates)]
    heads = ["VARIANT", "SIZE", *(m.upper() for m in metrics), "P50", "P99", "PEAK MEMORY", "FRONT", "RESULT"]
    for line in table(heads, [_row(c, metrics, kept=outcome.kept) for c in outcome.candidates]):
        click.echo(line)
    for candidate in outcome.candidates:
        if candidate.reason is not None:
            entry = CATALOGUE[candidate.reason.code]
            click.echo(f"{candidate.name}: {entry.sentence} ({candidate.reason.detail})", err=True)
            click.echo(f"  next: {entry.next_step}", err=True)
    where = outcome.hardware or "this machine"
    click.echo(f"measured on {where}, one item at a time on one thread; * no other is better in all", err=True)


def _row(candidate: Candidate, metrics: list[str], *, kept: bool) -> list[str]:
    measured = candidate.measured
    refused = candidate.reason.code if candidate.reason is not None else ""
    return [
        candidate.name,
        size(candidate.size_bytes) if candidate.size_bytes else "-",
        *(f"{candidate.quality[m]:.4g}" if m in candidate.quality else "-" for m in metrics),
        *(
            (_time(measured.p50_us), _time(measured.p99_us), size(measured.memory_bytes))
            if measured
            else ("-", "-", "-")
        ),
        "*" if candidate.on_front else "",
        refused or ("base" if candidate.is_base else "kept" if kept else "good"),
    ]


def _time(us: int) -> str:
    return f"{us}us" if us < 1000 else f"{us / 1000:.3g}ms"


class _Home:
    """The model where it is: a package on this disk, or a hub that is asked for as long as it takes."""

    def __init__(self, connect: Callable[[], Client], model: str, namespace: str) -> None:
        self._connect, self._model, self._namespace = connect, model, namespace
        self._client: Client | None = None

    def __enter__(self) -> Home:
        from batuta.model_layout import Layout
        from batuta.tuning.homes import HubHome, PackageHome

        if Layout(self._model).is_there:
            return PackageHome(Layout(self._model))
        name, _, version = self._model.partition(":")
        self._client = self._connect().__enter__()
        return HubHome(self._client, name, version, namespace=self._namespace)

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()


def _tell(variant: str, step: str) -> None:
    click.echo(f"  {variant}: {step}" if variant else f"  {step}", err=True)


def _pairs(words: tuple[str, ...], option: str) -> list[tuple[str, str]]:
    found = []
    for word in words:
        name, equals, value = word.rpartition("=")
        if not equals or not name or not value:
            raise click.BadParameter(f"{word!r} is not NAME=VALUE", param_hint=option)
        found.append((name, value))
    return found


def _number(text: str, kind: type, option: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number", param_hint=option) from None
