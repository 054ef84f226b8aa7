"""How often Triton would compile a kernel anew: counted as it counts, without a GPU.

A kernel is compiled for each set of types, constants and classes of integers (1, a multiple of 16,
any other) and of pointers (aligned to 16 bytes or not) that it meets: seconds each time.
"""

from collections import defaultdict

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
from test_cost import CALLS, arguments  # noqa: E402
from torch import Tensor  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import make_backend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

import rhovae_kernels as rk  # noqa: E402
from rhovae_kernels.triton import interpreter  # noqa: E402

OPS = torch.ops.rhovae
BACKEND = make_backend(GPUTarget("cuda", 90, 32))

ROWS = [1, 2, 16, 33]
# A tile each, of a multiple of 16 or not, and a loop over tiles.
COLUMNS = [1, 16, 37, 100, 256, 2048]


class Recorder:
    """Stands in for `interpreter.interpreted`: records what a launch would be compiled for."""

    def __init__(self):
        self.seen: dict[str, set] = defaultdict(set)

    def __call__(self, kernel):
        bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)

        class Launcher:
            def __getitem__(_, grid):
                def run(*args, **constants):
                    _, key, _ = bind(*args, **constants)
                    names = (parameter.name for parameter in kernel.params)
                    # Of a few rows, long ones are cut into chunks, of many none.
                    self.seen[kernel.__name__].add(
                        tuple(
                            str(x)
                            for name, x in zip(names, key, strict=True)
                            if not name.startswith("chunk")
                        )
                    )

                return run

        return Launcher()


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    monkeypatch.setattr(interpreter, "interpreted", found)
    with rk.use_backend("triton"), torch.no_grad():
        yield found


def slices(x):
    """The same values in rows two elements apart: the first half of an encoder's outputs."""
    if not isinstance(x, Tensor) or x.dim() < 2:
        return x
    return torch.nn.functional.pad(x, (0, 2))[..., : x.shape[-1]]


def call(op: str, rest: tuple, rows: int, columns: int, sliced: bool = False) -> None:
    args = arguments(op, (rows, columns), torch.float32, False, rest)
    getattr(OPS, op)(*(slices(x) if sliced else x for x in args))


@pytest.mark.parametrize("columns", [37, 256, 2048])
@pytest.mark.parametrize("op,rest", CALLS, ids=str)
def test_another_number_of_rows_compiles_nothing_anew(op, rest, columns, recorder):
    call(op, rest, 8, columns)
    before = {name: len(keys) for name, keys in recorder.seen.items()}
    for rows in ROWS:
        call(op, rest, rows, columns)
    assert {name: len(keys) for name, keys in recorder.seen.items()} == before


def test_another_batch_compiles_no_masked_linear_anew(recorder):
    weight, prefix = torch.ones(40, 24), torch.arange(40).clamp(max=24).int()
    for rows in ROWS:
        OPS.masked_linear(torch.ones(rows, 24), weight, None, prefix)
    assert {name: len(keys) for name, keys in recorder.seen.items()} == {"_forward": 1}


@pytest.mark.parametrize("op,rest", CALLS, ids=str)
def test_all_shapes_and_layouts_take_few_specialisations(op, rest, recorder):
    for columns in COLUMNS:
        call(op, rest, 16, columns)
        call(op, rest, 16, columns, sliced=True)
    for name, keys in recorder.seen.items():
        # A tile, or a loop over them, by contiguous rows of either class, or slices of either.
        assert len(keys) <= 12, f"{name}: {len(keys)}"
