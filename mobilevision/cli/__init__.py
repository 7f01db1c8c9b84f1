"""The `mobilevision` command."""
