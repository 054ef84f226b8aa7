"""The fuzzer: 2,000 calls of it, and that it finds what it is to find."""

import pytest
import torch

from fuzz.__main__ import main
from fuzz.calls import OPS
from fuzz.check import Mismatch, call, run
from fuzz.draw import Draw
from rhovae_kernels import backends
from rhovae_kernels.ops.op import Op

CALLS = 2000


def test_two_thousand_random_calls_match_the_specification(capsys):
    assert main(["--calls", str(CALLS)]) == 0, capsys.readouterr()
    assert f"{CALLS} calls, none wrong" in capsys.readouterr().out


@pytest.mark.parametrize("op", OPS)
def test_a_call_is_a_function_of_its_seed_and_number(op):
    one, other, third = (OPS[op].arguments(Draw(*call)) for call in ((3, 7), (3, 7), (3, 8)))
    assert str(one) == str(other) != str(third)


@pytest.mark.parametrize(
    "op,seed,number",
    [
        pytest.param("markov_smooth", 31, 54527, id="a gradient of a row whose terms cancel"),
        pytest.param("markov_smooth", 61, 70615, id="a mean below the least normal float16"),
        pytest.param("markov_smooth", 61, 161368, id="a step that alone tells of the one before"),
        pytest.param("made_inverse", 81, 1254, id="a spline at its bound"),
        pytest.param(
            "rq_spline", 52, 972, id="a place in a bin that is hardly wider than rounding"
        ),
    ],
)
def test_a_call_that_was_misjudged_is_right(op, seed, number):
    call(op, Draw(seed, number))


def spoiled(op, spoil):
    """The implementation of every op, what `op` returns first being changed by `spoil`."""
    implementation = Op.implementation

    def other(self, backend):
        kernel = implementation(self, backend)
        if self.name != op or backend == "reference":
            return kernel

        def wrong(*args):
            results = kernel(*args)
            first = results[0] if isinstance(results, tuple) else results
            if first.numel():
                spoil(first.view(-1))
            return results

        return wrong

    return other


def off_by_a_hundredth(x):
    x[-1] = x[-1] * 1.01 + 0.1 if x.is_floating_point() else x[-1] + 1


def not_written(x):
    x[-1] = torch.nan if x.is_floating_point() else 0


@pytest.mark.parametrize("spoil", [off_by_a_hundredth, not_written], ids=lambda f: f.__name__)
@pytest.mark.parametrize("op", [*OPS, "linear_scan_backward", "masked_linear_backward"])
def test_a_wrong_element_is_found(monkeypatch, capsys, op, spoil):
    monkeypatch.setattr(Op, "implementation", spoiled(op, spoil))
    number = list(OPS).index(op.removesuffix("_backward"))
    backends.use_backend(None)
    found = 0
    for i in range(number, number + 300, len(OPS)):
        try:
            run(0, i)
        except Mismatch:
            found += 1
    monkeypatch.undo()
    backends.use_backend(None)
    assert found


def test_the_call_that_failed_is_printed_and_fails_again_by_itself(monkeypatch, capsys):
    monkeypatch.setattr(Op, "implementation", spoiled("iaf_gate", off_by_a_hundredth))
    with backends.use_backend(None):
        assert main(["--seed", "5", "--calls", "40"]) == 1
        said = capsys.readouterr().out.splitlines()[-1]
        assert said.startswith("failed: --seed 5 --first ")
        assert main(said.removeprefix("failed: ").split()) == 1
    monkeypatch.undo()
    backends.use_backend(None)
    assert main(said.removeprefix("failed: ").split()) == 0
