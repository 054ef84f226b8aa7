"""How a time is taken here: verified first, interleaved, medians.

Machines are shared and noisy, so the variants of one comparison are timed in turns, the order
rotated each round, two untimed calls before each timed one, and what counts is their ratio.
"""

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

# A variant stops being timed after this many seconds, but not before three rounds (one, where a
# single call takes longer than a second).
BUDGET = 3.0
ROUNDS = 101
# The limit of what is bound by memory, as a variant.
CLONE = "clone of as many bytes"


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    # Here, and not above: the suite for a GPU takes its times by these functions, and builds first.
    import rhovae_kernels as rk

    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            cpu = next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu: dict[str, object] = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    with suppress(PackageNotFoundError):
        gpu["triton"] = version("triton")
    return {
        **gpu,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rhovae_kernels": rk.__version__,
        "build": rk.build_info(),
    }


class WrongResult(AssertionError):
    """A variant computes something else: it gets no time."""


def verify(actual, expected, bound: float = 1e-4) -> None:
    """Raise `WrongResult` where a tensor is off by more than `bound` of its largest value."""
    for a, e in zip(actual, expected, strict=True):
        error = (a.double() - e.double()).abs().max().item()
        scale = e.double().abs().max().item()
        if not error <= bound * scale:
            raise WrongResult(f"wrong by {error:.3g} where the largest value is {scale:.3g}")


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def interleaved(
    variants: dict[str, Callable[[], object]],
    clock: Callable[[Callable[[], object]], float] = wall_clock,
    rounds: int = ROUNDS,
    budget: float = BUDGET,
    within: Callable[[str], AbstractContextManager] = lambda name: nullcontext(),
) -> dict[str, float]:
    """The median time of one call of each variant, in milliseconds.

    Args:
        variants: what is called, by name.
        clock: takes a call; the seconds that it took.
        rounds: how many times each is timed, at most.
        budget: seconds after which a variant stops being timed; see `BUDGET`.
        within: gives for a name the context in which that variant is called.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    spent = dict.fromkeys(variants, 0.0)
    names = list(variants)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            taken = times[name]
            enough = 1 if taken and taken[0] > 1 else 3
            if spent[name] > budget and len(taken) >= enough:
                continue
            with within(name):
                start = time.perf_counter()
                variants[name]()
                if time.perf_counter() - start < 1:
                    variants[name]()
                taken.append(clock(variants[name]))
                spent[name] += time.perf_counter() - start
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def forward_backward(function: Callable, inputs: list[Tensor], upstream) -> Callable[[], object]:
    """A call of `function` and the gradients of its outputs with respect to `inputs`."""

    def call():
        outputs = function()
        return torch.autograd.grad(outputs, inputs, upstream)

    return call
