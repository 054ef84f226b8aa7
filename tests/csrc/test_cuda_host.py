"""The executor that runs the CUDA kernels' sources on the CPU: it works, and it catches bugs.

The contract runs over it too, as one more backend: the tests with `cuda_host` in their names.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_host
import pytest
import torch
from contract import normal
from cuda_host.exercise import CONTRACTS

from rhovae_kernels import backends
from rhovae_kernels.ops.op import REGISTRY

pytestmark = pytest.mark.skipif(
    cuda_host.COMPILER is None,
    reason="g++, which compiles the CUDA kernels for the CPU, is not on this machine",
)

on_the_executor = pytest.mark.parametrize(
    "backend", [("cuda_host", "cpu")], indirect=True, ids=["cuda_host-cpu"]
)


# The executor by itself.


def build_probe(folder: Path, flags: list[str]):
    """Runs a kernel of probes.cpp on two warps: (what the executor said, four numbers a lane)."""
    target, source = folder / "probes.so", cuda_host.HERE / "probes.cpp"
    command = [cuda_host.COMPILER, *cuda_host.FLAGS, "-shared", str(source), "-o", str(target)]
    command += flags
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(target)).probe
    function.restype = ctypes.c_char_p

    def run(kernel: str) -> tuple[str, list[list[int]]]:
        out = (ctypes.c_int * 256)()
        said = function(kernel.encode(), out).decode()
        return said, [list(out[i : i + 4]) for i in range(0, 256, 4)]

    return run


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    return build_probe(tmp_path_factory.mktemp("probe"), [])


@pytest.fixture(scope="module")
def probe_of_races(tmp_path_factory):
    return build_probe(tmp_path_factory.mktemp("probe_of_races"), cuda_host.RACES)


def test_cuda_host_shuffles_reach_within_their_width(probe):
    said, lanes = probe("exchanges")
    assert said == ""
    for i, (up, down, flipped, sixth) in enumerate(lanes):
        assert up == (i - 3 if i % 8 >= 3 else i)
        assert down == (i + 3 if i % 8 + 3 < 8 else i)
        assert flipped == i ^ 5
        assert sixth == i - i % 16 + 6


def test_cuda_host_votes_count_the_lanes_of_their_warp(probe):
    said, lanes = probe("votes")
    assert said == ""
    assert lanes[:32] == [[7, 0, 1, 65]] * 32
    assert lanes[32:] == [[7, 1, 0, 65]] * 32


def test_cuda_host_lanes_without_a_barrier_run_in_no_order(probe):
    said, lanes = probe("missing_barrier")
    read = [x for lane in lanes for x in lane][:64]
    assert said == ""
    # Of two lanes that read what the other writes, one comes first and finds what a block finds.
    assert all({x, y} == {1, -1} for x, y in zip(read, reversed(read), strict=True))


def test_cuda_host_fills_shared_memory_with_nan_before_a_block(probe):
    said, lanes = probe("never_written")
    assert said == "" and lanes == [[1, 1, 1, 1]] * 64


@pytest.mark.parametrize("flags,contracted", [([], 0), (cuda_host.FUSED, 1)], ids=["plain", "fma"])
def test_cuda_host_contracts_products_and_sums_where_it_is_told_to(tmp_path, flags, contracted):
    said, lanes = build_probe(tmp_path, flags)("product_and_sum")
    assert said == "" and lanes[:16] == [[contracted] * 4] * 16


@pytest.mark.parametrize(
    "kernel",
    ["missing_barrier", "read_without_a_barrier", "one_place_for_all", "a_shuffle_is_no_barrier"],
)
def test_cuda_host_sees_a_race_on_shared_memory(probe_of_races, kernel):
    assert "a race" in probe_of_races(kernel)[0]


def test_cuda_host_sees_no_race_where_barriers_stand(probe_of_races):
    said, lanes = probe_of_races("with_barriers")
    assert said == ""
    assert [x for lane in lanes for x in lane][:64] == [(i + 1) % 64 + 4 for i in range(64)]


def test_cuda_host_shared_memory_that_is_asked_for_holds_nan_in_every_block(probe):
    said, lanes = probe("asked_for")
    assert said == ""
    assert [x for lane in lanes for x in lane][:64] == [0xFF] * 64


@pytest.mark.parametrize(
    "kernel,message",
    [
        ("barrier_of_some", "not all lanes reach"),
        ("shuffle_of_some", "not all lanes reach"),
        ("two_barriers", "different barriers"),
        ("two_shuffles", "different shuffles"),
        ("two_distances", "distance"),
        ("half_a_mask", "a mask leaves lanes"),
        ("part of a warp", "no whole number of warps"),
        ("too many threads", "more threads or blocks"),
        ("too many blocks", "more threads or blocks"),
    ],
)
def test_cuda_host_refuses_what_cuda_leaves_undefined(probe, kernel, message):
    assert message in probe(kernel)[0]


# The kernels on it.


@on_the_executor
def test_the_backend_cuda_host_is_the_cuda_kernels(backend):
    chosen = backends.select(REGISTRY["linear_scan"], "cpu")
    assert chosen is torch.ops.rhovae_cuda.linear_scan.default
    assert backend.device == "cpu"


@on_the_executor
@pytest.mark.parametrize("op", CONTRACTS)
@pytest.mark.parametrize("rows,ranges", [(5, 1), (2, 2), (1, 3)])
def test_rows_split_over_several_blocks_match_on_cuda_host(backend, monkeypatch, op, rows, ranges):
    # 13 tiles of 512 elements, the last one short. A multiprocessor wants four blocks, and a range
    # has four tiles or more.
    monkeypatch.setenv("RHOVAE_HOST_MULTIPROCESSORS", "1")
    contract = CONTRACTS[op]().on(backend.name)
    for variant, inputs in contract.each_variant((rows,), 6201, torch.float64, "cpu"):
        contract.check(inputs, torch.float64, f"{variant}, {ranges} ranges")


@on_the_executor
def test_no_order_of_lanes_or_blocks_changes_a_bit_on_cuda_host(backend, monkeypatch):
    contract = CONTRACTS["ar1_reparam"]().on(backend.name)
    inputs = contract.inputs("per_element", (2,), 9001, torch.float32)
    upstream = contract.upstream(contract.call(*inputs))
    results = []
    for seed in (1, 2, 3):
        monkeypatch.setenv("RHOVAE_HOST_SEED", str(seed))
        gradients = contract.gradients(contract.call, inputs, upstream)
        results.append((*contract.call(*inputs), *gradients))
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


@on_the_executor
def test_a_hundred_thousand_steps_hold_their_digits_on_cuda_host(backend, monkeypatch):
    from scipy.signal import lfilter

    monkeypatch.setenv("RHOVAE_HOST_MULTIPROCESSORS", "320")
    tokens = normal((1,), 100_003, torch.float32, "cpu", 0)
    exact = torch.from_numpy(lfilter([1.0], [1.0, -0.9375], tokens[0].double().numpy()))
    gates = torch.full((1, 1), 0.9375)  # exact in float32
    for given in (gates, gates.expand_as(tokens)):
        states = torch.ops.rhovae.linear_scan(given, tokens)[0]
        assert (states.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


# In a process of its own: what may crash, or wants AddressSanitizer loaded first.


def run_in_a_process(library: Path, ops, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(cuda_host.HERE / "exercise.py"), str(library), *ops],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def under_sanitizers(library: Path, ops) -> subprocess.CompletedProcess:
    runtimes = [
        subprocess.run(
            [cuda_host.COMPILER, f"-print-file-name={name}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return run_in_a_process(
        library, ops, LD_PRELOAD=" ".join(runtimes), ASAN_OPTIONS="detect_leaks=0"
    )


@pytest.mark.gate
def test_under_address_and_undefined_behaviour_sanitizers_cuda_host_is_clean():
    result = under_sanitizers(
        cuda_host.library(cuda_host.SANITIZED), [*CONTRACTS, "philox", "made_inverse"]
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "all results match" in result.stdout


@pytest.mark.gate
@pytest.mark.parametrize("flags", [cuda_host.FUSED, cuda_host.RACES], ids=["fma", "races"])
def test_contracted_and_watched_for_races_cuda_host_is_right(flags):
    result = run_in_a_process(cuda_host.library(flags), [*CONTRACTS, "philox", "made_inverse"])
    assert result.returncode == 0, result.stderr[-4000:]
    assert "all results match" in result.stdout


# Planted bugs, each in a copy of the sources: (name, file, what it says there, what it is made to
# say, which of the places that say so).

PLANTED = [
    ("a tail one too long", "rows.cuh", "min(n - first,", "min(n - first + 1,", 0),
    ("a tail one too short", "rows.cuh", "min(n - first,", "min(n - first - 1,", 0),
    ("a shuffle from the wrong lane", "group.cuh", "kReverse ? 0 : width_ - 1", "0", 0),
    ("a step of the scan left out", "group.cuh", "place >= distance", "place > distance", 0),
    ("one buffer in place of two", "group.cuh", "return turn_ ^= 1;", "return 0;", 0),
    ("a barrier of some", "group.cuh", "__syncthreads();", "if (is_last()) __syncthreads();", 0),
    (
        "a shuffle of some",
        "group.cuh",
        "= kReverse ? from",
        "= is_last() ? T(0) : kReverse ? from",
        0,
    ),
]
for path in sorted((cuda_host.CSRC / "cuda").iterdir()):
    for n in range(path.read_text().count("__syncthreads();")):
        PLANTED.append((f"barrier {n} of {path.name}", path.name, "__syncthreads();", ";", n))


def plant(folder: Path, file: str, before: str, after: str, place: int, flags) -> tuple[Path, list]:
    """Compiles a copy of the sources with this bug: the library, and the ops that it has."""
    shutil.copytree(cuda_host.CSRC, folder / "csrc")
    source = folder / "csrc" / "cuda" / file
    parts = source.read_text().split(before)
    assert len(parts) > place + 1, f"{file} no longer has the place that the bug goes to"
    source.write_text(after.join(before.join(x) for x in (parts[: place + 1], parts[place + 1 :])))
    library = folder / "planted.so"
    # The scans use everything in the headers.
    ops = {"ar1.cu": "ar1_reparam", "made_inverse.cu": "made_inverse"}
    kernels = file if file in ops else "linear_scan.cu"
    cuda_host.compile_library(library, flags, folder / "csrc", kernels)
    return library, [ops.get(file, "linear_scan")]


@pytest.mark.gate
@pytest.mark.parametrize(
    "file,before,after,place", [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED]
)
def test_a_planted_bug_is_caught_by_cuda_host(tmp_path, file, before, after, place):
    result = run_in_a_process(*plant(tmp_path, file, before, after, place, cuda_host.RACES))
    # By a race, a wrong result, the executor's refusal, or a crash where memory was overrun.
    said = re.search("exceeds the bound|cuda_host: ", result.stderr)
    assert result.returncode != 0 and (said or result.returncode < 0), result.stderr[-2000:]
    # A barrier or a buffer fewer; those of made_inverse.cu are of global memory too.
    if after in (";", "return 0;") and file != "made_inverse.cu":
        assert "a race" in result.stderr, result.stderr[-2000:]


@pytest.mark.gate
def test_without_a_bug_the_same_copy_passes_on_cuda_host(tmp_path):
    result = run_in_a_process(*plant(tmp_path, "rows.cuh", "x.wide", "x.wide", 0, ["-O0"]))
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.gate
@pytest.mark.parametrize(
    "before,after,message",
    [
        ("min(n - first,", "min(n - first + 1,", "heap-buffer-overflow"),
        ("reinterpret_cast<uintptr_t>(rows.data) % 16 == 0", "true", "misaligned address"),
    ],
    ids=["a tail one too long", "wide loads of what is not aligned"],
)
def test_sanitizers_see_what_memory_cuda_host_touches(tmp_path, before, after, message):
    planted = plant(tmp_path, "rows.cuh", before, after, 0, cuda_host.SANITIZED)
    result = under_sanitizers(*planted)
    assert result.returncode != 0
    assert message in result.stderr, result.stderr[-2000:]
