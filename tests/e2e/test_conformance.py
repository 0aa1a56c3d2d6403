"""The API does what its OpenAPI says, whatever it is sent: schemathesis against a real hub.

`make fuzz` is the same for longer, and with another seed when `SEED` is set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batuta.kinds import KINDS, Site, manifest

if TYPE_CHECKING:
    from batuta.demo.stage import Stage

pytestmark = pytest.mark.e2e

LONG = "BATUTA_FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("BATUTA_FUZZ_EXAMPLES", "2"))
SEED = int(os.environ.get("BATUTA_FUZZ_SEED", "1"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "allow_header_conformance",
    "ignored_auth",
)
# Endpoints are written once for all kinds, so the short run tries every border of one kind, and of the others some.
OTHERS = "|".join(kind.plural for kind in KINDS if kind is not Site)
NOT_TWICE = f"""
[[operations]]
include-path-regex = '^/apis/batuta\\.dev/v1/(namespaces/[^/]+/)?({OTHERS})(/[^/]+)?$'
phases.coverage.enabled = false
"""
THERE = """
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: one}
---
apiVersion: batuta.dev/v1
kind: Node
metadata: {name: one}
spec: {site: one}
---
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: one}
spec: {components: [{name: run, process: {command: [sleep, "86400"]}}]}
"""


def test_every_answer_is_one_that_is_documented(stage: Stage, tmp_path: Path) -> None:
    stage.start_hub()
    stage.client.apply(manifest.parse(THERE))
    ports = json.loads((stage.hub_state / "hub" / "ports.json").read_text())
    url = f"http://127.0.0.1:{ports['http']}"
    token = (stage.hub_state / "hub" / "admin.token").read_text().strip()
    whole = assembled(url, token)
    (tmp_path / "openapi.json").write_text(json.dumps(whole))
    # The token goes by the environment: arguments can be read by everybody on a machine.
    config = 'headers = { Authorization = "Bearer ${BATUTA_FUZZ_TOKEN}" }\n'
    (tmp_path / "schemathesis.toml").write_text(config + ("" if LONG else NOT_TWICE))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml")),
        *("run", str(tmp_path / "openapi.json"), "--url", url, "--checks", ",".join(CHECKS)),
        *("--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", str(SEED)),
        *("--continue-on-failure", "--request-timeout", "60", "--warnings", "off", "--no-color"),
    ]
    env = {**os.environ, "BATUTA_FUZZ_TOKEN": token, "SCHEMATHESIS_HOOKS": "tests.e2e.fuzz_hooks"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    journal = stage.log_tail("hub", 40)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\nthe hub said:\n{journal}"
    operations = sum(method in item for item in whole["paths"].values() for method in METHODS)
    assert f"{operations} selected" in done.stdout, done.stdout
    assert "Traceback" not in journal


METHODS = ("get", "head", "post", "put", "patch", "delete")


def assembled(url: str, token: str) -> dict[str, Any]:
    """All documents that the hub serves as one."""
    whole: dict[str, Any] = {}
    for place in fetched(f"{url}/openapi/v3", token)["paths"].values():
        document = fetched(url + place["serverRelativeURL"], token)
        whole = whole or document
        whole["paths"] |= document["paths"]
        whole["components"]["schemas"] |= document["components"]["schemas"]
    return whole


def fetched(url: str, token: str) -> Any:
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)
