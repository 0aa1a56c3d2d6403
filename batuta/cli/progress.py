"""How an application comes true, line by line, while `batuta apply --wait` waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
