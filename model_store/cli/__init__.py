"""The commands `mobilevision models ...`."""
