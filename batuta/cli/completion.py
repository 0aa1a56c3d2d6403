"""`batuta completion`: the lines by which a shell completes our verbs, options and names."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete verbs, options, kinds and names.

    \b
    batuta completion bash > ~/.local/share/bash-completion/completions/batuta
    batuta completion zsh > ~/.zfunc/_batuta
    batuta completion fish > ~/.config/fish/completions/batuta.fish
    """
    from click.shell_completion import get_completion_class

    from batuta.cli.main import batuta

    found = get_completion_class(shell)
    assert found is not None
    # The text alone: asking for `source()` would run the shell to see how old it is, and it need not be here.
    complete = found(batuta, {}, "batuta", "_BATUTA_COMPLETE")
    click.echo(complete.source_template % complete.source_vars())
