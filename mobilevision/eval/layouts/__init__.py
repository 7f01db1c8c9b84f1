"""Readers of data sets, one module per kind of layout: a folder and labels in, samples with their truth out."""

SPLITS = ("val", "valid", "validation", "test")  # folders of pictures to measure on, in the order they are looked for
