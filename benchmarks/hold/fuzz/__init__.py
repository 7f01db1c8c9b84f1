"""Fuzzing: inputs that nobody wrote by hand against every parser of ours, each in a process that may die.

`python -m benchmarks.hold.fuzz decode --seconds 10` runs one target. The sections `fuzz_inputs` and `fuzz_wire` of
`benchmarks.hold.sections` run all of them and count.
"""
