"""The command line: `folkmoot`, short `moot`.

Only this function is imported to start: everything else, click included, loads where it is used.
"""


def main() -> int:
    """Run the command that the process was started with; return its exit code."""
    from folkmoot.cli.app import run

    return run()
