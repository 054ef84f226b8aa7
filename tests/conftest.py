"""The backends that are here, each run through the same tests."""

import os

import pytest
import torch
from hypothesis import settings

import rhovae_kernels as rk
from rhovae_kernels import backends

# Two cores are shared by whatever runs beside the tests: no deadline on a single example.
settings.register_profile("rhovae", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("rhovae")

torch.set_num_threads(min(2, os.cpu_count() or 1))

# (backend, device): Triton on the CPU is its interpreter.
PRESENT = [("reference", "cpu"), ("cpu", "cpu"), ("triton", "cpu")]
if torch.cuda.is_available():
    PRESENT += [("triton", "cuda")]
    if backends.missing("cuda", "cuda") is None:
        PRESENT += [("cuda", "cuda")]


class Backend:
    """One implementation on one device; `slow` where every call costs milliseconds."""

    def __init__(self, name: str, device: str):
        self.name, self.device = name, device
        self.slow = (name, device) in (("reference", "cpu"), ("triton", "cpu"))


@pytest.fixture(params=PRESENT, ids=lambda p: f"{p[0]}-{p[1]}")
def backend(request):
    name, device = request.param
    with rk.use_backend(name):
        yield Backend(name, device)
