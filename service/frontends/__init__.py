"""Fronts: translate the calls of a protocol to the pipeline, and its results back."""
