"""The pages on the command line and the configuration say what is there."""

import ast
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from folkmoot.cli.app import COMMANDS
from folkmoot.cli.config_file import SETTINGS
from folkmoot.cli.exits import ExitCode
from folkmoot.core import config

DOCS = Path(__file__).parent.parent.parent / "docs"
BEGIN, END = (
    "<!-- settings: `pytest tests/cli --rewrite` writes them -->\n",
    "<!-- settings end -->\n",
)


def meanings() -> dict[tuple[str, str], str]:
    """The strings below the fields in core/config.py; one below two of a kind is for both."""
    found: dict[tuple[str, str], str] = {}
    tree = ast.parse(Path(config.__file__).read_text())
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        fields: list[str] = []
        for node in owner.body:
            if isinstance(node, ast.AnnAssign):
                assert isinstance(node.target, ast.Name)
                fields.append(node.target.id)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and fields:
                text = " ".join(str(node.value.value).split()).replace("|", "\\|")
                found |= {
                    (owner.name, field): text for field in fields if field[:8] == fields[-1][:8]
                }
                fields = []
    return found


def settings_tables() -> Iterator[str]:
    texts = meanings()
    for table, settings in itertools.groupby(
        SETTINGS.values(), lambda setting: setting.path.rpartition(".")[0]
    ):
        yield f"\n### {f'`[{table}]`' if table else 'At the top of the file'}\n\n"
        yield "| setting | default | meaning |\n|---|---|---|\n"
        for setting in settings:
            given = "" if setting.default in (None, ()) else f" `{json.dumps(setting.default)}`"
            text = texts.get((setting.owner.__name__, setting.field.name), "")
            yield f"| `{setting.path}` |{given} | {text} |\n"
    yield "\n"


def test_every_setting_is_listed_with_default_and_meaning(rewrite: bool) -> None:
    path = DOCS / "configuration.md"
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page = before + BEGIN + "".join(settings_tables()) + END + after
    if rewrite:
        path.write_text(page)
    assert path.read_text() == page, "a setting has changed: pytest tests/cli --rewrite"


def test_every_exit_code_is_listed() -> None:
    page = (DOCS / "command-line.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \|", page, re.M)
    listed = {int(number) for row in rows for number in row.split(",")}
    assert listed == {*ExitCode} - {ExitCode.INTERRUPTED}, "130 is told as 128 + n"


def test_every_command_that_is_shown_exists() -> None:
    for page in ("command-line.md", "configuration.md", "operations.md"):
        text = (DOCS / page).read_text()
        for command in re.findall(r"^folkmoot (?:--config \S+ )?([a-z]+)", text, re.M):
            assert command in COMMANDS, f"{page}: {command}"
