"""`python -m folkmoot.cli`: the same program without an installed script."""

import sys

from folkmoot.cli import main

if __name__ == "__main__":
    sys.exit(main())
