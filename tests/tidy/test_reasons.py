"""The catalogue of reasons and the sources agree: no code is unknown, none is there for nothing."""

from __future__ import annotations

import ast
import re

import click

from batuta.cli.main import batuta
from batuta.core.reasons import CATALOGUE
from tests.tidy.sources import PACKAGE, name_of, parsed, python_files

# Codes that nothing gives yet, and what will.
RESERVED: dict[str, str] = {}

CONSTRUCTORS = {"Reason": 0, "EnrolmentRefused": 0, "RuntimeFailure": 0, "ArtifactRefused": 0}
# Codes of errors that people see at once and that never become the Reason of anything.
ERROR_CODES = {"digest_malformed", "too_large"}


def _codes_given() -> dict[str, str]:
    """Every literal code handed to a constructor of a Reason or of an error with a code; where it stands."""
    given = {}
    for path in python_files():
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if name not in CONSTRUCTORS:
                continue
            said = [k.value for k in node.keywords if k.arg == "code"] or node.args[:1]
            for code in said:
                for literal in ast.walk(code):
                    if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                        given[literal.value] = f"{name_of(path)}:{node.lineno}"
    return given


def test_every_code_that_is_given_is_in_the_catalogue() -> None:
    unknown = {
        code: where for code, where in _codes_given().items() if code not in CATALOGUE and code not in ERROR_CODES
    }
    assert not ERROR_CODES & CATALOGUE.keys()
    assert _codes_given().keys() >= ERROR_CODES, "no allowance outlives its reason"
    assert not unknown, f"add them to CATALOGUE in core/reasons.py: {unknown}"


def test_every_code_of_the_catalogue_is_given_somewhere() -> None:
    catalogue = PACKAGE / "core" / "reasons.py"
    literals = {
        node.value
        for path in python_files()
        if path != catalogue
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    unused = CATALOGUE.keys() - literals
    assert unused == RESERVED.keys(), (
        f"given nowhere: {sorted(unused - RESERVED.keys())}; reserved but given: {sorted(RESERVED.keys() - unused)}"
    )


def test_every_reason_reads_as_a_sentence_with_a_next_step() -> None:
    for code, entry in CATALOGUE.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", code)
        assert entry.sentence, code
        assert not entry.sentence.endswith("."), code
        assert entry.sentence[0].islower(), f"{code}: it goes on after 'subject: '"
        assert entry.next_step, f"{code}: say what to do, if only to wait"


def test_every_command_that_a_reason_names_is_one() -> None:
    """What a next step says to type can be typed: verbs, their verbs, and options."""
    named = {
        (code, command)
        for code, entry in CATALOGUE.items()
        for command in re.findall(r"`batuta ([^`]+)`", entry.next_step)
    }
    assert len(named) > 20
    wrong = {f"{code}: batuta {command}": why for code, command in named if (why := _why_no_command(command))}
    assert not wrong


def _why_no_command(text: str) -> str:
    found: click.Command = batuta
    words = text.split()
    while isinstance(found, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        inner = found.get_command(click.Context(found), words[0])
        if inner is None:
            return f"there is no {words[0]}"
        found = inner
        words.pop(0)
    if isinstance(found, click.Group):
        return "a verb of it is missing"
    options = {"--help", *(option for parameter in found.params for option in parameter.opts)}
    unknown = [word for word in words if word.startswith("-") and word not in options]
    return f"it has no {unknown[0]}" if unknown else ""
