"""Conditions: CEL over what is known of a node and its site. Checked when declared, evaluated without surprises.

`check` reads a condition the way an editor would: its syntax, its names, its units, and one rehearsal on a sample node,
so that `node.memry` or `node.memory > "512Mi"` is refused before it silently places nothing. `evaluate` never raises:
what cannot be answered is a ConditionFault, and whoever asked decides what an unanswerable condition means.

CEL has no loops and no recursion; conditions also have no clock. What is left to bound is how deeply `all`, `exists`
and their kin nest, because each level multiplies the work.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batuta.errors import Refused
from batuta.kinds.base import Bytes, Millis, Problem, Record
from batuta.kinds.nearest import did_you_mean
from batuta.kinds.tokens import (
    BOUNDARIES,
    COMPARISONS,
    LITERALS,
    MACROS,
    TYPES,
    Token,
    bound_names,
    paths_in,
    token_at,
    tokens_of,
    unquoted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import cel

NODE_FIELDS = (
    "name", "site", "labels", "architecture", "cpu", "memory", "disk", "accelerators", "runtimes", "os", "kernel",
    "temperature", "battery", "hardware", "devices",
)  # fmt: skip
SITE_FIELDS = ("name", "parent", "residency", "labels", "bandwidth", "latency", "metered", "timeZone", "carbon", "path")
# What a policy asks besides.
ASKED: dict[str, tuple[str, ...]] = {
    "application": ("name", "namespace", "labels"),
    "component": (
        "name", "type", "runs", "resources", "model", "slo", "residency", "inputs", "outputs", "near", "replicas",
    ),
    "now": ("time", "hour", "minute", "weekday", "date"),
}  # fmt: skip
# What the load of an autoscaled component asks; every one a number with a fraction, so that no division loses any.
MEASURES: dict[str, tuple[str, ...]] = {
    "latency": ("p50", "p99"), "queue": ("stored",), "rate": ("received",), "memory": ("used", "share"),
    "cpu": ("percent",), "errors": ("share",), "replicas": ("wanted", "ready"),
}  # fmt: skip
FIELDS: dict[str, tuple[str, ...]] = {"node": NODE_FIELDS, "site": SITE_FIELDS, **ASKED, **MEASURES}
PLACEMENT_VARIABLES = frozenset(("node", "site"))
COMPONENT_VARIABLES = frozenset(("application", "component"))
POLICY_VARIABLES = PLACEMENT_VARIABLES | frozenset(ASKED)
VARIABLES = {"placement": PLACEMENT_VARIABLES, "policy": POLICY_VARIABLES}
"""By the word with which a kind marks its conditions."""
LOAD_VARIABLES = frozenset(MEASURES)

BOOLEAN, NUMBER = "boolean", "number"
_MISGIVEN = {"not_boolean": "compare it with something", "not_number": "leave the comparison out"}

FUNCTIONS = (
    "quantity", "duration_ms", "has", "size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double",
    "string", "dyn", "type", *MACROS,
)  # fmt: skip
MACRO_DEPTH_MAX = 2

# One machine that has everything, for the rehearsal: the types are what matters, not the values.
SAMPLE: dict[str, dict[str, Any]] = {
    "node": {
        "name": "sample", "site": "sample", "labels": {}, "architecture": "arm64", "cpu": 4000, "memory": 4 * 2**30,
        "disk": 32 * 2**30, "accelerators": [{"kind": "gpu", "name": "sample", "memory": 2**30}],
        "runtimes": ["process"], "os": "linux", "kernel": "6.1", "temperature": 40.0, "battery": 80.0,
        "hardware": "sample", "devices": ["/dev/video0"],
    },
    "site": {
        "name": "sample", "parent": "sample", "residency": "sample", "labels": {}, "bandwidth": 20_000_000,
        "latency": 40, "metered": False, "timeZone": "UTC", "carbon": 300, "path": ["sample"],
    },
    "application": {"name": "sample", "namespace": "default", "labels": {}},
    "component": {
        "name": "sample", "type": "model", "runs": "at-least-once",
        "resources": {
            "cpu": 100, "memory": 64 * 2**20, "disk": 0, "ports": [8080], "devices": ["/dev/video0"],
            "accelerators": [{"kind": "gpu", "count": 1, "memory": 2**30}],
        },
        "model": {"name": "sample", "version": "1"}, "slo": {"p99": 50}, "residency": ["sample"], "inputs": ["a/b"],
        "outputs": ["b/c"], "near": ["a/b"], "replicas": {"count": 1, "perSite": 1, "everyNode": True},
    },
    "now": {"time": "12:00", "hour": 12, "minute": 0, "weekday": "monday", "date": "2026-01-05"},
    **{name: dict.fromkeys(fields, 1.0) for name, fields in MEASURES.items()},
}  # fmt: skip


class ConditionFault(Record):
    """Why a condition has no answer here. `code`: missing_field, wrong_type, not_boolean, unknown_name, failed."""

    code: str
    message: str


class CompiledCondition:
    """A condition ready to be asked many times. Make one with `compile_condition`."""

    __slots__ = ("functions", "program", "text")

    def __init__(self, text: str, program: cel.Program) -> None:
        self.text = text
        self.program = program
        called = set(program.functions())
        self.functions: dict[str, Callable[..., int | None]] = {n: f for n, f in _OURS.items() if n in called}


def quantity(text: object) -> int | None:
    """`quantity("512Mi")`: bytes. None for what is no quantity: an exception in here would reach the terminal."""
    try:
        return int(Bytes.parse(text))
    except ValueError:
        return None


def duration_ms(text: object) -> int | None:
    """`duration_ms("5s")`: milliseconds. None for what is no duration."""
    try:
        return int(Millis.parse(text))
    except ValueError:
        return None


_OURS: dict[str, Callable[..., int | None]] = {"quantity": quantity, "duration_ms": duration_ms}


@lru_cache(maxsize=4096)
def compile_condition(text: str) -> CompiledCondition:
    """Ready `text` for `evaluate`. Raises Refused for a syntax error, which `check` finds first."""
    import cel

    try:
        return CompiledCondition(text, cel.compile(text))
    except ValueError as error:
        raise Refused([_syntax_problem("", text, str(error))]) from None


def evaluate(condition: CompiledCondition, variables: Mapping[str, Any]) -> bool | ConditionFault:
    """Ask a condition. Total: whatever goes wrong inside comes back as a ConditionFault that names the field."""
    answer = _execute(condition, variables)
    if isinstance(answer, bool | ConditionFault):
        return answer
    return ConditionFault(code="not_boolean", message=f"gives {_type_word(answer)}, not true or false")


def number(condition: CompiledCondition, variables: Mapping[str, Any]) -> float | ConditionFault:
    """Ask for a number. Total, as `evaluate` is."""
    answer = _execute(condition, variables)
    if isinstance(answer, ConditionFault):
        return answer
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        return ConditionFault(code="not_number", message=f"gives {_type_word(answer)}, not a number")
    if not -1e18 < answer < 1e18:
        return ConditionFault(code="failed", message="divides by zero")
    return float(answer)


def _execute(condition: CompiledCondition, variables: Mapping[str, Any]) -> Any:
    """Whatever it gives, or the ConditionFault that says why it gives nothing."""
    import cel

    try:
        return condition.program.execute(cel.Context(dict(variables), condition.functions))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # BaseException, because a panic in the Rust half of cel arrives as one.
        return _fault(condition.text, error, variables)


def check(
    path: str,
    text: str,
    variables: frozenset[str] = PLACEMENT_VARIABLES,
    *,
    gives: str = BOOLEAN,
    sample: Mapping[str, Mapping[str, Any]] = SAMPLE,
) -> list[Problem]:
    """Everything wrong with a condition that can be seen without a node. `Problem.inside` says where in the text.

    `sample` has a value of the right type for every field that there is."""
    try:
        condition = compile_condition(text)
    except Refused as refused:
        return [
            Problem(path=path, code=p.code, message=p.message, hint=p.hint, inside=p.inside) for p in refused.problems
        ]
    tokens = tokens_of(text)
    found = list(_name_problems(path, tokens, variables, sample))
    found += _literal_problems(path, tokens)
    found += _depth_problems(path, tokens)
    if not found:
        # Whatever the tokens did not show, such as a name with a leading dot, the compiler's own list does.
        unseen = set(condition.program.variables()) - variables - bound_names(tokens) - set(TYPES)
        found += [_unknown_name(path, name, variables, 0, sample) for name in sorted(unseen)]
    if not found and variables <= set(sample):
        found += _rehearsal_problems(path, condition, tokens, gives, sample)
    return found


# --- Reading the text ------------------------------------------------------------------------------------------------


def _name_problems(
    path: str, tokens: list[Token], variables: frozenset[str], sample: Mapping[str, Mapping[str, Any]]
) -> Iterator[Problem]:
    bound = bound_names(tokens)
    for i, token in enumerate(tokens):
        if token.kind != "word":
            continue
        after, before = token_at(tokens, i + 1).text, token_at(tokens, i - 1).text
        if after == "(":
            if token.text not in FUNCTIONS:
                hint = {"duration": 'use duration_ms("5s"), in milliseconds'}.get(token.text)
                yield Problem(
                    path=path,
                    code="unknown_name",
                    message=f"there is no function {token.text!r}",
                    hint=hint or did_you_mean(token.text, FUNCTIONS),
                    inside=token.at + 1,
                )
        elif before == "." or token.text in bound or token.text in LITERALS or token.text == "in":
            continue
        elif token.text in variables:
            field = _field_of(tokens, i)
            if field is not None and token.text in sample and field[0] not in sample[token.text]:
                yield Problem(
                    path=path,
                    code="unknown_field",
                    message=f"{token.text} has no field {field[0]!r}",
                    hint=did_you_mean(field[0], tuple(sample[token.text])),
                    inside=field[1] + 1,
                )
        elif token.text not in TYPES:
            yield _unknown_name(path, token.text, variables, token.at + 1, sample)


def _unknown_name(
    path: str, name: str, variables: frozenset[str], inside: int, sample: Mapping[str, Mapping[str, Any]]
) -> Problem:
    nearest = did_you_mean(name, sorted(variables), otherwise="")
    if not nearest and (owner := next((v for v in sorted(variables) if name in sample.get(v, ())), None)):
        nearest = f"did you mean '{owner}.{name}'?"
    *some, last = sorted(variables)
    known = f"{', '.join(some)} and {last}" if some else last
    return Problem(
        path=path,
        code="unknown_name",
        message=f"there is no {name!r} here",
        hint=nearest or f'a condition knows {known}; text is quoted: "{name}"',
        inside=inside,
    )


def _field_of(tokens: list[Token], i: int) -> tuple[str, int] | None:
    """The field read from the variable at `i`, as `node.x` or `node["x"]`, and where it stands."""
    sign, field = token_at(tokens, i + 1).text, token_at(tokens, i + 2)
    if sign == "." and field.kind == "word" and token_at(tokens, i + 3).text != "(":
        return field.text, field.at
    if sign == "[" and token_at(tokens, i + 3).text == "]":
        name = unquoted(field)
        return None if name is None else (name, field.at)
    return None


def _literal_problems(path: str, tokens: list[Token]) -> Iterator[Problem]:
    for i, token in enumerate(tokens):
        text = unquoted(token_at(tokens, i + 2))
        if token.text in _OURS and token_at(tokens, i + 1).text == "(" and text is not None:
            quantity_kind = Bytes if token.text == "quantity" else Millis
            try:
                quantity_kind.parse(text)
            except ValueError as error:
                yield Problem(path=path, code="value", message=str(error), inside=tokens[i + 2].at + 1)


def _depth_problems(path: str, tokens: list[Token]) -> Iterator[Problem]:
    open_macros: list[bool] = []
    for i, token in enumerate(tokens):
        if token.text == "(":
            open_macros.append(token_at(tokens, i - 1).text in MACROS)
            if sum(open_macros) > MACRO_DEPTH_MAX:
                yield Problem(
                    path=path,
                    code="too_deep",
                    message=f"{', '.join(MACROS)} may be nested {MACRO_DEPTH_MAX} deep, not more",
                    inside=token.at + 1,
                )
                return
        elif token.text == ")" and open_macros:
            open_macros.pop()


# --- Rehearsing on the sample -----------------------------------------------------------------------------------------


def _rehearsal_problems(
    path: str, condition: CompiledCondition, tokens: list[Token], gives: str, sample: Mapping[str, Any]
) -> Iterator[Problem]:
    misfit = _misfit(tokens, sample)
    if misfit is not None:
        message, hint, at = misfit
        yield Problem(path=path, code="wrong_type", message=message, hint=hint, inside=at + 1)
        return
    answer = number(condition, sample) if gives == NUMBER else evaluate(condition, sample)
    if isinstance(answer, ConditionFault) and answer.code in ("wrong_type", *_MISGIVEN, "unknown_name"):
        message = f"the condition {answer.message}" if answer.code in _MISGIVEN else answer.message
        fraction = "numbers have a fraction here: 50.0" if gives == NUMBER and answer.code == "wrong_type" else ""
        hint = _MISGIVEN.get(answer.code, fraction)
        yield Problem(path=path, code=answer.code, message=message, hint=hint, inside=1)


def _misfit(tokens: list[Token], variables: Mapping[str, Any]) -> tuple[str, str, int] | None:
    """The first `path OPERATOR literal`, either way round, that can never be true: message, hint, where."""
    for first, last, path in paths_in(tokens):
        forwards = (last + 1, last + 2, last + 3, first - 1)
        backwards = (first - 1, first - 2, first - 3, last + 1)
        for sign, literal, beyond, behind in (forwards, backwards):
            word, value = _literal_word(token_at(tokens, literal)), _look_up(path, variables)
            # Arithmetic beside a comparison changes its types; only a path and a literal that stand alone are judged.
            alone = token_at(tokens, beyond).text in BOUNDARIES and token_at(tokens, behind).text in BOUNDARIES
            if token_at(tokens, sign).text not in COMPARISONS or word is None or not alone or value is _ABSENT:
                continue
            if value is None or _type_word(value) == word:
                continue
            text = unquoted(token_at(tokens, literal))
            is_quantity = isinstance(value, int) and text is not None and quantity(text) is not None
            hint = f'write quantity("{text}")' if is_quantity else ""
            message = f"{'.'.join(path)} is {_type_word(value)} and is compared with {word}"
            return message, hint, tokens[first].at
    return None


_ABSENT = object()


def _look_up(path: list[str], variables: Mapping[str, Any]) -> Any:
    value: Any = variables
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return _ABSENT
        value = value[key]
    return value


def _literal_word(token: Token) -> str | None:
    if token.kind == "number":
        return "a number"
    if token.kind == "string":
        return "text"
    return {"true": "true or false", "false": "true or false"}.get(token.text)


def _type_word(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    words = {int: "a number", float: "a number", str: "text", list: "a list", tuple: "a list", dict: "a map"}
    return words.get(type(value), f"a {type(value).__name__}")


# --- What cel says, in plain words ------------------------------------------------------------------------------------


def _fault(text: str, error: BaseException, variables: Mapping[str, Any]) -> ConditionFault:
    said = str(error)
    if isinstance(error, KeyError):
        field = str(error.args[0]) if error.args else said
        dotted = re.search(rf"[A-Za-z_][\w.]*\.{re.escape(field)}\b", text)
        name = dotted[0] if dotted else field
        return ConditionFault(code="missing_field", message=f"there is no {name} here; has({name}) asks first")
    if isinstance(error, TypeError):
        tokens = tokens_of(text)
        for _, _, path in paths_in(tokens):
            if _look_up(path, variables) is None:
                return ConditionFault(code="wrong_type", message=f"{'.'.join(path)} is null here")
        misfit = _misfit(tokens, variables)
        return ConditionFault(
            code="wrong_type",
            message=misfit[0] if misfit else "the types do not fit: text, numbers and lists do not mix",
        )
    if unknown := re.search(r"Undefined variable or function: '([^']*)'", said):
        return ConditionFault(code="unknown_name", message=f"there is no {unknown[1]!r} here")
    if isinstance(error, ZeroDivisionError):
        return ConditionFault(code="failed", message="divides by zero")
    return ConditionFault(code="failed", message=said.split("\n", 1)[0][:200])


_PLAIN_WORDS = (
    (r"(?:mismatched|extraneous) input '<EOF>'.*|missing '.*' at '<EOF>'.*", "the condition ends too early"),
    (r"token recognition error at: '(.*?)\s*'", "{0!r} means nothing in a condition"),
    (r"no viable alternative at input '(.*)'", "{0!r} makes no sense here"),
    (r"(?:mismatched|extraneous) input '(.*)' expecting .*", "{0!r} is not expected here"),
    (r"missing '(.*)' at '(.*)'", "{0!r} is missing before {1!r}"),
    (r"invalid (int|uint|double) literal", "this number is too large"),
    (r"reserved identifier: (.*)", "{0!r} is a reserved word"),
    (
        r"argument must be a simple name",
        "the first argument of all, exists, exists_one, map and filter is a plain name",
    ),
    (r"invalid argument to has\(\) macro", "has asks for a field, like has(node.labels.camera)"),
    (r"unsupported syntax:? '(.*)'", "{0!r} is not supported"),
)
_NEXT_STEPS = {
    "and": "write &&",
    "or": "write ||",
    "not": "write !",
    "=": "write == to compare",
    "&": "write &&",
    "|": "write ||",
    "is": "write ==",
}


def _syntax_problem(path: str, text: str, said: str) -> Problem:
    """The compiler's first complaint in plain words; those after it are mostly its echo."""
    first = re.search(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(?!Incomplete|No )(.*)", said)
    # An open quote, `not x` and `512Mi` trip the compiler only later; look for them where they stand.
    tokens = tokens_of(text)
    for i, token in enumerate(tokens):
        after = token_at(tokens, i + 1)
        if token.text in ("'", '"'):
            return _misread(path, "this quote is never closed", "", token.at + 1)
        if token.text == "not" and after.text not in ("", ".", "("):
            return _misread(path, "'not' is not expected here", "write !", token.at + 1)
        if token.kind == "number" and after.kind == "word" and after.at == token.at + len(token.text):
            amount = token.text + after.text
            known = quantity(amount) is not None
            step = f'write quantity("{amount}")' if known else "text is quoted"
            return _misread(path, f"{amount!r} is not a number", step, token.at + 1)
    if first is None or "Recursion limit" in said:
        return _misread(path, "this nests too deeply to be read", "split it", 1)
    line, column, complaint = int(first[1]), int(first[2]), first[3]
    inside = sum(len(part) + 1 for part in text.split("\n")[: line - 1]) + column
    for pattern, plain in _PLAIN_WORDS:
        if match := re.fullmatch(pattern, complaint):
            word = match[1] if match.groups() else ""
            message = plain.format(*(group[:40] for group in match.groups()))
            return _misread(path, message, _NEXT_STEPS.get(word.strip(), ""), min(inside, len(text) + 1))
    return _misread(path, complaint[:200], "", inside)


def _misread(path: str, message: str, hint: str, inside: int) -> Problem:
    return Problem(path=path, code="syntax", message=message, hint=hint, inside=inside)
