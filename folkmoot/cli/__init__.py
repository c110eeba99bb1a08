"""The command line: `folkmoot`, short `moot`.

Only this function is imported to start: everything else, click included, loads where it is used.
"""

from typing import NoReturn


def main() -> NoReturn:
    """Run the command that the process was started with; exit as it says."""
    from folkmoot.cli.app import run

    raise SystemExit(run())
