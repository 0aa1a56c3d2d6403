"""The other side of `api.py`: a process of its own that asks and watches, and prints what it saw as JSON.

    python benchmarks/api_client.py ask SERVER TIMES PATH [ACCEPT]
    python benchmarks/api_client.py watch SERVER PATH WATCHERS CHANGES

The token is read from standard input. Watchers speak HTTP/1.0, so that what comes after the head is the lines and
nothing else; each line of each of them is read.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
from urllib.parse import urlsplit

NAME, CHANGE = b'"name":"', b'"cpuPercent":'


def ask(server: str, times: int, path: str, accept: str, token: str) -> dict[str, object]:
    parts = urlsplit(server)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
    took_ms, body = [], b""
    for _ in range(times):
        began = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}", "Accept": accept})
        answer = connection.getresponse()
        body = answer.read()
        took_ms.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:300]!r}")
    version = json.loads(body).get("metadata", {}).get("resourceVersion", "")
    return {"ms": took_ms, "bytes": len(body), "version": version}


class Watcher(asyncio.Protocol):
    """One watch. Every change has a number of its own; those of one node rise."""

    def __init__(self, request: bytes, changes: int, done: asyncio.Semaphore, times: bytearray | None) -> None:
        self.request, self.changes, self.done, self.times = request, changes, done, times
        self.rest = b""
        self.is_in_body = False
        self.seen = bytearray(changes + 1)
        self.last: dict[bytes, int] = {}
        self.events = self.distinct = self.again = self.reordered = self.errors = 0
        self.arrived: dict[int, float] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        if not self.is_in_body:
            head, mark, data = data.partition(b"\r\n\r\n")
            if not mark:
                self.rest = head
                return
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise SystemExit(head.decode())
            self.is_in_body = True
        *lines, self.rest = data.split(b"\n")
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if line.startswith(b'{"type":"ERROR"'):
            self.errors += 1
            self.done.release()
            return
        self.events += 1
        at = line.find(CHANGE)
        if at < 0:
            return
        number = int(line[at + len(CHANGE) : at + 24].partition(b",")[0].partition(b".")[0])
        start = line.find(NAME) + len(NAME)
        name = line[start : line.find(b'"', start)]
        last = self.last.get(name, 0)
        if number < last:
            self.reordered += 1
        elif number == last:
            self.again += 1
        else:
            self.last[name] = number
        if number <= self.changes and not self.seen[number]:
            self.seen[number] = 1
            self.distinct += 1
            if self.times is not None:
                self.arrived[number] = time.time()
            if self.distinct == self.changes:
                self.done.release()


async def watch(server: str, path: str, watchers: int, changes: int, token: str) -> dict[str, object]:
    parts = urlsplit(server)
    host = f"{parts.hostname}:{parts.port}"
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    done, loop = asyncio.Semaphore(0), asyncio.get_running_loop()
    made = [Watcher(request, changes, done, bytearray() if i == 0 else None) for i in range(watchers)]
    for each in made:
        await loop.create_connection(lambda each=each: each, parts.hostname, parts.port)  # type: ignore[misc]
    while not all(each.is_in_body for each in made):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    print("watching", flush=True)
    try:
        async with asyncio.timeout(240):
            for _ in made:
                await done.acquire()
    except TimeoutError:
        pass  # What did not come is counted as lost.
    cpu_s = time.process_time()
    return {
        "events": sum(each.events for each in made),
        "lost": sum(changes - each.distinct for each in made),
        "reordered": sum(each.reordered for each in made),
        "again": sum(each.again for each in made),
        "dropped": sum(each.errors for each in made),
        "cpu_s": cpu_s,
        "arrived": made[0].arrived,
    }


def main() -> None:
    what, server, *rest = sys.argv[1:]
    token = sys.stdin.readline().strip()
    if what == "ask":
        found = ask(server, int(rest[0]), rest[1], rest[2] if len(rest) > 2 else "application/json", token)
    else:
        found = asyncio.run(watch(server, rest[0], int(rest[1]), int(rest[2]), token))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
