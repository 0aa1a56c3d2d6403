"""How an application comes true, line by line, while `batuta apply --wait` waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from batuta.client import Found
