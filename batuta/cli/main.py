"""`batuta`: the verbs, found by name and loaded when asked for; and one place where every error becomes words."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

FAILED, USAGE, REFUSED, INTERRUPTED = 1, 2, 3, 130


class Verb(NamedTuple):
    """One verb: where it lives, and its line in `batuta --help` (so that help need not load it)."""

    module: str
    help: str


VERBS: dict[str, Verb] = {
    "demo": Verb("demo", "See the main job done on real processes, on this machine."),
    "up": Verb("up", "Start a hub."),
    "join": Verb("join", "Make this machine a node of a hub."),
    "token": Verb("token", "Join tokens and API tokens: create, list, revoke."),
    "kubeconfig": Verb("kubeconfig", "Write a kubeconfig: kubectl, k9s and others talk to the hub."),
    "apply": Verb("apply", "Declare what is in a manifest."),
    "diff": Verb("diff", "What would a manifest change, and what would move?"),
    "get": Verb("get", "List what there is, one line each."),
    "describe": Verb("describe", "All that is known of one thing."),
    "delete": Verb("delete", "Take a declaration back."),
    "why": Verb("why", "Why is it where it is, and why not elsewhere?"),
    "moves": Verb("moves", "What is being moved, by whom and why; what policies have moved."),
    "explain": Verb("explain", "What a field, a state or a reason means."),
    "logs": Verb("logs", "What instances printed."),
    "top": Verb("top", "What nodes and instances use and do, live."),
    "flag": Verb("flag", "Feature flags: what a key gets, and why."),
    "model": Verb("model", "Models: push, pack, sign, verify, name, list."),
    "image": Verb("image", "Images of containers: push."),
    "rollout": Verb("rollout", "How releases arrive: status, history, pause, undo, approve."),
    "node": Verb("node", "Machines: approve, hold, drain, release, remove."),
    "twin": Verb("twin", "Play fleets in virtual time: what if?"),
    "doctor": Verb("doctor", "Check this machine and its hub, and say what mends them."),
    "audit": Verb("audit", "Who did what, when, and how it ended."),
    "completion": Verb("completion", "Let a shell complete verbs, options and names."),
    "version": Verb("version", "The version of Batuta."),
}
# Words that people bring from neighbouring tools.
SYNONYMS = {
    "create": "apply", "ls": "get", "list": "get", "rm": "delete", "remove": "delete", "log": "logs", "start": "up",
    "serve": "up", "check": "doctor", "status": "get", "show": "describe", "install": "join", "tokens": "token",
    "models": "model", "flags": "flag", "feature": "flag", "images": "image", "push": "model push",
    "simulate": "twin run", "scenario": "twin run",
    "rehearse": "twin rehearse", "plan": "twin rehearse", "replay": "twin replay", "record": "twin record",
    "undo": "rollout undo", "rollback": "rollout undo", "history": "rollout history", "pause": "rollout pause",
    "resume": "rollout resume", "approve": "rollout approve",
}  # fmt: skip


# How `batuta --help` groups them; a verb of no group is shown among the last.
GROUPS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "up", "join", "token", "kubeconfig"),
    "Declare": ("apply", "diff", "delete", "model", "image", "flag"),
    "Look": ("get", "describe", "why", "moves", "explain", "logs", "top", "query"),
    "Keep it running": ("node", "rollout", "doctor", "audit"),
    "More": ("twin", "completion", "version"),
}


def _groups() -> list[tuple[str, list[str]]]:
    found = [(title, [name for name in names if name in VERBS]) for title, names in GROUPS.items()]
    grouped = {name for names in GROUPS.values() for name in names}
    found[-1][1].extend(name for name in VERBS if name not in grouped)
    return found


class Verbs(click.Group):
    """Loads a verb's module when the verb is used, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"batuta.cli.{VERBS[cmd_name].module}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0] if args else ""
        if word and not word.startswith("-") and word not in VERBS:
            from batuta.kinds.nearest import nearest

            near = SYNONYMS.get(word) or nearest(word, VERBS)
            hint = f"did you mean `batuta {near}`?" if near else "`batuta --help` lists them."
            ctx.fail(f"there is no verb {word!r}; {hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs as the table above has them: a key press loads none of their modules."""
        from click.shell_completion import CompletionItem

        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(n, help=v.help) for n, v in VERBS.items() if n.startswith(incomplete)] + options

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, VERBS))
        for title, names in _groups():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), VERBS[name].help) for name in names])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.pass_context
def batuta(context: click.Context) -> None:
    """Batuta conducts models and programs on edge machines.

    Begin with `batuta demo`; or `batuta up`, `batuta token create`, and `batuta join` on a machine.
    """
    if context.invoked_subcommand != "join":  # which may become a node agent: that one knows how to end what runs
        hear_endings()


def hear_endings() -> None:
    """From here on Ctrl-C and its kin are heard; what came while our modules were loaded (see `__main__`) comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run, and leave with the exit code: 0 done, 1 failed, 2 wrong usage, 3 refused documents, 130 interrupted."""
    from batuta.errors import BatutaError

    if os.environ.get("BATUTA_DEBUG") == "1":
        sys.exit(_exit_code(batuta.main(arguments, "batuta", standalone_mode=False)))
    try:
        code = _exit_code(batuta.main(arguments, "batuta", standalone_mode=False))
        sys.stdout.flush()
    except click.ClickException as error:
        _say_usage(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough, as in `batuta get nodes | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except BatutaError as error:
        code = _say(error)
    except Exception as error:  # The last resort: anything foreseen was caught above, and a traceback helps no user.
        _block(f"{type(error).__name__}: {error}", "this is a fault in Batuta itself", "report it with BATUTA_DEBUG=1")
        code = FAILED
    sys.exit(code)


def _exit_code(result: Any) -> int:
    """What a verb returned; Click hands an explicit `ctx.exit(n)` back as n."""
    return result if isinstance(result, int) else 0


def _say_usage(error: click.ClickException) -> None:
    context = getattr(error, "ctx", None)
    if context is not None:
        click.echo(context.get_usage(), err=True)
    _block(error.format_message(), "", f"see `{context.command_path} --help`" if context is not None else "")


def _say(error: Any) -> int:
    """An error that Batuta raised on purpose, as one block; returns the exit code it stands for."""
    from batuta.errors import Refused

    if isinstance(error, Refused):
        for problem in error.problems:
            click.echo(str(problem), err=True)
        count = len(error.problems)
        _block(f"refused: {count} problem{'s' if count != 1 else ''}", "", "correct it and try again; nothing changed")
        return REFUSED
    cause = error.__cause__
    _block(error.message, _plainly(cause) if cause is not None else "", error.next_step)
    return FAILED


def _plainly(cause: BaseException) -> str:
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)[:300]


def _block(what: str, why: str, next_step: str) -> None:
    """What happened, why, and what to do next."""
    from batuta.cli.text import painted

    click.echo(f"{painted('error', 'bad', err=True)}: {what}", err=True)
    if why:
        click.echo(f"  why:  {why}", err=True)
    if next_step:
        click.echo(f"  next: {next_step}", err=True)
