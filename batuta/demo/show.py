"""What the audience sees: acts as they happen on the terminal, and a table of what was measured at the end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.status import Status


class Line(NamedTuple):
    """One row of the closing table."""

    measure: str
    value: str
    expected: str
    kept: bool


class Show:
    """Prints plain lines; at a terminal also a moving line for what is under way. Off a terminal nothing moves."""

    def __init__(self, *, to_stderr: bool, picture: Path | None = None) -> None:
        self._picture = picture
        self._console = Console(
            stderr=to_stderr, record=picture is not None, highlight=False, width=100 if picture else None
        )
        self._status: Status | None = None

    def __enter__(self) -> Show:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle()

    def act(self, title: str) -> None:
        """A new act begins."""
        self.settle()
        self._console.print(f"\n[bold]{title}[/bold]")

    def under_way(self, text: str) -> None:
        """What is being waited for, now; replaced by the next."""
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def say(self, text: str) -> None:
        """Something has happened."""
        self.settle()
        self._console.print(f"  {text}")

    def fail(self, text: str) -> None:
        self.settle()
        self._console.print(f"[red]  {text}[/red]")

    def table(self, lines: list[Line]) -> None:
        """The closing table: what was measured, what was expected, and whether it was so."""
        self.settle()
        table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
        for heading in ("measured", "", "expected", ""):
            table.add_column(heading, justify="right" if heading == "" and len(table.columns) == 1 else "left")
        for line in lines:
            table.add_row(
                line.measure, line.value, line.expected, "[green]ok[/green]" if line.kept else "[red]NOT MET[/red]"
            )
        self._console.print()
        self._console.print(table)
        self._console.print()

    def settle(self) -> None:
        """Stop the moving line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def save(self) -> None:
        """Keep the picture of what was shown, if one was asked for."""
        if self._picture is not None:
            # The stock frame fetches its font from the web; a picture must show without one.
            frame = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
            self._picture.write_text(self._console.export_svg(title="batuta demo", code_format=frame))
