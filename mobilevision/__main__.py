"""`python -m mobilevision`: the `mobilevision` command."""

from mobilevision.cli.main import main

if __name__ == "__main__":
    main()
