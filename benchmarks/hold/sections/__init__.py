"""The sections of docs/reliability.md: one module each, with one function `run`."""
