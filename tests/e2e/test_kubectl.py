"""The real kubectl against a real hub and a real node, over HTTPS with a token: no Kubernetes anywhere."""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from batuta.demo.stage import Stage, processes_in, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

KUBECTL = shutil.which("kubectl")
HOW_TO_GET = (
    "there is no kubectl on PATH, so nothing here is proven. One file is enough: "
    "https://dl.k8s.io/release/v1.32.5/bin/linux/amd64/kubectl, `snap install kubectl --classic`, "
    "or `gcloud components install kubectl`"
)
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(KUBECTL is None, reason=HOW_TO_GET)]

SITE = """
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: NAME, labels: {land: de}}
spec: {residency: eu}
"""

TALKER = """\
print('one')
n = 1
while True:
    n += 1
    print('line', n)
    time.sleep(0.3)
"""


def application(name: str, program: str = "time.sleep(86400)", count: int = 1) -> str:
    command = json.dumps([sys.executable, "-u", "-c", f"import time\n{program}"])
    return f"""
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: {name}}}
spec:
  components:
  - name: run
    process: {{command: {command}, stopGrace: 1s}}
    replicas: {{count: {count}}}
    resources: {{cpu: 50m, memory: 32Mi}}
"""


class Kubectl:
    """kubectl with a kubeconfig of its own."""

    def __init__(self, stage: Stage, token: str, name: str = "config") -> None:
        self.directory = stage.directory / f"kube-{name}"
        self.directory.mkdir(exist_ok=True)
        ports = json.loads((stage.hub_state / "hub" / "ports.json").read_text())
        authority = base64.b64encode(stage.client.authority().encode()).decode()
        server = {"server": f"https://127.0.0.1:{ports['https']}", "certificate-authority-data": authority}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "batuta", "cluster": server}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "batuta", "context": {"cluster": "batuta", "user": "me"}}],
            "current-context": "batuta",
        }
        file = self.directory / "config"
        file.touch(mode=0o600)
        file.write_text(json.dumps(config))
        # Its caches go where everything else of this test goes.
        self.env = {**os.environ, "KUBECONFIG": str(file), "HOME": str(self.directory)}

    def __call__(self, *words: str, said: str = "", status: int = 0) -> str:
        """Both outputs of a command that must end with this status."""
        done = subprocess.run(
            [str(KUBECTL), *words], input=said, capture_output=True, text=True, env=self.env, timeout=90, check=False
        )
        out = done.stdout + done.stderr
        assert done.returncode == status, f"kubectl {' '.join(words)}: {done.returncode}\n{out}"
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "-o", "json"))

    def apply(self, document: str, *words: str, status: int = 0) -> str:
        return self("apply", "-f", "-", *words, said=document, status=status)

    def row(self, *words: str) -> list[str]:
        """The cells of the one row of a Table."""
        head, row = self(*words).splitlines()
        assert head.startswith("NAME")
        return re.split(r"\s{2,}", row.strip())


class Running:
    """A kubectl that goes on, and its lines as they come."""

    def __init__(self, kubectl: Kubectl, *words: str) -> None:
        self.process = subprocess.Popen(
            [str(KUBECTL), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kubectl.env
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def until(self, pattern: str, seconds: float = 30) -> list[str]:
        """Every line up to the first that fits."""
        seen: list[str] = []
        deadline = time.monotonic() + seconds
        while not seen or not re.search(pattern, seen[-1]):
            try:
                seen.append(self.lines.get(timeout=max(deadline - time.monotonic(), 0.01)))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} within {seconds} s; seen: {seen}") from None
        return seen

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A hub and one node for all of these: each test brings its own resources."""
    with tempfile.TemporaryDirectory(prefix="batuta-kubectl-") as directory:
        made = Stage(Path(directory))
        try:
            made.start_hub()
            made.start_node("pi-1", "berlin")
            wait_for("the node", lambda: made.online("pi-1"), 120)
            yield made
        finally:
            killed = made.close()
        assert killed == []
        assert processes_in(Path(directory)) == []


@pytest.fixture(scope="module")
def kubectl(stage: Stage) -> Kubectl:
    made = Kubectl(stage, (stage.hub_state / "hub" / "admin.token").read_text().strip())
    assert "v1.32" in made("version")
    return made


def test_it_finds_its_way(kubectl: Kubectl) -> None:
    resources = kubectl("api-resources")
    for line in ("applications +app,apps +batuta.dev/v1 +true +Application", "pods +po +v1 +true +Pod"):
        assert re.search(line, resources), resources
    assert re.search("applications.*batuta.dev/v1", kubectl("api-resources", "--categories=batuta"))
    assert kubectl.row("get", "ns")[:2] == ["default", "Active"]


def test_nodes_are_got_described_cordoned_and_labelled(kubectl: Kubectl) -> None:
    name, status, *_ = kubectl.row("get", "nodes")
    assert (name, status) == ("pi-1", "Ready")
    wide = kubectl("get", "nodes", "-o", "wide")
    assert "INTERNAL-IP" in wide
    assert "berlin" in wide
    described = kubectl("describe", "node", "pi-1")
    assert re.search(r"Ready +True", described)
    assert "topology.kubernetes.io/zone=berlin" in described
    assert "cordoned" in kubectl("cordon", "pi-1")
    assert kubectl.row("get", "node", "pi-1")[1] == "Ready,SchedulingDisabled"
    kubectl("uncordon", "pi-1")
    kubectl("label", "node", "pi-1", "rack=7")
    assert kubectl.json("get", "nodes.batuta.dev", "pi-1")["metadata"]["labels"] == {"rack": "7"}
    assert kubectl.row("get", "nodes", "-l", "rack=7")[0] == "pi-1"


def test_a_site_is_applied_changed_and_deleted(kubectl: Kubectl) -> None:
    document = SITE.replace("NAME", "munich")
    assert "created" in kubectl.apply(document)
    assert "unchanged" in kubectl.apply(document)
    assert "configured" in kubectl.apply(document.replace("residency: eu", "residency: world"))
    assert kubectl.json("get", "site", "munich")["spec"] == {"residency": "world"}
    assert kubectl("get", "sites", "munich").splitlines()[0].split() == [
        "NAME", "PARENT", "STATE", "ONLINE", "NODES", "AGE",
    ]  # fmt: skip
    kubectl("label", "site", "munich", "town=yes")
    kubectl("annotate", "site", "munich", "example.com/by=me")
    labels = kubectl.json("get", "site", "munich")["metadata"]["labels"]
    assert labels == {"land": "de", "town": "yes"}
    kubectl("patch", "site", "munich", "--type=merge", "-p", '{"spec":{"residency":"de"}}')
    kubectl("patch", "site", "munich", "--type=json", "-p", '[{"op":"add","path":"/spec/parent","value":"berlin"}]')
    assert kubectl.json("get", "site", "munich")["spec"] == {"residency": "de", "parent": "berlin"}
    refused = kubectl("patch", "site", "munich", "--type=strategic", "-p", '{"spec":{}}', status=1)
    assert "strategic" in refused
    assert "deleted" in kubectl("delete", "site", "munich")
    assert "NotFound" in kubectl("get", "site", "munich", status=1)


def test_an_application_runs_scales_and_ends(kubectl: Kubectl) -> None:
    watching = Running(kubectl, "get", "applications", "-w")
    try:
        kubectl.apply(application("walk"))
        assert "condition met" in kubectl("wait", "--for=condition=Ready", "app/walk", "--timeout=60s")
        seen = watching.until(r"^walk .*1/1")
        assert len([line for line in seen if line.startswith("NAME")]) == 1
    finally:
        watching.end()
    name, ready, status, *_, node, app = kubectl.row("get", "pods", "-o", "wide")
    assert (name, ready, status, node, app) == ("walk.run-1-0", "1/1", "Running", "pi-1", "walk")
    assert re.search("Node: +pi-1/", kubectl("describe", "pod", name))
    assert "walk.run-1-0" in kubectl("describe", "node", "pi-1")
    assert re.search("Kind: +Application", kubectl("describe", "app", "walk"))

    assert "scaled" in kubectl("scale", "app/walk", "--replicas=2")
    kubectl("wait", "--for=jsonpath={.status.ready}=2/2", "app/walk", "--timeout=60s")
    assert len(kubectl.json("get", "pods")["items"]) == 2
    assert kubectl.json("get", "app", "walk", "--subresource=scale")["spec"] == {"replicas": 2}

    difference = kubectl("diff", "-f", "-", said=application("walk", count=3), status=1)
    assert re.search(r"^-\s+count: 2$", difference, re.MULTILINE)
    assert re.search(r"^\+\s+count: 3$", difference, re.MULTILINE)
    assert "replaced" in kubectl("replace", "-f", "-", said=application("walk", count=1))
    kubectl("wait", "--for=jsonpath={.status.ready}=1/1", "app/walk", "--timeout=60s")
    kubectl("delete", "app", "walk")
    kubectl("wait", "--for=delete", "app/walk", "--timeout=30s")


def test_logs_are_followed(kubectl: Kubectl) -> None:
    kubectl.apply(application("talk", TALKER))
    kubectl("wait", "--for=condition=Ready", "app/talk", "--timeout=60s")
    following = Running(kubectl, "logs", "-f", "talk.run-1-0")
    try:
        assert following.until("^line 2$") == ["one", "line 2"]
        following.until("^line 8$")
    finally:
        following.end()
    assert len(kubectl("logs", "talk.run-1-0", "--tail=2").splitlines()) == 2
    assert "goes on over its restarts" in kubectl("logs", "talk.run-1-0", "--previous", status=1)
    kubectl("delete", "app", "talk")


def test_reasons_are_events(kubectl: Kubectl) -> None:
    kubectl.apply(application("greedy").replace("32Mi", "900Gi"))
    try:
        kubectl("wait", "--for=jsonpath={.status.ready}=0/1", "app/greedy", "--timeout=30s")
        assert re.search("application/greedy", kubectl("get", "events"))
        described = kubectl("describe", "app", "greedy")
        assert re.search("NothingFits|MemoryShort", described.partition("Events:")[2]), described
    finally:
        kubectl("delete", "app", "greedy")


def test_two_who_apply_on_the_server_meet(kubectl: Kubectl) -> None:
    document = application("shared", count=0)
    first = kubectl.apply(document, "--server-side", "--field-manager=ann")
    assert "serverside-applied" in first
    other = application("shared", count=1)
    refused = kubectl.apply(other, "--server-side", "--field-manager=ben", status=1)
    assert 'conflict with "ann"' in refused
    assert "--force-conflicts" in refused
    kubectl.apply(other, "--server-side", "--field-manager=ben", "--force-conflicts")
    shown = yaml.safe_load(kubectl("get", "app", "shared", "-o", "yaml", "--show-managed-fields"))
    assert shown["spec"]["components"][0]["replicas"] == {"count": 1}
    assert {m["manager"] for m in shown["metadata"]["managedFields"]} == {"ann", "ben"}
    # From the client's side to the server's: kubectl hands the fields over by itself.
    kubectl.apply(application("mine", count=0))
    assert "serverside-applied" in kubectl.apply(application("mine", count=0), "--server-side")
    kubectl.apply(application("mine", count=0), "--server-side", "--dry-run=server")
    kubectl("delete", "app", "shared", "mine")


def test_the_language_explains_itself_and_refuses_with_every_problem(kubectl: Kubectl) -> None:
    assert "exactly one of count, perSite, everyNode" in kubectl("explain", "application.spec.components.replicas")
    assert "residency" in kubectl("explain", "site", "--recursive")
    wrong = application("wrong").replace("replicas", "replicsa").replace("stopGrace", "stopGrcae")
    refused = kubectl.apply(wrong, status=1)
    assert 'The Application "wrong" is invalid' in refused
    assert "replicsa" in refused
    assert "stopGrcae" in refused


def test_flags_are_a_kind_like_any_other(kubectl: Kubectl) -> None:
    def flag(new: int, old: int = 80, variants: str = "{new: {size: 1, on: null}, old: {}}") -> str:
        spec = f"{{variants: {variants}, default: old, rules: [{{split: {{new: {new}, old: {old}}}}}]}}"
        return f"apiVersion: batuta.dev/v1\nkind: Flag\nmetadata: {{name: look}}\nspec: {spec}\n"

    assert "created" in kubectl.apply(flag(20))
    try:
        assert "unchanged" in kubectl.apply(flag(20))
        assert "configured" in kubectl.apply(flag(30, 70))
        assert "STATE" in kubectl("get", "flags")
        assert kubectl("get", "flag", "look", "-o", "jsonpath={.spec.variants.new.size}") == "1"
        assert "percent" in kubectl.apply(flag(30), status=1)
        assert "all variants are of one type" in kubectl.apply(flag(20, variants="{new: true, old: 7}"), status=1)
        kubectl("patch", "flag", "look", "--type=merge", "-p", '{"spec":{"disabled":true}}')
        assert kubectl("get", "flag", "look", "-o", "jsonpath={.spec.disabled}") == "true"
        assert "variants" in kubectl("explain", "flag.spec")
    finally:
        kubectl("delete", "flag", "look")


def test_output_is_cut_to_measure(kubectl: Kubectl) -> None:
    kubectl.apply(SITE.replace("NAME", "ulm"))
    try:
        assert kubectl("get", "site", "ulm", "-o", "jsonpath={.spec.residency}") == "eu"
        columns = kubectl("get", "sites", "ulm", "-o", "custom-columns=WHO:.metadata.name,LAND:.metadata.labels.land")
        assert [line.split() for line in columns.splitlines()] == [["WHO", "LAND"], ["ulm", "de"]]
        assert yaml.safe_load(kubectl("get", "site", "ulm", "-o", "yaml"))["kind"] == "Site"
        assert kubectl("get", "site", "ulm", "-o", "name") == "site.batuta.dev/ulm\n"
        assert kubectl("get", "sites", "-l", "land=de", "--sort-by=.metadata.name", "--no-headers").startswith("ulm")
        assert re.search("^node/pi-1", kubectl("get", "nodes", "-o", "name"))
    finally:
        kubectl("delete", "site", "ulm")


def test_unknown_fields_are_warned_of_when_asked_for(kubectl: Kubectl) -> None:
    document = SITE.replace("NAME", "bonn").replace("residency: eu", "residency: eu, colour: red")
    assert "there is no field 'colour'" in kubectl.apply(document, status=1)
    try:
        warned = kubectl.apply(document, "--validate=warn")
        assert 'Warning: unknown field "spec.colour" was left out' in warned
        assert kubectl.json("get", "site", "bonn")["spec"] == {"residency": "eu"}
        assert "Warning" not in kubectl.apply(document.replace("eu", "de"), "--validate=ignore")
        warned = kubectl.apply(document, "--server-side", "--validate=warn", "--force-conflicts")
        assert 'unknown field "spec.colour"' in warned
    finally:
        kubectl("delete", "site", "bonn")


def test_everything_explains_itself(kubectl: Kubectl) -> None:
    whole = kubectl("explain", "application", "--recursive")
    for field in ("components", "stopGrace", "perSite", "metadata", "status"):
        assert re.search(rf"^ +{field}\b", whole, re.MULTILINE), whole
    assert "Kubernetes" in kubectl("explain", "pods")
    assert "--api-version=batuta.dev/v1" in kubectl("explain", "nodes")
    assert "GROUP:      batuta.dev" in kubectl("explain", "nodes.spec", "--api-version=batuta.dev/v1")


def test_rights_are_told(stage: Stage, kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "delete", "sites.batuta.dev").startswith("yes")
    assert "batuta:admin" in kubectl("auth", "whoami")
    viewer = Kubectl(stage, stage.client.create_api_token("viewer", ("default",), ttl_ms=60_000, name="w").token, "w")
    assert viewer("auth", "can-i", "get", "applications.batuta.dev").strip() == "yes"
    assert viewer("auth", "can-i", "create", "applications.batuta.dev", status=1).startswith("no")
    assert viewer("auth", "can-i", "get", "applications.batuta.dev", "-n", "other", status=1).startswith("no")


def test_nobody_gets_into_an_instance(kubectl: Kubectl) -> None:
    kubectl.apply(application("shut"))
    try:
        kubectl("wait", "--for=condition=Ready", "app/shut", "--timeout=60s")
        for words in (
            ("exec", "shut.run-1-0", "--", "ls"),
            ("attach", "shut.run-1-0"),
            ("port-forward", "shut.run-1-0", "18080:80"),
        ):
            refused = kubectl(*words, status=1)
            assert "instances have no shell and no way in over the hub" in refused, refused
    finally:
        kubectl("delete", "app", "shut")


def test_who_has_no_good_token_is_told_so(stage: Stage, kubectl: Kubectl) -> None:
    guessed = Kubectl(stage, "guessed", "guessed")
    assert "You must be logged in" in guessed("get", "sites", status=1)
    viewer = Kubectl(stage, stage.client.create_api_token("viewer", ("*",), ttl_ms=60_000, name="v").token, "viewer")
    assert "berlin" in viewer("get", "sites")
    refused = viewer("delete", "site", "berlin", status=1)
    assert "Forbidden" in refused
    assert "viewer" in refused
