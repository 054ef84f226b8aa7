"""The suite for a GPU machine, rehearsed on the CPU: `--dry-run` goes the same way, tiny."""

import json
import sys
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
    status = gpu_suite.main([str(folder), "--dry-run", *arguments])
    result = json.loads((folder / "gpu_suite.json").read_text("utf-8"))
    return status, result, (folder / "gpu_suite.log").read_text("utf-8")


def plant(monkeypatch, *entries):
    """These in place of the entries; the tests of the ops, which others run, are left out."""
    monkeypatch.setattr(gpu_cases, "ENTRIES", list(entries))
    monkeypatch.setattr(gpu_suite.Suite, "test_files", lambda self: [])


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
    # The table comes last, but for where everything was written.
    assert shown.splitlines()[-2].startswith("ar1_log_prob")


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
    for what in ("build", "machine", "tests", "limits"):
        assert what in result["not_run"]
    for entry in gpu_cases.ENTRIES:
        assert any(line.startswith(entry.op) for line in result["not_run"]), entry.op


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


def test_a_program_that_fails_is_reported_with_its_last_line(tmp_path):
    suite = gpu_suite.Suite(tmp_path, None, minutes=1, dry_run=True)
    done, said = suite.command("failing", [sys.executable, "-c", "raise SystemExit('no nvcc')"], 60)
    assert not done and "no nvcc" in said
    assert suite.failures == [{"what": "failing", "error": "exit status 1: no nvcc"}]


def test_the_scan_by_doubling_is_the_specifications():
    from python_ref import linear_scan

    gates, tokens = torch.rand(2, 3, 37, dtype=torch.float64).unbind()
    for a in (gates, gates[:, :1]):
        for reverse in (False, True):
            torch.testing.assert_close(
                gpu_cases.doubling(a, tokens, reverse), linear_scan(a, tokens, reverse)
            )
