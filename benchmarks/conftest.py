"""One benchmark is one comparison: its variants are timed in turns and kept together."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from harness import BUDGET, CLONE, ROUNDS, interleaved, machine

torch.set_num_threads(max(1, torch.get_num_threads()))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["rhovae"] = machine()


def pytest_terminal_summary(terminalreporter, config):
    """What each comparison took, in times ours: the figures of the documentation."""
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info for b in session.benchmarks if b.extra_info] if session else []
    if not rows:
        return
    terminalreporter.section("in times ours, medians of interleaved calls")
    for row in rows:
        milliseconds = dict(row["milliseconds"])
        ours = milliseconds.pop(row["ours"])
        others = ", ".join(f"{name} {ms / ours:.3g}" for name, ms in milliseconds.items())
        shape = "×".join(map(str, row["shape"]))
        what = f"{row['op']} {shape} {row['dtype']} {row['direction']}"
        terminalreporter.write_line(f"{what}: ours {ours:.4g} ms; {others}")


@pytest.fixture
def compare(benchmark):
    """compare(op, shape, variants, ours, limits): time, and keep the milliseconds of each variant.

    `limits` maps a variant to what our time may be at most, as a fraction of that variant's;
    `wrong` a variant whose result was wrong, and which is therefore not timed, to how wrong.
    With a `cost`, the clone of a tensor is timed too: it moves as many bytes, and allocates its
    output likewise. Its time, in percent of ours, is how near ours is to the limit.

    `rounds`, where hundredths matter, are how many times each is timed; `budget`, for how many
    seconds at most.
    """

    def run(
        op,
        shape,
        direction,
        dtype,
        variants,
        ours,
        limits,
        note="",
        wrong=None,
        cost=None,
        rounds=ROUNDS,
        budget=None,
    ):
        if cost is not None:
            variants = variants | {
                CLONE: torch.ones(cost.bytes_moved // 2, dtype=torch.uint8).clone
            }
        budget = BUDGET * rounds / ROUNDS if budget is None else budget
        milliseconds = interleaved(variants, rounds=rounds, budget=budget)
        if cost is not None:
            percent = 100 * milliseconds[CLONE] / milliseconds[ours]
            benchmark.extra_info["percent_of_limit"] = percent
        benchmark.extra_info.update(
            op=op,
            shape=list(shape),
            direction=direction,
            dtype=dtype,
            ours=ours,
            milliseconds=milliseconds,
            targets=limits,
            verified=True,
            note=note,
            wrong=wrong or {},
        )
        benchmark.pedantic(variants[ours], rounds=3, warmup_rounds=1)
        return milliseconds

    return run
