"""`version` and `completion`: what a user asks of the program itself."""

from __future__ import annotations

import platform
import sys

import click

from folkmoot.cli.options import Command, Options


@click.command(cls=Command)
@click.pass_obj
def version(options: Options) -> None:
    """Print the version of folkmoot and of the Python that runs it."""
    from importlib.metadata import version as installed

    data = {
        "folkmoot": installed("folkmoot"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    text = f"folkmoot {data['folkmoot']} (Python {data['python']}, {data['platform']})"
    options.out.show(data, text)


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  folkmoot completion bash > ~/.local/share/bash-completion/completions/folkmoot
    zsh:   folkmoot completion zsh > "${fpath[1]}/_folkmoot"
    fish:  folkmoot completion fish > ~/.config/fish/completions/folkmoot.fish
    """
    from click.shell_completion import get_completion_class

    root = context.find_root()
    name = root.info_name or "folkmoot"
    kind = get_completion_class(shell)
    assert kind is not None, f"click has no completion for {shell}"
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    sys.stdout.write(kind(root.command, {}, name, variable).source() + "\n")
