"""The options that every command takes, before or after its name, and what they mean together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from folkmoot.cli.config_file import Given, Loaded
    from folkmoot.cli.output import Output

DEFAULT_URL = "folkmoot://127.0.0.1:7400"
DEFAULT_TIMEOUT_S = 10.0


class Options:
    """The common options of one run. Click makes it before the command and hands it over."""

    def __init__(self) -> None:
        self.url = DEFAULT_URL
        self.json = False
        self.timeout = DEFAULT_TIMEOUT_S
        """Seconds to wait for the cluster to be reached, and for an answer."""
        self.config: str | None = None
        self.debug = False
        self._output: Output | None = None

    @property
    def out(self) -> Output:
        """Where results go."""
        if self._output is None:
            from folkmoot.cli.output import Output

            self._output = Output(as_json=self.json)
        return self._output

    def load(self, flags: Mapping[str, Given] | None = None) -> Loaded:
        """Read the file of --config (if any) and the environment, and put `flags` above them.

        A relative `data_dir` in a file is relative to that file. Raises ConfigError.
        """
        from folkmoot.cli import config_file
        from folkmoot.core.errors import ConfigError

        document: dict[str, Given] = {}
        if self.config is not None:
            try:
                with open(self.config, encoding="utf-8") as file:
                    document = config_file.from_document(file.read(), self.config)
            except OSError as error:
                raise ConfigError(f"{self.config}: {error.strerror}") from None
            except UnicodeDecodeError as error:
                raise ConfigError(f"{self.config}: {error}") from None
            if (kept := document.get("data_dir")) and kept.value:
                path = os.path.join(os.path.dirname(os.path.abspath(self.config)), kept.value)
                document["data_dir"] = config_file.Given(path, kept.origin)
        environment = config_file.from_environment(os.environ)
        return config_file.build(document, environment, flags or {})


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None and parameter.name is not None:
        setattr(context.ensure_object(Options), parameter.name, value)


def common_options(*, environment: bool) -> list[click.Option]:
    """The options, anew. `environment` is for the outermost: inside, only what is typed counts."""

    def option(*names: str, env: str | None = None, **more: Any) -> click.Option:
        return click.Option(
            names,
            callback=_keep,
            expose_value=False,
            envvar=env if environment else None,
            default=None,
            **more,
        )

    positive = click.FloatRange(min=0, min_open=True)
    return [
        option(
            "--url",
            metavar="URL",
            env="FOLKMOOT_URL",
            help=f"The cluster's client addresses.  [FOLKMOOT_URL; default {DEFAULT_URL}]",
        ),
        option(
            "--json",
            is_flag=True,
            help="Print JSON: one document, or one per line of a stream.",
        ),
        option(
            "--timeout",
            type=positive,
            metavar="SECONDS",
            help=f"Wait this long for the cluster to answer.  [default {DEFAULT_TIMEOUT_S:g}]",
        ),
        option(
            "--config",
            metavar="FILE",
            env="FOLKMOOT_CONFIG",
            type=click.Path(dir_okay=False),
            help="Read settings from this TOML file.  [FOLKMOOT_CONFIG]",
        ),
        option("--debug", is_flag=True, help="Show the traceback of an error."),
    ]


class Command(click.Command):
    """A command that takes the common options too, shown apart from its own.

    One of its own may have the name of a common one: then it stands for something nearer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = {name for parameter in self.params for name in parameter.opts}
        self.common = [
            option for option in common_options(environment=False) if not own & {*option.opts}
        ]
        self.params.extend(self.common)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the common ones."""
        write_options(self, self.common, ctx, formatter)


class Group(click.Group):
    """A group of a few commands that belong together, such as `leader show` and `leader
    transfer`."""

    command_class = Command


def write_options(
    command: click.Command,
    common: list[click.Option],
    ctx: click.Context,
    formatter: click.HelpFormatter,
) -> None:
    """Write two lists of options: what this command alone takes, and what all take."""
    own = [parameter for parameter in command.get_params(ctx) if parameter not in common]
    for heading, parameters in (("Options", own), ("Common options", common)):
        records = [record for parameter in parameters if (record := parameter.get_help_record(ctx))]
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)
