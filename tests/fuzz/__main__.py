"""`python -m fuzz`: random calls from a seed on; says which call failed, and how to repeat it."""

import argparse
import collections
import sys
import traceback

import torch

from fuzz.check import run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--calls", type=int, default=2000)
    arguments = parser.parse_args(argv)
    made: collections.Counter[str] = collections.Counter()
    for number in range(arguments.first, arguments.first + arguments.calls):
        try:
            made[run(arguments.seed, number)] += 1
        except Exception:
            traceback.print_exc()
            print(f"failed: --seed {arguments.seed} --first {number} --calls 1")
            return 1
    print(f"{made.total()} calls, none wrong: " + ", ".join(f"{n} {op}" for op, n in made.items()))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
