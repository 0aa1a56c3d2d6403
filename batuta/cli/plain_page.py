"""What the twin's pages share: a document that opens anywhere, offline, light or dark, and how its figures read."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6576; --line: #d5dae3; --paper: #ffffff; --band: #d9770622;
  --c0: #6b7280; --c1: #2563eb; --c2: #15803d; --c3: #b45309; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #343c4b; --paper: #12161e;
  --band: #f59e0b26; --c0: #9ca3af; --c1: #7aa7ff; --c2: #5fce85; --c3: #f5b25b; --good: #5fce85; --bad: #ff8f8f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 900px; padding: 24px; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 32px 0 8px; } p { margin: 4px 0 16px; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } caption { text-align: left; color: var(--soft); }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 8px; } svg { width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.scroll, pre { overflow-x: auto; } code, pre { font-size: .85em; } code { overflow-wrap: anywhere; }
pre { border: 1px solid var(--line); padding: 12px; }
.key span { margin-right: 1.2rem; } .key i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; }
summary { cursor: pointer; color: var(--soft); margin: 24px 0 8px; }
""".strip()


def document(title: str, body: Iterable[str]) -> str:
    """A whole page: hand-written markup, no script, nothing loaded from elsewhere."""
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>", "<main>",
        *body, "</main>", "</body>", "</html>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def short(value: float) -> str:
    """A number for an axis: `1.25 k`."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
