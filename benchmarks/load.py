"""A load generator that costs little: prebuilt bytes over connections that stay open, one request on each at a time.

A process of its own, so that what it measures does not share its interpreter. Run as a script it prints one object:

    python benchmarks/load.py HOST:PORT CONNECTIONS SECONDS < request

`request` is the whole HTTP request. Answers are told apart by their Content-Length, and must begin with the expected
status line; anything else is counted and ends the connection.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from typing import Any


def load(address: tuple[str, int], request: bytes, connections: int, seconds: float) -> dict[str, Any]:
    """Requests per second, and latencies in milliseconds."""
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    begun: dict[int, float] = {}
    left: dict[int, int] = {}
    latencies: list[float] = []
    wrong = 0
    lengths: dict[bytes, int] = {}
    now = time.perf_counter
    for _ in range(connections):
        made = socket.create_connection(address)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[made.fileno()] = made
        poll.register(made.fileno(), select.EPOLLIN)
    start = now()
    for fd, each in sockets.items():
        begun[fd] = now()
        each.sendall(request)
    end = start + seconds
    while sockets and (at := now()) < end:
        for fd, _ in poll.poll(1.0):
            each = sockets[fd]
            data = each.recv(262_144)
            if left.get(fd):
                left[fd] -= len(data)
                if left[fd] > 0:
                    continue
            else:
                cut = data.find(b"\r\n\r\n") + 4
                head = data[:cut]
                if head not in lengths:
                    lengths[head] = _length(head)
                size = lengths[head]
                if size < 0 or cut < 4:
                    wrong += 1
                    poll.unregister(fd)
                    sockets.pop(fd).close()
                    continue
                if len(data) < cut + size:
                    left[fd] = cut + size - len(data)
                    continue
            at = now()
            latencies.append(at - begun[fd])
            begun[fd] = at
            each.sendall(request)
    took = now() - start
    for each in sockets.values():
        each.close()
    latencies.sort()
    count = len(latencies)
    return {
        "requests": count,
        "rps": round(count / took, 1),
        "p50_ms": round(latencies[count // 2] * 1000, 3) if count else None,
        "p99_ms": round(latencies[int(count * 0.99)] * 1000, 3) if count else None,
        "wrong": wrong,
    }


def _length(head: bytes) -> int:
    if not head.startswith(b"HTTP/1.1 200"):
        return -1
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return -1


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    print(json.dumps(load((host, int(port)), sys.stdin.buffer.read(), int(sys.argv[2]), float(sys.argv[3]))))
