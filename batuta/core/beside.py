"""Beside: how two workers of one slot find each other while the newer one is on trial, and whose a key is. Values only.

The new one listens at a socket beside their directories; the old one looks for it there once a second. So neither is
told of the other, and either may be started anew.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batuta.core.decided import Instance

HEADER_KEY: Final = "Batuta-Key"
"""Of a request: what it is about, such as a device; all requests of one key are answered by one release."""
HEADER_VERSION: Final = "Batuta-Version"
"""Of a request: the version that its caller named, whom nobody else answers; or, over a path that names one, `any`."""
ANY_VERSION: Final = "any"
HEADER_INSTANCE: Final = "Batuta-Instance"
"""Of an answer: who gave it."""
_WHOLE: Final = 1 << 64


def socket_name(instance: Instance) -> str:
    """In the directory that both have theirs in. No component's name has a dot, so no two slots share one."""
    return f".{instance.component}.{instance.slot}.beside"


def salt_of(instance: Instance) -> str:
    """Each release is tried on other keys, and on the same at every node."""
    return f"{instance.app}/{instance.component}-{instance.revision}"


def belongs(key: str, salt: str, share: float) -> bool:
    """Whether a key is the new one's. One that is stays so while the share grows."""
    drawn = int.from_bytes(hashlib.blake2b(f"{salt} {key}".encode("utf-8", "replace"), digest_size=8).digest())
    return drawn < share * _WHOLE
