"""The backends that are here, each run through the same tests."""

import gc
import os

import cuda_host
import pytest
import torch

import rhovae_kernels as rk
from rhovae_kernels import backends
from rhovae_kernels.ops.op import Op

try:
    from hypothesis import settings
except ImportError:
    # A GPU machine need not have it: the one test that draws its inputs is skipped.
    pass
else:
    # Two cores are shared by whatever runs beside the tests: no deadline on a single example.
    settings.register_profile("rhovae", deadline=None, max_examples=25, derandomize=True)
    settings.load_profile("rhovae")

# pytest-xdist's workers, and the processes that they start, share the cores: threads that spin
# while they wait for one another take a third of the time. The CPU's kernels are tested with two.
CORES = os.cpu_count() or 1
THREADS = max(1, min(2, CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))


def pytest_collection_finish():
    # Modules and tests stay to the end: looking them through for garbage, again and again, took two
    # fifths of the specification's loops over steps.
    gc.collect()
    gc.freeze()


# (backend, device): Triton on the CPU is its interpreter, `cuda_host` the CUDA kernels' executor.
PRESENT = [("reference", "cpu"), ("cpu", "cpu"), ("triton", "cpu"), ("cuda_host", "cpu")]
if torch.cuda.is_available():
    PRESENT += [("triton", "cuda")]
    if backends.missing("cuda", "cuda") is None:
        PRESENT += [("cuda", "cuda")]


@pytest.fixture(autouse=True)
def validated():
    """Distributions validate, as they do until torch.compile has run once in the process."""
    torch.distributions.Distribution.set_default_validate_args(__debug__)


@pytest.fixture(autouse=True)
def seeded():
    """Fresh weights and draws are the same in every run, and in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """Thousands of short operations: threads that wait for one another cost more than they add."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Backend:
    """One implementation on one device; `slow` where every call costs milliseconds, `interpreted`
    where each tile does, `compiled` where Triton makes a kernel for each form of the operands."""

    def __init__(self, name: str, device: str):
        self.name, self.device = name, device
        self.slow = device == "cpu" and name != "cpu"
        self.interpreted = device == "cpu" and name == "triton"
        self.compiled = device == "cuda" and name == "triton"


@pytest.fixture(scope="session")
def cuda_host_library():
    """Loads the CUDA kernels as the compiler makes them for the CPU."""
    if cuda_host.COMPILER is None:
        pytest.skip("g++, which compiles the CUDA kernels for the CPU, is not on this machine")
    torch.ops.load_library(cuda_host.library(cuda_host.OPTIMISED))


@pytest.fixture(params=PRESENT, ids=lambda p: f"{p[0]}-{p[1]}")
def backend(request, monkeypatch):
    name, device = request.param
    # What a module of tests says of the backends that its op is not written in.
    unwritten = getattr(request.module, "UNWRITTEN", {})
    # On a CPU the executor stands in for the CUDA kernels: what it has not, a GPU has not either.
    written_as = "cuda_host" if name == "cuda" else name
    if written_as in unwritten:
        pytest.skip(unwritten[written_as])
    if name == "cuda_host":
        # No backend of the package: it stands in for the one that is forced.
        request.getfixturevalue("cuda_host_library")
        monkeypatch.setattr(Op, "implementation", cuda_host.implementation)
    torch.set_num_threads(2 if name == "cpu" else THREADS)
    forced = "reference" if name == "cuda_host" else name
    if device == "cuda" and name in getattr(request.module, "BY_DEFAULT_ON_CUDA", ()):
        forced = None
    with rk.use_backend(forced):
        yield Backend(name, device)
    torch.set_num_threads(THREADS)
