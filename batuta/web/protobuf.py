"""Protobuf, as little of it as newer kubectl makes necessary: it posts some small questions so, whatever a server says
it takes. Read by hand, answered in JSON.
"""

from __future__ import annotations

from typing import Final

from batuta.web.answers import Wrong

PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
_MAGIC: Final = b"k8s\x00"


def message_in(body: bytes) -> bytes:
    """The message in Kubernetes' envelope: `k8s\\0`, then runtime.Unknown {1: typeMeta, 2: raw}."""
    if not body.startswith(_MAGIC):
        raise Wrong(415, "this protobuf has no Kubernetes envelope", next_step="send application/json")
    return fields(body[len(_MAGIC) :]).get(2, b"")


def fields(data: bytes) -> dict[int, bytes]:
    """The length-delimited fields of one message; numbers are passed over, the last of a kind counts. Raises Wrong."""
    found: dict[int, bytes] = {}
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            sort = key & 7
            if sort == 2:
                size, at = _varint(data, at)
                if at + size > len(data):
                    raise ValueError("it ends too soon")
                found[key >> 3] = data[at : at + size]
                at += size
            elif sort == 0:
                _, at = _varint(data, at)
            elif sort in (1, 5):
                at += 8 if sort == 1 else 4
            else:
                raise ValueError(f"wire type {sort}")
    except (IndexError, ValueError) as error:
        raise Wrong(400, f"the body is no protobuf: {error}") from None
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number is too long")
