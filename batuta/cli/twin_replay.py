"""`batuta twin replay`: decide a recording again by the present code, and show where it parts from what was decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batuta.cli.main import FAILED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batuta.twin.replay import Parted, Replayed
    from batuta.twin.replay_frames import Frame


@click.command()
@click.argument("recording", metavar="RECORDING", type=click.Path(exists=True))
@click.option("--all", "every", is_flag=True, help="Show every difference, not the first alone.")
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How to print it.")
def replay(*, recording: str, every: bool, output: str) -> int:
    """Decide again what a hub decided, and show the first difference: row, fields, instant.

    RECORDING is a file of `batuta twin record`, or the directory `hub/recording` in a hub's state directory.
    Exit: 0 nothing differs, 1 something does.
    """
    from batuta.twin.replay import replay as decide_again

    found = decide_again(_frames(Path(recording)), differences_max=10_000 if every else 1)
    if output == "text":
        for line in told(found):
            click.echo(line)
    else:
        from batuta.cli.get import as_text

        click.echo(as_text(_plain(found), output), nl=False)
    return FAILED if found.parted else 0


def told(found: Replayed) -> Iterator[str]:
    """What was replayed, and each row that differs."""
    from batuta.cli.text import painted

    span_s = (found.ends_at - found.begins_at) / 1000
    many = f"{found.turns} decision{'' if found.turns == 1 else 's'}"
    what = f"{many} over {span_s:.0f} s, {found.decided} rows written, by batuta {found.version}"
    if not found.parted:
        yield f"{painted('the same', 'good')}: {what}"
        return
    yield f"{painted('it differs', 'bad')}: after {what}" if not found.is_whole else f"it differs: {what}"
    for parted in found.parted:
        yield from _parted(parted)


def _parted(parted: Parted) -> Iterator[str]:
    from batuta.cli.diff import field_line
    from batuta.cli.text import clean, painted

    how = "deciding everything" if parted.everything else "deciding what changed"
    yield f"{painted(clean(parted.key), 'strong')} at {_instant(parted.at)} (decision {parted.turn}, {how})"
    for field in parted.fields:
        said = {"op": field.op, "path": field.path or "the row", "before": field.before, "after": field.after}
        yield f"    {field_line(said)}"


def _instant(at: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at % 1000:03d}Z"


def _plain(found: Replayed) -> object:
    import msgspec

    return msgspec.to_builtins(found)


def _frames(path: Path) -> Iterator[Frame]:
    from batuta.errors import BatutaError
    from batuta.twin.replay_frames import frames

    files = sorted(path.glob("*.jsonl.gz")) if path.is_dir() else [path]
    if not files:
        raise BatutaError(f"{path} holds no recording", next_step="save one with `batuta twin record FILE`")
    for file in files:
        yield from frames(_lines(file), file.name)


def _lines(file: Path) -> Iterable[bytes]:
    """Of a packed file or a plain one. What a crash tore off at the end is left out."""
    import gzip
    import zlib

    from batuta.errors import BatutaError
    from batuta.twin.replay_frames import LINE_BYTES_MAX

    with file.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(file, "rb") if is_packed else file.open("rb") as lines:
        try:
            while line := lines.readline(LINE_BYTES_MAX):
                yield line
        except EOFError:
            return
        except (OSError, zlib.error) as error:
            raise BatutaError(f"{file} is damaged, or no recording", next_step="record again") from error
