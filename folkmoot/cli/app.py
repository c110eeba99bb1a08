"""The program: its list of commands, which load where they are used, and its one way to end.

`folkmoot --help` reads the table below and imports no command; a test holds the table and the
commands together. Whatever a command raises ends here: as one line, a hint and an exit code.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from folkmoot.cli.options import Options, common_options, write_options

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Try it": {
        "demo": ("folkmoot.cli.demo:demo", "Three servers at work; the leader is killed."),
        "up": ("folkmoot.cli.up:up", "Run a development cluster on this machine."),
    },
    "Look": {
        "status": ("folkmoot.cli.status:status", "Show members, leader, lag and load."),
        "ls": ("folkmoot.cli.directory:ls", "List resources."),
        "inspect": ("folkmoot.cli.directory:inspect", "Show all about one resource."),
    },
    "Data": {
        "get": ("folkmoot.cli.data:get", "Print a value of a map."),
        "set": ("folkmoot.cli.data:set_", "Set a value of a map."),
        "del": ("folkmoot.cli.data:delete", "Delete a key of a map."),
        "keys": ("folkmoot.cli.data:keys", "List the keys of a map."),
        "watch": ("folkmoot.cli.data:watch", "Follow the changes of a map."),
        "counter": ("folkmoot.cli.data:counter", "Read or change a counter."),
        "pub": ("folkmoot.cli.topics:pub", "Publish a message to a topic."),
        "sub": ("folkmoot.cli.topics:sub", "Follow the messages of a topic."),
    },
    "Coordinate": {
        "lock": ("folkmoot.cli.guard:lock", "Run a command while holding a lock."),
        "elect": ("folkmoot.cli.guard:elect", "Run a command while being the leader."),
    },
    "Operate": {
        "server": ("folkmoot.cli.server:server", "Run one server of a cluster."),
        "leader": ("folkmoot.cli.leader:leader", "Show or move the cluster's leadership."),
        "bench": ("folkmoot.cli.bench:bench", "Measure the cluster quickly."),
        "snapshot": ("folkmoot.cli.snapshot:snapshot", "Save, look at or restore a backup."),
        "log": ("folkmoot.cli.log:log", "Look at or verify a member's data directory."),
        "config": ("folkmoot.cli.config_command:config", "Show or check the configuration."),
        "completion": ("folkmoot.cli.about:completion", "Print a shell's completion script."),
        "version": ("folkmoot.cli.about:version", "Print the version."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Program(click.Group):
    """The outermost group: it imports a command only to run it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.common = common_options(environment=True)
        self.params.extend(self.common)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant, or say which one may have been."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by what they are for, then the options."""
        for heading, section in SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, text) for name, (_, text) in section.items()])
        write_options(self, self.common, ctx, formatter)


EPILOG = """\b
New here?   folkmoot demo
A cluster:  folkmoot up        then, elsewhere:  folkmoot set greetings me hello
"""

program = Program(
    name="folkmoot",
    help="Distributed maps, locks, elections, counters and topics on one Raft log.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def run(arguments: Sequence[str] | None = None, *, name: str | None = None) -> int:
    """Run one command line; print what went wrong; return the exit code. The only way out."""
    options = Options()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = program.main(
            args=None if arguments is None else list(arguments),
            prog_name=name or _program_name(),
            standalone_mode=False,
            obj=options,
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BaseException as error:  # noqa: BLE001 - everything ends here
        return _report(error, options)


def _program_name() -> str:
    name = os.path.basename(sys.argv[0])
    return name if name in {"folkmoot", "moot"} else "folkmoot"


def _report(error: BaseException, options: Options) -> int:
    from folkmoot.cli import exits

    leaves = list(exits.leaves(error))
    if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):
        # The reader of our output has gone, as in `folkmoot ls | head`: nothing to complain about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return exits.ExitCode.INTERRUPTED
    failure = exits.failure_of(error)
    if options.debug or failure is None:
        import traceback

        traceback.print_exception(error)
    if failure is None:
        print("folkmoot: this is a bug: please report the lines above", file=sys.stderr)
        return exits.ExitCode.INTERNAL
    if options.json:
        from folkmoot.cli.output import to_json

        print(to_json({"error": failure._asdict()}), file=sys.stderr)
    else:
        print(f"folkmoot: {failure.message}", file=sys.stderr)
        if failure.hint:
            print(f"  {failure.hint}", file=sys.stderr)
    return failure.exit_code
