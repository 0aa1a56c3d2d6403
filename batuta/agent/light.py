"""Light: what the agent's process needs nothing of, and what its libraries would load all the same.

Links here are plain TCP on loopback, and files; TLS is the broker's, and enrolment has a process of its own. So asyncio
and nats-py do without `ssl`, which costs four megabytes, and without what they import only to know a version or to
offer another transport. To be called before anything else is imported; whoever imports `ssl` later gets an ImportError.
"""

from __future__ import annotations

import sys
import types


def leave_out() -> None:
    """Import what would load them, with nothing in their place."""
    if "ssl" in sys.modules:
        return  # too late, or in the process of somebody who needs it
    for name in ("aiohttp", "ssl", "importlib.metadata"):
        sys.modules[name] = None  # type: ignore[assignment]
    import asyncio  # noqa: F401  it asks whether there is TLS, and remembers that there is none

    named = types.ModuleType("ssl")
    named.SSLContext = object  # type: ignore[attr-defined]  # named in signatures, and never used without `tls://`
    sys.modules["ssl"] = named
    import nats.aio.client  # noqa: F401

    sys.modules["ssl"] = None  # type: ignore[assignment]
    del sys.modules["importlib.metadata"]


def keep_little() -> None:
    """Ask the C library to share one heap between threads, and to give large pieces of memory back at once: chunks of
    files come and go, and a heap that once held them never shrinks by itself."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # musl: it has one heap, and gives back
    mallopt(_ARENAS_MOST, 1)
    mallopt(_MAPPED_FROM_BYTES, 64 * 1024)


_ARENAS_MOST = -8
_MAPPED_FROM_BYTES = -3
"""Names of `malloc.h`, by their numbers."""
