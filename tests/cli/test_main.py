"""The front door: light, plain, and with one shape for every error."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from batuta.cli.main import VERBS, batuta
from tests.cli.running import invoke, run

HEAVY = (
    "numpy", "onnxruntime", "onnx", "pydantic", "rich", "nats", "cel", "starlette", "uvicorn", "jsonschema", "yaml",
    "cryptography", "psutil", "msgspec", "asyncio", "ssl", "http.client",
)  # fmt: skip


def test_help_loads_nothing_that_costs() -> None:
    script = (
        "import sys\n"
        "from batuta.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print('LOADED', *sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.partition("LOADED")[2].split())
    assert "click" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    ours = {name for name in loaded if name.partition(".")[0] == "batuta"}
    assert ours == {"batuta", "batuta.cli", "batuta.cli.main", "batuta.errors"}


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_loads_no_workhorse(verb: str) -> None:
    script = (
        "import sys\n"
        "from batuta.cli.main import main\n"
        f"try:\n    main([{verb!r}, '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print('LOADED', *sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.partition("LOADED")[2].split())
    assert [name for name in HEAVY if name in loaded] == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_line_in_the_help_is_about_the_verb(verb: str) -> None:
    """The list of verbs is written by hand so that help need not load them; here it is held to them."""
    command = batuta.get_command(click.Context(batuta), verb)
    assert command is not None
    assert command.name == verb
    assert VERBS[verb].help[0].isupper()
    assert VERBS[verb].help.endswith((".", "?"))
    assert command.help, "every verb says what it does"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    ran = invoke(capsys, "--help")
    assert ran.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in ran.out


@pytest.mark.parametrize(
    ("typed", "meant"), [("gett", "get"), ("aply", "apply"), ("ls", "get"), ("check", "doctor"), ("push", "model push")]
)
def test_a_mistyped_verb_gets_a_hint(capsys: pytest.CaptureFixture[str], typed: str, meant: str) -> None:
    ran = invoke(capsys, typed)
    assert ran.code == 2
    assert f"did you mean `batuta {meant}`?" in ran.err


def test_devices_are_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    ran = invoke(capsys, "get", "devices", "--server", "http://127.0.0.1:1")
    assert (ran.code, ran.out) == (2, "")
    assert "there is no kind 'devices'; did you mean 'nodes'?" in ran.err


def test_a_near_miss_of_a_kind_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    ran = invoke(capsys, "get", "aplications", "--server", "http://127.0.0.1:1")
    assert "did you mean 'applications'?" in ran.err


def test_no_hub_is_one_block_with_a_next_step(tmp_path) -> None:
    ran = run("get", "nodes", state=tmp_path)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.splitlines() == [
        f"error: no hub is known here: there is no {tmp_path}/context.json",
        "  next: start one with `batuta up`, or name one with BATUTA_SERVER and BATUTA_TOKEN_FILE",
    ]


def test_a_hub_that_is_away_says_why(tmp_path) -> None:
    ran = run("get", "nodes", "--server", "http://127.0.0.1:1", state=tmp_path)
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "error: the hub at http://127.0.0.1:1 does not answer",
        "  why:  Connection refused",
        "  next: start one with `batuta up`, or see `batuta doctor`",
    ]


def test_debug_shows_the_traceback(tmp_path) -> None:
    ran = run("get", "nodes", state=tmp_path, env={"BATUTA_DEBUG": "1"})
    assert ran.code == 1
    assert "Traceback" in ran.err


def test_a_token_never_leaves_the_machine_unencrypted(tmp_path) -> None:
    (tmp_path / "token").write_text("secret")
    ran = run("get", "nodes", "--server", "http://203.0.113.1:8400", "--token-file", str(tmp_path / "token"))
    assert ran.code == 1
    assert "unencrypted" in ran.err
    assert "secret" not in ran.err


def test_the_token_of_one_hub_is_not_shown_to_another(tmp_path) -> None:
    """A context names a hub and its token; --server names another hub, which must not get that token."""
    from batuta.context import context

    (tmp_path / "token").write_text("secret")
    (tmp_path / "context.json").write_text(f'{{"server":"http://127.0.0.1:8400","tokenFile":"{tmp_path}/token"}}')
    assert context(tmp_path).token == "secret"
    assert context(tmp_path, server="http://127.0.0.1:8400/").token == "secret"
    assert context(tmp_path, server="http://127.0.0.1:9999").token == ""


def test_a_closed_pipe_ends_quietly() -> None:
    script = "import sys\nfrom batuta.cli.main import main\nmain(['explain', 'application.spec.components'])\n"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, b"")
