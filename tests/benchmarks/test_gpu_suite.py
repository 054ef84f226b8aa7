"""The suite for a GPU machine, rehearsed on the CPU: `--dry-run` goes the same way, tiny."""

import importlib
import json
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu_cases
import gpu_suite

SCAN = next(e for e in gpu_cases.ENTRIES if e.op == "linear_scan")
ROW = {
    "op", "shape", "dtype", "direction", "mode", "backend", "ms", "competitor", "competitor_ms",
    "ratio", "percent_of_limit", "verified", "competitor_verified",
}  # fmt: skip


def run(folder, *arguments):
    """(exit status, what is in the JSON, what is in the log) of a rehearsal."""
    # More time than it needs on a machine that does other work too.
    status = gpu_suite.main([str(folder), "--dry-run", "--minutes", "60", *arguments])
    result = json.loads((folder / "gpu_suite.json").read_text("utf-8"))
    return status, result, (folder / "gpu_suite.log").read_text("utf-8")


def plant(monkeypatch, *entries):
    """These in place of the entries, without tests of the ops and without smoke tests."""
    monkeypatch.setattr(gpu_cases, "ENTRIES", list(entries))
    monkeypatch.setattr(gpu_suite.Suite, "test_files", lambda self: [])
    monkeypatch.setattr(gpu_suite.Suite, "smoke", lambda self, entries: None)


def altered(name, change):
    """An entry named `name` that is linear_scan's, but for what `change` makes of its work."""

    def make(shape, dtype, device):
        return change(SCAN.make(shape, dtype, device))

    return SCAN._replace(op=name, make=make, dtypes=(torch.float32,))


def test_a_whole_run_measures_every_op_and_says_that_it_is_no_measurement(tmp_path, capsys):
    status, result, log = run(tmp_path)
    assert status == 0, log
    assert result["dry_run"] is True
    assert result["failures"] == result["not_run"] == []
    assert {row["op"] for row in result["rows"]} == {e.op for e in gpu_cases.ENTRIES}
    for row in result["rows"]:
        assert row.keys() == ROW
        assert row["ms"] > 0 and row["mode"].endswith("(a plain call)")
        if row["competitor"] is not None:
            assert row["ratio"] == row["competitor_ms"] / row["ms"]
        if row["op"] != "training_step" and "launch" not in row["mode"]:
            assert row["verified"] is True and row["percent_of_limit"] > 0
    assert {row["direction"] for row in result["rows"]} == {"forward", "backward", "both", "step"}
    assert result["machine"]["torch"] == torch.__version__
    assert "passed" in result["tests"]
    assert set(result["limits"]) == {
        "copied_bytes_per_second", "float32_flops_per_second", "bfloat16_flops_per_second"
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "no figures" in shown
    summary = shown.rpartition("\n\n")[2].splitlines()
    assert 10 < len(summary) <= 30 and summary[-1].startswith("written: ")
    assert f"{len(result['rows'])} rows, 0 failures, 0 not run" in summary[3]
    for n, entry in enumerate(gpu_cases.ENTRIES):
        assert f"smoke {n} {entry.op}: right" in log


def test_told_which_ops_it_runs_those_and_their_tests(tmp_path):
    status, result, log = run(tmp_path, "--ops", "linear_scan")
    assert status == 0, log
    assert {row["op"] for row in result["rows"]} == {"linear_scan"}
    assert "tests/ops/test_ar1.py" not in log and "passed" in result["tests"]


def test_an_op_that_fails_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    def failing(shape, dtype, device):
        raise RuntimeError("a planted failure")

    plant(monkeypatch, SCAN._replace(op="failing", make=failing), SCAN)
    status, result, log = run(tmp_path)
    assert status == 1
    assert {f["error"] for f in result["failures"]} == {"RuntimeError: a planted failure"}
    assert all("failing" in f["what"] for f in result["failures"])
    assert {row["op"] for row in result["rows"]} == {"linear_scan"}
    assert "Traceback" in log and "FAILED: failing" in log


def test_a_wrong_result_of_ours_fails_and_gets_no_time(tmp_path, monkeypatch):
    def off(work):
        ours = work.ours
        return work._replace(
            ours=ours._replace(function=lambda *args: (1.01 * ours.function(*args)[0],))
        )

    plant(monkeypatch, altered("wrong", off))
    status, result, _ = run(tmp_path)
    assert status == 1
    assert all("WrongResult" in f["error"] for f in result["failures"])
    assert result["failures"] and result["rows"] == []


def test_a_wrong_gradient_of_ours_fails_and_gets_no_time(tmp_path, monkeypatch):
    def off(work):
        function = work.ours.function

        def scan(gates, tokens):
            return (function(gates, tokens.detach() + 1.01 * (tokens - tokens.detach()))[0],)

        return work._replace(ours=work.ours._replace(function=scan))

    plant(monkeypatch, altered("wrong", off))
    status, result, _ = run(tmp_path)
    assert status == 1 and result["rows"] == []


def test_a_competitor_whose_result_is_wrong_is_named_and_not_timed(tmp_path, monkeypatch):
    def off(work):
        wrong = work.ours._replace(function=lambda gates, tokens: (gates * tokens,))
        return work._replace(others=work.others | {"mistaken": wrong})

    plant(monkeypatch, altered("right", off))
    status, result, _ = run(tmp_path)
    assert status == 0
    assert any("mistaken" in line and "WrongResult" in line for line in result["not_timed"])
    assert result["rows"] and all(row["competitor"] != "mistaken" for row in result["rows"])


def test_what_time_does_not_suffice_for_is_named(tmp_path):
    status, result, _ = run(tmp_path, "--minutes", "0")
    assert status == 3
    assert result["rows"] == result["failures"] == []
    for what in ("build", "machine", "smoke test", "tests", "limits"):
        assert what in result["not_run"]
    for entry in gpu_cases.ENTRIES:
        assert any(line.startswith(entry.op) for line in result["not_run"]), entry.op


def test_a_run_goes_on_with_what_an_earlier_one_left(tmp_path, monkeypatch):
    made = []

    def counted(shape, dtype, device):
        made.append(dtype)
        if len(made) == 1:
            raise RuntimeError("at first alone")
        return SCAN.make(shape, dtype, device)

    plant(monkeypatch, SCAN, SCAN._replace(op="counted", make=counted, dtypes=(torch.float32,)))
    status, first, _ = run(tmp_path)
    assert status == 1 and len(made) == 1 and first["failures"]
    status, second, log = run(tmp_path, "--resume")
    assert status == 0 and len(made) == 2, log
    # Of the op that was timed nothing is timed again; what failed is not said any more.
    assert second["rows"][: len(first["rows"])] == first["rows"] and not second["failures"]
    assert {row["op"] for row in second["rows"]} == {"linear_scan", "counted"}
    assert second["minutes"] > first["minutes"] and second["limits"] == first["limits"]
    assert log.count("limits …") == 1


def test_a_case_that_was_cut_short_is_measured_anew_and_stands_once(tmp_path, monkeypatch):
    plant(monkeypatch, SCAN._replace(dtypes=(torch.float32,)))
    whole = gpu_suite.Suite.compare

    def cut_short(self, case, direction, mode):
        whole(self, case, direction, mode)
        self.end = 0.0

    monkeypatch.setattr(gpu_suite.Suite, "compare", cut_short)
    status, first, _ = run(tmp_path)
    assert status == 3 and {row["direction"] for row in first["rows"]} == {"forward"}
    monkeypatch.setattr(gpu_suite.Suite, "compare", whole)
    status, second, log = run(tmp_path, "--resume")
    assert status == 0, log
    keys = [(r["direction"], r["mode"], r["backend"], r["competitor"]) for r in second["rows"]]
    assert len(keys) == len(set(keys)) and {key[0] for key in keys} == set(SCAN.directions)


def test_a_failed_capture_goes_on_in_a_new_process(tmp_path, monkeypatch):
    suite = gpu_suite.Suite(tmp_path, None, minutes=2, dry_run=True)
    suite.dry_run, suite.capture_failed = False, True
    monkeypatch.setattr(suite, "measure", lambda *case: None)
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", str(tmp_path), "--minutes", "2"])
    monkeypatch.setattr("os.execv", lambda program, command: started.append(command))
    started: list[list[str]] = []
    suite.measure_each([(SCAN, (4, 8), torch.float32)])
    (command,) = started
    assert command[: len(gpu_suite.PROGRAM)] == gpu_suite.PROGRAM
    *_, resume, minutes, left = command
    assert (resume, minutes) == ("--resume", "--minutes") and 1.9 < float(left) <= 2
    written = json.loads((tmp_path / "gpu_suite.json").read_text("utf-8"))
    assert written["done"] == ["linear_scan 4×8 float32 (linear_scan)"]


def test_what_is_no_dry_run_is_not_gone_on_with_in_one(tmp_path, monkeypatch):
    plant(monkeypatch)
    run(tmp_path)
    written = tmp_path / "gpu_suite.json"
    written.write_text(written.read_text("utf-8").replace('"dry_run": true', '"dry_run": false'))
    with pytest.raises(ValueError, match="holds no dry run"):
        run(tmp_path, "--resume")


def test_a_run_that_is_killed_leaves_what_it_had_found(tmp_path, monkeypatch):
    def killed(shape, dtype, device):
        raise KeyboardInterrupt

    plant(monkeypatch, SCAN, SCAN._replace(op="killed", make=killed))
    with pytest.raises(KeyboardInterrupt):
        gpu_suite.main([str(tmp_path), "--dry-run"])
    result = json.loads((tmp_path / "gpu_suite.json").read_text("utf-8"))
    assert {row["op"] for row in result["rows"]} == {"linear_scan"}


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    def needy(shape, dtype, device):
        raise ModuleNotFoundError("No module named 'accelerate'")

    plant(monkeypatch, SCAN._replace(op="needy", make=needy))
    status, result, _ = run(tmp_path)
    assert status == 3
    assert all("accelerate" in line for line in result["not_run"]) and result["not_run"]


def test_an_op_that_does_not_exist_is_refused_with_those_that_do(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        gpu_suite.main([str(tmp_path / "out"), "--dry-run", "--ops", "linear_scam"])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert "linear_scam" in said and "linear_scan" in said
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        gpu_suite.main([str(tmp_path / "out")])
    assert refused.value.code == 2
    assert "no CUDA device is here" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_program_that_runs_too_long_is_stopped_and_named(tmp_path):
    suite = gpu_suite.Suite(tmp_path, None, minutes=1, dry_run=True)
    done, _ = suite.command("sleeping", [sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert not done and suite.not_run == ["sleeping: stopped after 1 s"]


def test_what_a_program_started_is_stopped_with_it(tmp_path):
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(3); open({str(alive)!r}, 'w').close()"
    starting = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    suite = gpu_suite.Suite(tmp_path / "out", None, minutes=1, dry_run=True)
    began = time.monotonic()
    suite.command("starting", [sys.executable, "-c", starting], 1)
    assert time.monotonic() - began < 3
    time.sleep(3.5)
    assert not alive.exists()


PLANTED = """
import os, sys
sys.path[:0] = [{benchmarks!r}]
import gpu_cases, gpu_suite

def crash(shape, dtype, device):
    os.abort()

def wrong(shape, dtype, device):
    work = scan.make(shape, dtype, device)
    function = work.ours.function
    return work._replace(
        ours=work.ours._replace(function=lambda *args: (1.01 * function(*args)[0],))
    )

scan = next(e for e in gpu_cases.ENTRIES if e.op == "linear_scan")
gpu_cases.ENTRIES[:] = [
    scan, scan._replace(op="crash", make=crash), scan._replace(op="wrong", make=wrong), scan
]
sys.exit(gpu_suite.main())
"""


def test_smoke_tests_outlive_a_crash_and_name_what_is_wrong(tmp_path, monkeypatch):
    program = tmp_path / "planted.py"
    program.write_text(PLANTED.format(benchmarks=str(Path(gpu_suite.__file__).parent)))
    entries = [SCAN._replace(op=op) for op in ("linear_scan", "crash", "wrong", "scan_again")]
    monkeypatch.setattr(gpu_cases, "ENTRIES", entries)
    monkeypatch.setattr(gpu_suite, "PROGRAM", [sys.executable, str(program)])
    suite = gpu_suite.Suite(tmp_path / "out", None, minutes=5, dry_run=True)
    suite.smoke(entries)
    crashed, *wrong = suite.failures
    assert crashed["what"] == "smoke test of crash" and "status -6" in crashed["error"]
    assert [f["what"] for f in wrong] == ["smoke test of wrong"]
    assert "WrongResult" in wrong[0]["error"]
    suite.log.flush()
    assert "smoke 3 linear_scan: right" in (tmp_path / "out" / "gpu_suite.log").read_text("utf-8")


def test_a_rehearsal_launches_what_it_is_told_and_measures_nothing(tmp_path):
    # A training step, which looks at what it has learned, is left out.
    status, result, log = run(tmp_path, "--rehearsal", "--ops", "linear_scan,training_step")
    assert status == 0, log
    assert result["rows"] == result["failures"] == [] and result["limits"] == {}
    for n, entry in enumerate(gpu_cases.ENTRIES):
        assert (f"smoke {n} {entry.op}: launched" in log) is (entry.op == "linear_scan")


def test_a_rehearsal_names_the_case_that_fails_and_goes_on(tmp_path):
    def failing(work):
        def forwards_alone(*args):
            assert not torch.is_grad_enabled(), "planted"
            return work.ours.function(*args)

        return work._replace(ours=work.ours._replace(function=forwards_alone))

    suite = gpu_suite.Suite(tmp_path, None, minutes=1, dry_run=True, rehearsal=True)
    suite.launched(altered("failing", failing), gpu_suite.TINY, torch.float32)
    wanted = [
        f"failing 4×8 float32 {direction}, rhovae {backend}"
        for backend in ("cpu", "triton")
        for direction in SCAN.directions
        if direction != "forward"
    ]
    assert wanted and [failure["what"] for failure in suite.failures] == wanted


def test_what_is_run_forwards_only_is_verified_without_autograd():
    tracked = []

    def function(x):
        tracked.append((2 * x).requires_grad)
        return (2 * x,)

    x = torch.ones(3, requires_grad=True)
    for directions, kept in ((("forward",), False), (("forward", "backward"), True)):
        way = gpu_cases.Way(function, (x,), lambda x: (2 * x,), directions)
        gpu_suite.held_against_exact(way, (torch.ones(3),), 1e-6, by_row=True)
        assert tracked.pop() is kept


def test_wheels_in_a_folder_are_unpacked_beside_the_result_and_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    suite = gpu_suite.Suite(tmp_path / "out", None, minutes=1, dry_run=True)
    with pytest.raises(FileNotFoundError, match="holds no wheel"):
        suite.unpack(tmp_path)
    about = "planted_peer-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "planted_peer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("planted_peer.py", "answer = 42\n")
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: planted-peer\nVersion: 1.0\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    suite.unpack(tmp_path)
    assert suite.failures == []
    assert importlib.import_module("planted_peer").answer == 42


def test_the_summary_of_many_failures_has_thirty_lines(tmp_path):
    suite = gpu_suite.Suite(tmp_path, None, minutes=1, dry_run=True)
    suite.failures = [{"what": f"op {n}", "error": "wrong"} for n in range(99)]
    lines = suite.summary()
    assert len(lines) == 30 and lines[-2] == "and 75 more"


def test_the_largest_case_of_each_entry_comes_first(tmp_path):
    suite = gpu_suite.Suite(tmp_path, None, minutes=1, dry_run=True)
    suite.dry_run = False
    first = suite.cases()[: len(gpu_cases.ENTRIES)]
    assert [entry for entry, _, _ in first] == list(gpu_cases.ENTRIES)
    for entry, shape, _ in first:
        assert all(shape[0] * shape[1] >= rows * columns for rows, columns in entry.shapes)


def test_a_program_that_fails_is_reported_with_its_last_line(tmp_path):
    suite = gpu_suite.Suite(tmp_path, None, minutes=1, dry_run=True)
    done, said = suite.command("failing", [sys.executable, "-c", "raise SystemExit('no nvcc')"], 60)
    assert not done and "no nvcc" in said
    (failure,) = suite.failures
    assert (failure["what"], failure["error"]) == ("failing", "exit status 1: no nvcc")


def test_the_scan_by_doubling_is_the_specifications():
    from rhovae_kernels.python_ref import linear_scan

    gates, tokens = torch.rand(2, 3, 37, dtype=torch.float64).unbind()
    for a in (gates, gates[:, :1]):
        for reverse in (False, True):
            torch.testing.assert_close(
                gpu_cases.doubling(a, tokens, reverse), linear_scan(a, tokens, reverse)
            )


@pytest.mark.parametrize("count", [1, 4, 8, 40])
@pytest.mark.parametrize("steps", [[0, 3, 3, 7, 19, 29, 31], [0], [31]], ids=str)
def test_products_in_panels_are_the_specifications(steps, count):
    from rhovae_kernels import python_ref
    from rhovae_kernels.python_ref.masked_linear import staircase_mask

    prefix = torch.tensor(steps).repeat_interleave(37 // len(steps) + 1)[:37].int()
    x, weight, bias, up = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((5, 31), (37, 31), (37,), (5, 37))
    )
    leaves = [x, weight * staircase_mask(prefix, 31), bias]
    for leaf in leaves:
        leaf.requires_grad_()
    (y,) = gpu_cases.in_panels(prefix, count)(*leaves)
    torch.testing.assert_close(y, python_ref.masked_linear(*leaves, prefix))
    expected = python_ref.masked_linear_backward(up, leaves[0], leaves[1], prefix)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, up), expected)


@pytest.mark.parametrize("op", ["rq_spline", "rq_spline_inverse"])
def test_a_spline_is_timed_where_float32_has_the_gradients_of_float64(op):
    entry = next(e for e in gpu_cases.ENTRIES if e.op == op)
    work = entry.make((512, 8), torch.float32, "cpu")

    def gradients(arguments):
        leaves = [x.detach().requires_grad_() for x in arguments]
        outputs = work.ours.exact(*leaves)
        return torch.autograd.grad(sum(y.sum() for y in outputs), leaves)

    exact = gradients([x.double() for x in work.ours.arguments])
    for single, double in zip(gradients(work.ours.arguments), exact, strict=True):
        assert (single - double).abs().max() < 2e-5 * double.abs().max()
    x = work.ours.arguments[0]
    assert (x.abs() > 5).sum() == x.numel() / 64


@pytest.mark.parametrize("direction", ["backward", "both"])
def test_a_backward_pass_is_timed_by_leaves_of_its_own(direction):
    """One that another stream used first cannot be captured."""
    seen = []

    def square(x):
        seen.append(x)
        return (x * x,)

    x = torch.ones(3, requires_grad=True)
    call = gpu_suite.prepared(gpu_cases.Way(square, (x,), square), direction, (x.detach(),))
    (gradient,) = call()
    assert seen and all(leaf is not x and leaf.requires_grad for leaf in seen)
    assert gradient.tolist() == [2.0] * 3


def test_a_case_leaves_the_default_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    suite = gpu_suite.Suite.__new__(gpu_suite.Suite)
    suite.device, suite.dry_run = "cpu", True
    suite.case(SCAN, (4, 8), torch.float32)
    assert torch.equal(before, torch.get_rng_state())
