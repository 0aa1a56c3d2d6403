"""What works without a hub: explaining, checking documents, the doctor's own senses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from batuta.core.reasons import CATALOGUE
from batuta.core.words import WORDS
from tests.cli.running import invoke, run

EXAMPLES = Path(__file__).parents[2] / "examples"
WRONG = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: Bad_Name}
spec:
  components:
  - name: read
    model: {name: digits, version: "1"}
    replicas: {perSit: 1}
"""


def test_apply_offline_reads_every_example(capsys) -> None:
    ran = invoke(capsys, "apply", "--offline", "-f", str(EXAMPLES))
    assert (ran.code, ran.err) == (0, "")
    assert "applications/meter-reader is well-formed" in ran.out


def test_apply_refuses_before_it_asks_any_hub(tmp_path, capsys) -> None:
    """All problems of all files at once, with their places; there is no hub to ask, and none is needed."""
    (tmp_path / "a.yaml").write_text(WRONG)
    (tmp_path / "b.yaml").write_text("apiVersion: batuta.dev/v1\nkind: Sight\nmetadata: {name: x}\n")
    ran = invoke(capsys, "apply", "-f", str(tmp_path), "--state", str(tmp_path / "nowhere"))
    assert (ran.code, ran.out) == (3, "")
    assert f"{tmp_path}/a.yaml:3:18: metadata.name:" in ran.err
    assert f"{tmp_path}/a.yaml:8:16: spec.components[0].replicas.perSit:" in ran.err
    assert "did you mean 'perSite'?" in ran.err
    assert f"{tmp_path}/b.yaml:2:7: kind:" in ran.err
    assert ran.err.splitlines()[-2:] == [
        f"error: refused: {len(ran.err.splitlines()) - 2} problems",
        "  next: correct it and try again; nothing changed",
    ]


def test_apply_reads_standard_input() -> None:
    ran = run("apply", "--offline", "-f", "-", stdin="apiVersion: batuta.dev/v1\nkind: Site\nmetadata: {name: here}\n")
    assert (ran.code, ran.out) == (0, "sites/here is well-formed\n")


@pytest.mark.parametrize("name", ["missing.yaml", "empty"])
def test_a_path_without_manifests_is_said(tmp_path, capsys, name: str) -> None:
    (tmp_path / "empty").mkdir()
    ran = invoke(capsys, "apply", "--offline", "-f", str(tmp_path / name))
    assert ran.code == 1
    assert "  next: " in ran.err


def test_explain_a_field(capsys) -> None:
    ran = invoke(capsys, "explain", "applications.spec.components[0].replicas")
    assert ran.code == 0
    assert "perSite" in ran.out


def test_explain_every_reason(capsys) -> None:
    for code, entry in CATALOGUE.items():
        ran = invoke(capsys, "explain", code)
        assert ran.code == 0
        assert entry.sentence in ran.out
        assert entry.next_step in ran.out
        assert ("passes by itself" in ran.out) == entry.waits


def test_explain_every_state(capsys) -> None:
    for word, row in WORDS.items():
        ran = invoke(capsys, "explain", word)
        assert ran.code == 0
        assert row.meaning in ran.out
        assert row.next_step in ran.out


@pytest.mark.parametrize(
    ("path", "hint"), [("application.spec.componets", "components"), ("memory_shrt", "memory_short"), ("zzz", "")]
)
def test_explain_a_near_miss(capsys, path: str, hint: str) -> None:
    ran = invoke(capsys, "explain", path)
    assert ran.code != 0
    assert hint in ran.err


def test_the_doctor_sees_a_machine_that_has_not_begun(tmp_path) -> None:
    ran = run("doctor", "-o", "json", state=tmp_path)
    assert ran.code == 0, ran.err
    checks = {check["name"]: check for check in json.loads(ran.out)["checks"]}
    assert checks["broker program"]["result"] == "pass"
    assert checks["address"]["result"] == "warn"
    assert "batuta up" in checks["address"]["nextStep"]


def test_the_doctor_fails_when_the_hub_is_away(tmp_path) -> None:
    (tmp_path / "context.json").write_text('{"server":"http://127.0.0.1:1"}')
    ran = run("doctor", state=tmp_path)
    assert ran.code == 1
    assert "FAIL  address" in ran.out
    assert "1 failed" in ran.out


def test_the_doctor_sees_a_node_that_does_not_run(tmp_path) -> None:
    """A node's directory as enrolment leaves it: nobody holds its lock, its certificate has ended, its hub is gone."""
    import time

    from batuta.agent import identity

    now = int(time.time() * 1000)
    kept = identity.Identity(
        node="pi-4", site="lab", leafs=("tls://127.0.0.1:1",), hubs=("https://127.0.0.1:1",), pin="0" * 64,
        chain="chain-1.pem", begins_at=now - 10_000, ends_at=now - 5_000,
    )  # fmt: skip
    identity.keep(tmp_path / "node" / "identity", kept)
    (tmp_path / "node" / "ledger").write_bytes(b"garbage")
    ran = run("doctor", "-o", "json", state=tmp_path)
    assert ran.code == 1
    results = {
        check["name"]: check["result"] for check in json.loads(ran.out)["checks"] if check["section"] == "this node"
    }
    assert results == {
        "enrolment": "pass", "certificate": "fail", "node agent": "fail", "ledger": "warn", "runtimes": "pass",
        "link to the hub": "fail",
    }  # fmt: skip


def test_the_doctor_sees_an_agent_by_its_lock(tmp_path) -> None:
    from batuta.cli.checks import _agent

    assert _agent(tmp_path).result == "fail"
    holder = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "agent.lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        assert _agent(tmp_path).result == "pass"
        process.stdin.close()
    assert _agent(tmp_path).result == "fail"


def test_version(capsys) -> None:
    from batuta import __version__

    assert invoke(capsys, "version").out.startswith(f"batuta {__version__} ")


def test_several_files_become_one_text_that_reads_as_they_do_apart(tmp_path) -> None:
    """Whatever a file begins or ends with; and each of its lines is found again."""
    from batuta.cli.manifests import joined
    from batuta.kinds.manifest import parse

    site = "apiVersion: batuta.dev/v1\nkind: Site\nmetadata: {{name: {0}}}\n"
    texts = (
        site.format("a").rstrip(), "---\n" + site.format("b") + "---\n", "# words\n%YAML 1.2\n---\n" + site.format("c"),
        "\ufeff" + site.format("d") + "...\n", json.dumps({**SITE, "metadata": {"name": "e"}}),
        site.format("f") + "---",
    )  # fmt: skip
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.{'json' if text.startswith('{') else 'yaml'}").write_text(text)
    manifest = joined([str(tmp_path)])
    assert [resource.metadata.name for resource in manifest.resources] == list("abcdef")
    assert parse(manifest.text) == list(manifest.resources)
    lines = manifest.text.split("\n")
    for file, before in manifest.files:
        first = Path(file).read_text("utf-8-sig").split("\n")[0]
        assert lines[before] == first


SITE = {"apiVersion": "batuta.dev/v1", "kind": "Site"}


def test_explain_prints_the_schema_that_is_checked_in(capsys: pytest.CaptureFixture[str]) -> None:
    ran = invoke(capsys, "explain", "app", "--schema")
    assert ran.code == 0
    assert ran.out == (Path(__file__).parents[2] / "docs" / "schemas" / "applications.json").read_text()
    ran = invoke(capsys, "explain", "device", "--schema")
    assert (ran.code, "did you mean 'nodes'?" in ran.err) == (2, True)
