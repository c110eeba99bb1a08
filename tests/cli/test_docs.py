"""The pages on the command line and the configuration say what is there."""

import json
import re
from pathlib import Path

from folkmoot.cli.app import COMMANDS
from folkmoot.cli.config_file import SETTINGS
from folkmoot.cli.exits import ExitCode

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_every_setting_is_listed_with_its_default() -> None:
    page = (DOCS / "configuration.md").read_text()
    listed = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", page, re.M))
    shown = {
        path: "" if setting.default in (None, ()) else f"`{json.dumps(setting.default)}`"
        for path, setting in SETTINGS.items()
    }
    assert listed == shown


def test_every_exit_code_is_listed() -> None:
    page = (DOCS / "command-line.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \|", page, re.M)
    listed = {int(number) for row in rows for number in row.split(",")}
    assert listed == {*ExitCode} - {ExitCode.INTERRUPTED}, "130 is told as 128 + n"


def test_every_command_that_is_shown_exists() -> None:
    for page in ("command-line.md", "configuration.md"):
        text = (DOCS / page).read_text()
        for command in re.findall(r"^folkmoot (?:--config \S+ )?([a-z]+)", text, re.M):
            assert command in COMMANDS, f"{page}: {command}"
