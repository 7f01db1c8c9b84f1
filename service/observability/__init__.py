"""Metrics, traces, and readings of GPUs."""
