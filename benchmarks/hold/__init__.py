"""Shows that a server holds: hostile input, faults under load, attackers beside honest callers, a soak.

`python -m benchmarks.hold` runs the sections and writes docs/reliability.md. Each section is a module in
`benchmarks.hold.sections`.
"""
