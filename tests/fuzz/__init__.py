"""Random calls of every op: the CPU kernels against the specification.

A call is a pure function of (seed, number): what failed once fails again by itself.
`python -m fuzz` in `tests` is the program.
"""
