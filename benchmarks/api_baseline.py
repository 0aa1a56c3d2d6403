"""The baseline of `api.py`: the objects of a file as one list, by FastAPI and pydantic as their guides have it.

The objects are in memory as models, and nothing is computed for an answer but the answer. Prints its port.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Facet(BaseModel):
    word: str
    since: int | None
    reason: str
    next: str


class Inventory(BaseModel):
    architecture: str
    cpu: str
    memory: str
    disk: str
    runtimes: list[str]
    os: str
    kernel: str
    hostname: str
    agentVersion: str  # noqa: N815  as it is on the wire


class Status(BaseModel):
    state: str
    since: int | None
    reason: str
    next: str
    link: Facet
    sync: Facet
    health: Facet
    instances: str
    serial: int
    serialSeen: int  # noqa: N815
    reportedAt: int  # noqa: N815
    address: str
    mqtt: str
    inventory: Inventory
    vitals: dict[str, Any]
    problems: list[dict[str, Any]]


class Metadata(BaseModel):
    name: str
    uid: str
    generation: int
    labels: dict[str, str]
    creationTimestamp: str  # noqa: N815
    resourceVersion: str  # noqa: N815


class Spec(BaseModel):
    site: str


class Node(BaseModel):
    apiVersion: str  # noqa: N815
    kind: str
    metadata: Metadata
    spec: Spec
    status: Status


class NodeList(BaseModel):
    apiVersion: str = "batuta.dev/v1"  # noqa: N815
    kind: str = "NodeList"
    items: list[Node]


app = FastAPI()
NODES = [Node.model_validate(each) for each in json.loads(Path(sys.argv[1]).read_bytes())]


@app.get("/nodes")
async def nodes() -> NodeList:
    return NodeList(items=NODES)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as bound:
        print(bound.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run([bound])
