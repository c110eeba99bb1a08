"""`python -m folkmoot`: the command line."""

from __future__ import annotations

from folkmoot.cli import main

if __name__ == "__main__":
    main()
