"""`python -m folkmoot.cli`: the same program without an installed script."""

from folkmoot.cli import main

if __name__ == "__main__":
    main()
