"""The table and the charts that are made of a benchmark run's JSON."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RUNS = sorted((BENCHMARKS / "results").glob("cpu-*.json"))


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("report")


def run_of(path: Path, milliseconds: dict[str, float], percent: float | None = None) -> Path:
    """A run of one comparison, in which "rhovae" is ours."""
    info = {
        "op": "ar1_reparam",
        "shape": [128, 32],
        "direction": "forward",
        "note": "",
        "ours": "rhovae",
        "milliseconds": milliseconds,
        "targets": {},
        "wrong": {},
    }
    if percent is not None:
        info["percent_of_limit"] = percent
    machine = {"cpu": "a processor", "threads": 2, "build": {"instructions": "avx2"}}
    text = {
        "benchmarks": [{"extra_info": info}],
        "machine_info": {"rhovae": machine},
        "datetime": "2026-01-02T03:04:05+00:00",
    }
    path.write_text(json.dumps(text), encoding="utf-8")
    return path


def test_the_ratio_is_to_the_fastest_variant_that_is_not_ours(report, tmp_path):
    times = {"rhovae": 2.0, "rhovae, 1 thread": 1.0, "eager": 8.0, "compiled": 6.0, report.CLONE: 1}
    run = run_of(tmp_path / "a.json", times)
    assert report.ratios(run) == {"ar1_reparam": [("forward", "128×32", 3.0)]}


def test_an_op_without_a_competitor_has_no_ratio(report, tmp_path):
    run = run_of(tmp_path / "a.json", {"rhovae": 2.0, "rhovae, 1 thread": 1.0})
    assert report.ratios(run) == {}


def test_the_share_of_the_limit_is_that_of_our_variant(report, tmp_path):
    run = run_of(tmp_path / "a.json", {"rhovae": 2.0, "eager": 8.0}, percent=40.0)
    assert report.shares(run) == {"ar1_reparam": [("forward", "128×32", 40.0)]}


def test_a_run_is_labelled_by_its_instruction_set_its_machine_and_its_day(report, tmp_path):
    run = run_of(tmp_path / "a.json", {"rhovae": 1.0})
    assert report.label(run) == "avx2: a processor, 2 threads, 2026-01-02"


def test_runs_stand_side_by_side_on_the_charts(report, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        report, "chart", lambda runs, described, out, log: drawn.append((runs, out))
    )
    runs = [
        run_of(tmp_path / "a.json", {"rhovae": 1.0, "eager": 2.0}, percent=50.0),
        run_of(tmp_path / "b.json", {"rhovae": 1.0, "eager": 3.0}, percent=60.0),
    ]
    report.main(runs, tmp_path / "both")
    assert [out for _, out in drawn] == [tmp_path / "both-ratio.png", tmp_path / "both-limit.png"]
    assert [len(panels) for panels, _ in drawn] == [2, 2]
    for run in runs:
        assert run.with_suffix(".md").read_text(encoding="utf-8") == report.table(run)


def test_a_run_without_limits_leaves_their_chart_out(report, tmp_path):
    report.main([run_of(tmp_path / "a.json", {"rhovae": 1.0, "eager": 2.0})], tmp_path / "a")
    assert {path.name for path in tmp_path.glob("*.png")} == {"a-ratio.png"}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.stem)
def test_the_table_kept_beside_the_figures_is_that_of_the_figures(report, run):
    assert report.table(run) == run.with_suffix(".md").read_text(encoding="utf-8")


def test_a_run_is_kept_by_the_name_of_its_instruction_set(report):
    assert RUNS
    for run in RUNS:
        assert report.label(run).startswith(f"{run.stem.removeprefix('cpu-')}: ")
