"""What the API takes at ten thousand nodes and fifty thousand instances, over real connections.

    python benchmarks/api.py [--json] [--nodes 10000] [--watches 200] [--rate 1000] [--seconds 20]

One process holds a real hub behind a real listener, and speaks for all nodes (`crowd.py`); so what is measured includes
the work of simulating them. Clients are processes of their own. The baseline is FastAPI with pydantic serving the same
ten thousand objects from memory as one list, in the same run, asked by the same client (`pip install -e '.[bench]'`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.web.metrics import resident_bytes
from benchmarks.crowd import COMPONENTS_A_NODE, crowd

if TYPE_CHECKING:
    from benchmarks.crowd import Crowd

HERE = Path(__file__).parent
CLIENT = str(HERE / "api_client.py")
NODES, CORE_NODES = "/apis/batuta.dev/v1/nodes", "/api/v1/nodes"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
CLI_ROWS = 5_000
Figures = dict[str, float | int]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--nodes", type=int, default=10_000)
    options.add_argument("--watches", type=int, default=200)
    options.add_argument("--rate", type=int, default=1_000, help="changes a second")
    options.add_argument("--seconds", type=int, default=20, help="how long to change things")
    chosen = options.parse_args()
    print(f"{chosen.nodes} nodes, {chosen.nodes * COMPONENTS_A_NODE} instances, {chosen.watches} watches")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f} before", flush=True)
    with tempfile.TemporaryDirectory(prefix="batuta-bench-") as directory:
        figures = asyncio.run(measure(Path(directory), chosen))
    if chosen.json:
        print(json.dumps(figures))
    return 0


async def measure(directory: Path, chosen: argparse.Namespace) -> Figures:
    found: Figures = {}
    began = time.perf_counter()
    async with crowd(directory / "hub", chosen.nodes) as fleet:
        found |= told({"settled_s": round(time.perf_counter() - began, 1)})
        found |= told(await lists(fleet))
        found |= told(await baseline(fleet, directory))
        found |= told(await watches(fleet, chosen))
    async with crowd(directory / "small", CLI_ROWS, instances_a_node=1) as fleet:
        found |= told(await command_line(fleet, directory))
    return found


def told(figures: Figures) -> Figures:
    """It takes minutes: what is known is said at once."""
    for key, value in figures.items():
        print(f"  {key:32} {value}", flush=True)
    return figures


async def lists(fleet: Crowd) -> Figures:
    before = resident_bytes()
    first_page = await ask(fleet, 1, f"{NODES}?limit=500", TABLE)
    page_grew = resident_bytes() - before
    first = await ask(fleet, 1, NODES, TABLE)
    again = await ask(fleet, 5, NODES, TABLE)
    before = resident_bytes()
    pages = await ask(fleet, 20, f"{NODES}?limit=500", TABLE)
    objects = await ask(fleet, 5, NODES)
    await ask(fleet, 1, CORE_NODES, TABLE)
    core = await ask(fleet, 3, CORE_NODES, TABLE)
    return {
        "first_page_of_500_table_ms": first_page["ms"],
        "first_page_grew_mb": round(page_grew / 1e6, 1),
        "first_list_table_ms": first["ms"],
        "list_table_ms": again["ms"],
        "list_table_mb": round(again["bytes"] / 1e6, 1),
        "page_of_500_table_ms": pages["ms"],
        "pages_and_lists_grew_mb": round((resident_bytes() - before) / 1e6, 1),
        "list_objects_ms": objects["ms"],
        "list_objects_mb": round(objects["bytes"] / 1e6, 1),
        "list_core_nodes_table_ms": core["ms"],
        "hub_rss_mb": round(resident_bytes() / 1e6),
    }


async def baseline(fleet: Crowd, directory: Path) -> Figures:
    """The same objects as one list, from FastAPI and pydantic."""
    rows = fleet.hub.feed.rows("nodes").values()
    (directory / "objects.json").write_bytes(b"[" + b",".join(row.body for row in rows) + b"]")
    server = [sys.executable, str(HERE / "api_baseline.py"), str(directory / "objects.json")]
    with subprocess.Popen(server, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            if not line:
                print("NO BASELINE: FastAPI is not installed here; pip install -e '.[bench]'", file=sys.stderr)
                return {}
            theirs = await ask_of(f"http://127.0.0.1:{int(line)}", "", 5, "/nodes", "application/json")
        finally:
            process.kill()
    ours = await ask(fleet, 5, NODES)
    return {
        "fastapi_list_objects_ms": theirs["ms"],
        "fastapi_list_objects_mb": round(theirs["bytes"] / 1e6, 1),
        "list_objects_beside_it_ms": ours["ms"],
        "fastapi_over_ours": round(theirs["ms"] / ours["ms"], 1),
    }


async def watches(fleet: Crowd, chosen: argparse.Namespace) -> Figures:
    """So many changes a second, each of another node, and everybody watches all of them."""
    listed = await ask(fleet, 1, f"{NODES}?limit=1")
    version, changes = listed["version"], chosen.rate * chosen.seconds
    path = f"{NODES}?watch=true&resourceVersion={version}"
    client = await asyncio.create_subprocess_exec(
        sys.executable, CLIENT, "watch", fleet.server, path, str(chosen.watches), str(changes),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=2**26,
    )  # fmt: skip
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{fleet.token}\n".encode())
    await client.stdout.readline()
    cpu_s, began, said_at = time.process_time(), time.perf_counter(), dict[int, float]()
    names = fleet.nodes.names
    for i in range(changes):
        while (ahead_s := began + i / chosen.rate - time.perf_counter()) > 0:  # noqa: ASYNC110  it keeps a pace
            await asyncio.sleep(min(ahead_s, 0.01))
        await fleet.nodes.change(names[i % len(names)])
        said_at[i + 1] = time.time()
        if i % 20 == 0:
            await asyncio.sleep(0)
    said_s = time.perf_counter() - began
    seen = json.loads(await client.stdout.readline())
    all_s = time.perf_counter() - began
    await client.wait()
    late_ms = sorted((at - said_at[int(number)]) * 1000 for number, at in seen["arrived"].items())
    quantiles = statistics.quantiles(late_ms, n=100) if len(late_ms) > 1 else [0.0] * 99
    return {
        "watches": chosen.watches,
        "changes": changes,
        "changes_a_second": round(changes / said_s),
        "events_received": seen["events"],
        "events_a_second": round(seen["events"] / all_s),
        "events_lost": seen["lost"],
        "events_reordered": seen["reordered"],
        "watchers_dropped": seen["dropped"],
        "change_to_event_p50_ms": round(quantiles[49]),
        "change_to_event_p99_ms": round(quantiles[98]),
        "hub_and_crowd_cpu_share": round((time.process_time() - cpu_s) / all_s, 2),
        "watching_hub_rss_mb": round(resident_bytes() / 1e6),
    }


async def command_line(fleet: Crowd, directory: Path) -> Figures:
    token = directory / "token"
    token.write_text(fleet.token)
    batuta = [sys.executable, "-m", "batuta"]
    nodes = [*batuta, "get", "nodes", "--server", fleet.server, "--token-file", str(token)]
    rows = (await asyncio.to_thread(run, nodes)).count(b"\n")
    assert rows == CLI_ROWS + 1, rows
    return {
        "cli_help_ms": await timed([*batuta, "--help"], 10),
        "cli_get_5000_nodes_ms": await timed(nodes, 5),
        "python_nothing_ms": await timed([sys.executable, "-c", "pass"], 10),
    }


async def timed(command: list[str], times: int) -> int:
    """Median wall time of a whole process."""
    took_ms = []
    for _ in range(times):
        began = time.perf_counter()
        await asyncio.to_thread(run, command)
        took_ms.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(took_ms))


def run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


async def ask(fleet: Crowd, times: int, path: str, accept: str = "application/json") -> dict[str, Any]:
    return await ask_of(fleet.server, fleet.token, times, path, accept)


async def ask_of(server: str, token: str, times: int, path: str, accept: str) -> dict[str, Any]:
    """Median of so many answers, as another process sees it."""
    asking = await asyncio.create_subprocess_exec(
        sys.executable, CLIENT, "ask", server, str(times), path, accept, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    said, _ = await asking.communicate(f"{token}\n".encode())
    if asking.returncode:
        raise SystemExit(asking.returncode)
    found: dict[str, Any] = msgspec.json.decode(said)
    return {**found, "ms": round(statistics.median(found["ms"]))}


if __name__ == "__main__":
    sys.exit(main())
