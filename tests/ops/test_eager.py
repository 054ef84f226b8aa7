"""The front doors' short way: taken in plain eager mode alone, and with the same effect."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import rhovae_kernels as rk
from rhovae_kernels.ops import eager

PACKAGE = Path(rk.__file__).parent
PRIVATE = (*eager.SHORT_WAY, *eager.OTHERS)


def arguments():
    return torch.rand(2, 1), torch.rand(2, 3, requires_grad=True)


class Intercepting:
    def __init__(self):
        super().__init__()
        self.seen = []

    def intercept(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Functions(Intercepting, TorchFunctionMode):
    __torch_function__ = Intercepting.intercept


class Dispatches(Intercepting, TorchDispatchMode):
    __torch_dispatch__ = Intercepting.intercept


class Subclass(torch.Tensor):
    seen: list[str]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Subclass.seen.append(str(function))
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("mode", [Functions, Dispatches])
def test_a_mode_sees_the_op(mode):
    gates, tokens = arguments()
    with mode() as intercepting:
        rk.ops.linear_scan(gates, tokens)
    assert any("rhovae.linear_scan" in name for name in intercepting.seen)


def test_a_tensor_subclass_sees_the_op_and_keeps_its_type():
    gates, tokens = arguments()
    Subclass.seen = []
    states = rk.ops.linear_scan(gates, tokens.detach().as_subclass(Subclass))
    assert any("rhovae.linear_scan" in name for name in Subclass.seen)
    assert type(states) is Subclass


def test_a_profiler_sees_the_op():
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        rk.ops.linear_scan(*arguments())
    assert "rhovae::linear_scan" in {event.key for event in recorded.key_averages()}


def test_a_traced_function_holds_the_op():
    # (torch.jit.trace is on its way out, but is what older exporters record with.)
    with pytest.warns((DeprecationWarning, FutureWarning)):  # the latter from torch 2.14 on
        traced = torch.jit.trace(rk.ops.linear_scan, tuple(x.detach() for x in arguments()))
    assert "rhovae::linear_scan" in str(traced.graph)


def test_autocast_casts():
    gates, tokens = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        assert rk.ops.linear_scan(gates.bfloat16(), tokens.bfloat16()).dtype == torch.float32


def test_below_autograd_nothing_is_recorded():
    with torch._C._AutoDispatchBelowAutograd():
        assert not rk.ops.linear_scan(*arguments()).requires_grad


def test_forward_mode_gives_a_tangent():
    gates, tokens = (x.detach() for x in arguments())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tokens, torch.ones_like(tokens))
        tangent = forward_ad.unpack_dual(rk.ops.linear_scan(gates, dual)).tangent
    torch.testing.assert_close(tangent, rk.ops.linear_scan(gates, torch.ones_like(tokens)))


def test_with_and_without_the_dispatcher_values_gradients_and_names_are_the_same():
    gates, tokens = arguments()
    short = rk.ops.linear_scan(gates, tokens)
    long = torch.ops.rhovae.linear_scan(gates, tokens)
    assert torch.equal(short, long) and type(short.grad_fn) is type(long.grad_fn)
    (one,), (other,) = (torch.autograd.grad(x.square().sum(), tokens) for x in (short, long))
    assert torch.equal(one, other)
    with torch.no_grad():
        assert not rk.ops.linear_scan(gates, tokens).requires_grad
    with torch.inference_mode():
        assert rk.ops.linear_scan(gates, tokens).is_inference()


def test_what_is_no_tensor_is_refused_by_name():
    gates, tokens = arguments()
    for name in ("cpu", "reference", "triton"):
        with rk.use_backend(name):
            with pytest.raises(ValueError, match="gates is None; it must be of type Tensor"):
                rk.ops.linear_scan(None, tokens)
            with pytest.raises(ValueError, match="bias is 0; it must be of type Optional"):
                rk.ops.masked_linear(tokens, tokens, 0, gates)
            with pytest.raises(ValueError, match="reverse is 'yes'; it must be of type bool"):
                rk.ops.linear_scan(gates, tokens, "yes")


def test_a_tensor_that_a_closed_transform_left_behind_is_differentiated():
    kept = []

    def keep(x):
        kept.append(x)
        return (x * x).sum()

    gates, tokens = arguments()
    torch.func.vjp(keep, tokens)
    states = rk.ops.linear_scan(gates, kept[0])
    torch.testing.assert_close(states, rk.ops.linear_scan(gates, tokens))
    assert torch.equal(
        torch.autograd.grad(states.sum(), tokens)[0],
        torch.autograd.grad(rk.ops.linear_scan(gates, tokens).sum(), tokens)[0],
    )


def test_a_front_door_that_was_never_called_is_compiled():
    code = (
        "import torch, rhovae_kernels as rk\nx = torch.ones(3)\n"
        "scan = torch.compile(rk.ops.linear_scan, fullgraph=True, backend='eager')\n"
        "print(scan(x, x).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout == "[1.0, 2.0, 3.0]\n", run.stderr


@pytest.fixture(scope="module")
def outcomes():
    """By private name, what is absent where torch lacks it, and what the ops then compute."""
    program = Path(__file__).with_name("without_a_name.py")
    command = [sys.executable, str(program), "", *PRIVATE]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    # Not that nothing was said: some versions of torch warn of what they call themselves.
    assert run.returncode == 0, run.stderr
    lines = map(json.loads, run.stdout.splitlines())
    return {name: outcome for name, *outcome in lines}


@pytest.mark.parametrize("name", PRIVATE)
def test_where_torch_lacks_a_private_name_the_results_are_the_same(name, outcomes):
    absent, through_the_dispatcher, results = outcomes[name]
    assert absent == [name]
    assert through_the_dispatcher == (name in eager.SHORT_WAY)
    absent, through_the_dispatcher, expected = outcomes[""]
    assert (absent, through_the_dispatcher) == ([], False)
    if name.rpartition(".")[2] in ("get_interpreter_stack", "TransformType"):
        # How many levels of forward mode there are is unknown: torch.func gets none, never a zero.
        refused = ("forward_mode_of_a_transform", "forward_mode_twice")
        for result in refused:
            assert "forward mode under torch.func is not supported" in results[result]
        expected = expected | {result: results[result] for result in refused}
    assert results == expected


def private_names_of_torch(path):
    """The private names that a file imports from torch, or reaches through what it imports."""

    def is_private(name):
        return name.startswith("_") and not name.startswith("__")

    tree = ast.parse(path.read_text())
    imported, found = {"torch"}, set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            parts = [*(getattr(node, "module", None) or "").split("."), *alias.name.split(".")]
            if next(filter(None, parts)) == "torch":
                imported.add(alias.asname or parts[-1])
                found.update(filter(is_private, parts))
    of_instances = {name.rpartition(".")[2] for name in PRIVATE} | {"_schema"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            through_torch = isinstance(root, ast.Name) and root.id in imported
            if through_torch or node.attr in of_instances:
                found.add(node.attr)
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_other_file_touches_private_names_of_torch(path):
    listed = {name.rpartition(".")[2] for name in PRIVATE} if path.stem == "eager" else set()
    assert private_names_of_torch(path) <= listed
