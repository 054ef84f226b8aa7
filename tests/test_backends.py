"""Which implementation runs, how one is forced, and what is said where none is there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rhovae_kernels as rk
from rhovae_kernels import backends
from rhovae_kernels.ops import eager
from rhovae_kernels.ops.op import REGISTRY, Op, public_ops

ROOT = Path(__file__).resolve().parent.parent
SCAN = "import torch, rhovae_kernels as rk; print(rk.ops.linear_scan(torch.ones(1), torch.ones(3)))"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def scan():
    return rk.ops.linear_scan(torch.tensor([0.5]), torch.ones(3))


def test_the_default_on_the_cpu_is_the_compiled_backend():
    with rk.use_backend(None):
        assert backends.choose("cpu") == ("cpu", backends.DEFAULTS["cpu"][0][1])
        assert {row.backend for row in backends.report(public_ops()) if row.device == "cpu"} == {
            "cpu"
        }


def test_a_block_forces_a_backend_and_gives_back_what_was_there(monkeypatch):
    used = []
    original = Op.implementation

    def implementation(op, backend):
        used.append(backend)
        return original(op, backend)

    monkeypatch.setattr(Op, "implementation", implementation)
    with rk.use_backend("reference"):
        with rk.use_backend("cpu"):
            scan()
        scan()
        assert used == ["cpu", "reference"]


def test_one_object_can_be_entered_again_and_within_itself():
    with rk.use_backend("cpu"):
        again = rk.use_backend("reference")
        for _ in range(2):
            with again:
                with again:
                    assert backends.choose("cpu")[0] == "reference"
                assert backends.choose("cpu")[0] == "reference"
            assert backends.choose("cpu")[0] == "cpu"


def test_an_instruction_set_that_is_none_is_named():
    ended = python(SCAN, RHOVAE_CPU_TARGET="avx1024")
    assert ended.returncode != 0
    assert "RHOVAE_CPU_TARGET is 'avx1024'; it must be baseline, avx2 or avx512" in ended.stderr


# What the compiled code of each instruction set is asked for: those rooms whose C++ is compiled for
# each, and of their tests the values, in each type and variant, and those at the edges of a range.
ROOMS = sorted(
    path.stem
    for path in (ROOT / "csrc" / "cpu").glob("*.cpp")
    if "RHOVAE_TARGET" in path.read_text()
)
# Gradients of a network by the specification take seconds, and are made of the same kernels.
VALUES = "outputs_and_gradients and not MadeInverse or saturated or normals or activation"


# The instruction set that runs by default is the one of all other tests.
OTHER_TARGETS = [
    target for target in ("baseline", "avx2") if target != rk.build_info().get("instructions")
]


@pytest.mark.parametrize("target", OTHER_TARGETS)
def test_every_instruction_set_of_the_cpu_kernels_gives_the_values_of_the_specification(target):
    files = [str(ROOT / "tests" / "ops" / f"test_{room}.py") for room in ROOMS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    command += ["-k", f"cpu-cpu and ({VALUES} or any_staircase)"]
    environment = {**os.environ, "RHOVAE_CPU_TARGET": target}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


def test_as_a_function_it_holds_until_the_next_call():
    before = backends._forced
    try:
        rk.use_backend("reference")
        assert backends.choose("cpu")[0] == "reference"
        rk.use_backend("cpu")
        assert backends.choose("cpu")[0] == "cpu"
    finally:
        backends._force(before)


def test_an_op_that_a_backend_lacks_runs_on_the_next_or_is_named(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda backend, device_type: None)
    # As where an op is written in neither C++ nor CUDA C++.
    monkeypatch.setattr(eager, "has_kernel", lambda name, device_type: False)
    op = REGISTRY["philox"]
    with rk.use_backend(None):
        assert backends.choose("cuda", op)[0] == "triton"
        with pytest.raises(rk.BackendError, match="cpu: it has no kernel of rhovae::philox"):
            backends.choose("cpu", op)
    with rk.use_backend("cuda"), pytest.raises(rk.BackendError, match="asks for 'cuda': it has no"):
        backends.choose("cuda", op)


# What CUDA C++ has no kernel of: a correlation for each step.


def everything_written(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda backend, device_type: None)
    monkeypatch.setattr(eager, "has_kernel", lambda name, device_type: True)


def ar1_calls():
    x, row, state = torch.ones(2, 3), torch.ones(2), torch.tensor([1, 2])
    for logit in (torch.ones(2, 1), x):
        yield "ar1_reparam", (x, x, logit, x), logit
        yield "ar1_reparam_backward", (x, row, x, x, logit, x, [True] * 4), logit
        yield "ar1_reparam_rng", (x, x, logit, state), logit
        yield "ar1_reparam_rng_backward", (x, row, x, x, logit, state, [True] * 3), logit
        yield "ar1_log_prob", (x, x, x, logit), logit
        yield "ar1_log_prob_backward", (row, x, x, x, logit, [True] * 4), logit


@pytest.mark.parametrize(
    "name,args,logit", list(ar1_calls()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_on_cuda_tensors_triton_runs_the_form_that_cuda_lacks(monkeypatch, name, args, logit):
    everything_written(monkeypatch)
    op, ran = REGISTRY[name], []
    monkeypatch.setattr(Op, "implementation", lambda op, backend: lambda *args: ran.append(backend))
    with rk.use_backend(None):
        op.kernels["cuda"](*args)
        op.kernels["cuda"](*args)
        op.kernels["cpu"](*args)
    assert ran == ["cuda" if logit.shape[-1] == 1 else "triton"] * 2 + ["cpu"]
    with rk.use_backend("cuda"):
        if logit.shape[-1] == 1:
            op.kernels["cuda"](*args)
        else:
            said = f"no kernel of rhovae::{name} with a correlation for each step"
            with pytest.raises(rk.BackendError, match=f"asks for 'cuda': it has {said}"):
                op.kernels["cuda"](*args)


def test_the_report_says_what_runs_the_form_that_cuda_lacks(monkeypatch):
    everything_written(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with rk.use_backend(None):
        ran = {(row.op, row.device): row.backend for row in backends.report(public_ops())}
    assert ran["ar1_reparam", "cuda"] == "cuda"
    assert ran["ar1_reparam with a correlation for each step", "cuda"] == "triton"
    assert ("linear_scan with a correlation for each step", "cuda") not in ran
    with rk.use_backend("cuda"):
        rows = [row for row in backends.report(public_ops()) if " with " in row.op]
    assert rows and {row.backend for row in rows} == {"none"}


def test_a_wrong_logit_of_a_cuda_tensor_is_named_whatever_its_form(monkeypatch):
    everything_written(monkeypatch)
    x = torch.ones(2, 3)
    with rk.use_backend(None):
        for logit in (torch.ones(2, 2), torch.tensor(1.0), 0.5):
            with pytest.raises(ValueError, match=r"ar1_reparam: rho_logit is .*it must be"):
                REGISTRY["ar1_reparam"].kernels["cuda"](x, x, logit, x)


def test_a_compiled_function_follows_the_backend_in_force():
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    with rk.use_backend("cpu"):
        expected = compiled()
    with rk.use_backend("cuda"), pytest.raises(backends.BackendError, match="cuda"):
        compiled()
    with rk.use_backend("reference"):
        assert torch.equal(compiled(), expected)


def test_an_unknown_backend_is_refused_with_those_that_are_known():
    with pytest.raises(rk.BackendError, match="'fast'; it must be one of cpu, cuda, triton"):
        rk.use_backend("fast")
    run = python(SCAN, RHOVAE_BACKEND="fast")
    assert run.returncode != 0
    assert "RHOVAE_BACKEND names 'fast'" in run.stderr.splitlines()[-1]


def test_a_backend_that_cannot_take_a_tensor_says_so():
    with rk.use_backend("cuda"), pytest.raises(rk.BackendError, match="take cuda tensors, not cpu"):
        scan()


def test_the_environment_variable_forces_a_backend():
    run = python(SCAN + "; print(rk.backends.choose('cpu'))", RHOVAE_BACKEND="reference")
    assert "('reference', 'forced by the environment variable RHOVAE_BACKEND')" in run.stdout


def test_without_the_extension_it_imports_and_its_ops_name_the_command_that_builds_it():
    missing = "import sys; sys.modules['rhovae_kernels._C'] = None; "
    run = python(missing + "import rhovae_kernels; print('imported')")
    assert run.stdout == "imported\n"
    run = python(missing + SCAN)
    assert run.returncode != 0
    assert backends.BUILD_COMMAND in run.stderr.splitlines()[-1]
    # Never the slow reference unless it is asked for.
    run = python(missing + SCAN, RHOVAE_BACKEND="reference")
    assert "tensor([1., 2., 3.])" in run.stdout


def test_the_extension_says_how_it_was_built():
    info = rk.build_info()
    for fact in ("compiler", "flags", "torch", "cuda", "architectures", "targets", "instructions"):
        assert isinstance(info[fact], str)
    assert info["compiler"] and info["torch"].startswith("2.")


def test_importing_takes_torch_and_triton_alone():
    blocked = "accelerate rich typer matplotlib sklearn safetensors huggingface_hub numpy.testing"
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked.split()!r})); "
    run = python(code + "import rhovae_kernels as rk; rk.AR1Normal; print('imported')")
    assert run.stdout == "imported\n", run.stderr


def test_a_wrong_argument_is_named_where_the_backend_has_no_kernel_either():
    x = torch.ones(2, 3)
    with rk.use_backend("cuda"):
        with pytest.raises(backends.BackendError, match="cuda tensors, not cpu"):
            torch.ops.rhovae.iaf_gate(x, x, x)
        with pytest.raises(ValueError, match=r"iaf_gate: m is .*it must be"):
            torch.ops.rhovae.iaf_gate(x, x[:, :2], x)


FIRST = [op for op in REGISTRY.values() if op.triton_first]


def test_a_backward_pass_comes_first_in_triton_where_its_forward_pass_does():
    names = {op.name for op in FIRST}
    assert names == {
        f"{name.removesuffix('_backward')}{end}" for name in names for end in ("", "_backward")
    }


GPU = json.loads((ROOT / "benchmarks" / "results" / "gpu-h100.json").read_text("utf-8"))


def share_of_a_copy(op, backend, shape) -> int:
    """What the GPU machine measured, in percent: float32 in a CUDA graph, and verified."""
    direction = "backward" if op.name.endswith("_backward") else "forward"
    wanted = {
        "op": op.name.removesuffix("_backward"),
        "shape": shape,
        "dtype": "float32",
        "direction": direction,
        "mode": "graph",
        "backend": backend,
        "verified": True,
    }
    found = {r["percent_of_limit"] for r in GPU["rows"] if wanted.items() <= r.items()}
    (share,) = found
    return round(share)


@pytest.mark.parametrize("op", FIRST, ids=lambda op: op.name)
def test_an_op_that_is_faster_in_triton_runs_it_on_large_cuda_tensors(op, monkeypatch):
    everything_written(monkeypatch)
    with rk.use_backend(None):
        backend, why = backends.choose("cuda", op, backends.OF_MANY)
        assert (backend, why) == ("triton", op.triton_first)
        measured = re.match(r"measured: (\d+)% .* Triton, (\d+)% .* float32, (\d+)×(\d+)", why)
        assert measured is not None
        *shares, rows, columns = map(int, measured.groups())
        assert shares == [share_of_a_copy(op, b, [rows, columns]) for b in ("triton", "cuda")]
        assert shares[0] > shares[1]
        # On small ones the host's time for a launch is what counts.
        assert backends.choose("cuda", op)[0] == "cuda"
        assert backends.choose("cpu", op, backends.OF_MANY)[0] == "cpu"
    with rk.use_backend("cuda"):
        forced = ("cuda", "forced by use_backend('cuda')")
        assert backends.choose("cuda", op, backends.OF_MANY) == forced


@pytest.mark.parametrize("elements,backend", [(7, "cuda"), (8, "triton"), (9, "triton")])
def test_the_size_of_a_call_decides_which_of_them_runs(monkeypatch, elements, backend):
    everything_written(monkeypatch)
    monkeypatch.setattr(backends, "MANY_ELEMENTS", 8)
    ran = []
    monkeypatch.setattr(Op, "implementation", lambda op, backend: lambda *args: ran.append(backend))
    scan = REGISTRY["linear_scan"]
    with rk.use_backend(None):
        scan.kernels["cuda"](torch.ones(1, 1), torch.ones(1, elements), False, None)
        scan.kernels["cpu"](torch.ones(1, 1), torch.ones(1, elements), False, None)
    assert ran == [backend, "cpu"]


def test_another_op_runs_cuda_on_cuda_tensors(monkeypatch):
    everything_written(monkeypatch)
    with rk.use_backend(None):
        assert backends.choose("cuda", REGISTRY["philox"])[0] == "cuda"


def test_without_triton_such_an_op_runs_cuda_and_says_so(monkeypatch):
    everything_written(monkeypatch)
    gone = {"triton": "triton does not import"}
    monkeypatch.setattr(backends, "missing", lambda backend, device_type: gone.get(backend))
    with rk.use_backend(None):
        why = "Triton, which comes first for this op, is missing"
        assert backends.choose("cuda", FIRST[0], backends.OF_MANY) == ("cuda", why)


def test_the_report_says_why_an_op_runs_triton(monkeypatch):
    everything_written(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with rk.use_backend(None):
        rows = [row for row in backends.report(FIRST) if row.device == "cuda"]
    for op in FIRST:
        many = f"{op.name} with {backends.OF_MANY}"
        assert ("triton", op.triton_first) in [(r.backend, r.why) for r in rows if r.op == many]
        assert [row.backend for row in rows if row.op == op.name] == ["cuda"]
