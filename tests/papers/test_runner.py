"""The runner of studies: what it trains, measures and writes, once; and the papers it knows."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch

from rhovae_kernels import cli
from rhovae_kernels.files import load_tensors
from rhovae_kernels.papers import (
    chorales,
    dpvae,
    gaps,
    iaf,
    orders,
    pixelvae,
    registry,
    rho_vae,
    runner,
)
from rhovae_kernels.papers.study import Curve
from rhovae_kernels.vae import objectives
from rhovae_kernels.vae.recipes import recipe

# What a measurement of 0.1.0 says that it answers, and a value that no training gives.
ON_DIGITS = {"data": "digits", "data_root": None, "epochs": 1, "limit": 40}
NLL = {"mean": 123.0, "interval_95": [122.0, 124.0], "ess_mean": 7.0, "count": 40}
MEASURED = {"skl": 1.0, "leakage_mass": 0.0, "negative_elbo": 2.0, "rate": 1.0, "nll": 123.0}
SMALL = {
    "rho-vae": rho_vae.study("digits", latent=2, epochs=1),
    "iaf": iaf.study("digits", latent=2, epochs=1),
    "dpvae": dpvae.study("digits", epochs=1, objectives=["dpvae"]),
}
MEASURED_BY_0_1_0 = {
    "rho-vae": ("nll.json", {"asked": {**ON_DIGITS, "metric": "nll@256"}, "nll": NLL}),
    "iaf": (
        "nll.json",
        {"asked": {**ON_DIGITS, "binarize": "round", "metric": "nll@256"}, "nll": NLL},
    ),
    "dpvae": ("measures.json", {"asked": {**ON_DIGITS, "fid_weights": None}, "measured": MEASURED}),
}


@pytest.fixture
def one_model():
    """A study of one model of the rho-VAE paper, which says of its measured epoch all there is."""
    study = rho_vae.study("digits", latent=2, epochs=1)
    return dataclasses.replace(
        study,
        rows=study.rows[:1],
        read=lambda epoch, measured: {"epoch": epoch, "measured": measured},
        row=lambda outcomes: {"seeds": outcomes[0].entries},
        describe=lambda table: f"of {table['data']}",
        curves=[Curve("train.png", "train_loss", "nats")],
        facts={"colour": "red"},
    )


class Worse(objectives.Objective):
    """Minimizes log p(x|z), which the validation loss then shows after each epoch."""

    def forward(self, terms):
        return terms.log_px.mean()


def a_model_that_gets_worse(input_shape):
    vae = recipe("vae").build(input_shape, latent=2)
    vae.objective = Worse()
    return vae


def refuse(*arguments, **options):
    raise AssertionError("measured again")


def stopped(*arguments, **options):
    raise KeyboardInterrupt


def modified(directory: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.glob(pattern)}


def test_a_study_is_written_down_as_it_says(one_model, tmp_path):
    table = runner.run(one_model, seeds=(3, 4), out=tmp_path, limit=40, quiet=True)
    assert json.loads((tmp_path / "table.json").read_text("utf-8")) == table
    assert (tmp_path / "table.md").read_text("utf-8") == "of digits\n"
    assert (table["colour"], table["nll_data"], table["seeds"]) == ("red", 40, [3, 4])
    assert (table["latent"], table["epochs"], table["label"]) == (2, 1, "grey")
    (row,) = table["rows"]
    assert [entry["seed"] for entry in row["seeds"]] == [3, 4]
    assert row["seeds"][0]["epoch"] != row["seeds"][1]["epoch"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "plain-diagonal-d2-seed3",
        "plain-diagonal-d2-seed4",
        "samples-diagonal.png",
        "train.png",
        "table.json",
        "table.md",
    }


@pytest.mark.parametrize("paper", SMALL)
def test_a_measurement_that_version_0_1_0_made_is_used(monkeypatch, tmp_path, paper):
    file, measurement = MEASURED_BY_0_1_0[paper]
    models = [model for row in SMALL[paper].rows for model in row]
    for model in models:
        (tmp_path / f"{model.run}-seed0").mkdir()
        (tmp_path / f"{model.run}-seed0" / file).write_text(json.dumps(measurement), "utf-8")
    monkeypatch.setattr(runner, "evaluate", refuse)
    table = runner.run(SMALL[paper], seeds=[0], out=tmp_path, limit=40, quiet=True)
    assert json.dumps(table).count("123.0") >= 2 * len(models)


def test_another_limit_is_measured_anew_without_another_training(one_model, tmp_path):
    first = runner.run(one_model, seeds=[0], out=tmp_path, limit=40, quiet=True)
    runs = modified(tmp_path, "*/last.safetensors")
    again = runner.run(one_model, seeds=[0], out=tmp_path, limit=41, quiet=True)
    assert modified(tmp_path, "*/last.safetensors") == runs
    before, now = (table["rows"][0]["seeds"][0]["measured"] for table in (first, again))
    assert (before["count"], now["count"]) == (40, 41)
    assert before["mean"] != now["mean"]


def test_a_study_that_was_stopped_ends_as_one_that_was_not(monkeypatch, one_model, tmp_path):
    whole = runner.run(one_model, seeds=(0, 1), out=tmp_path / "whole", limit=40, quiet=True)
    runner.run(one_model, seeds=[0], out=tmp_path / "stopped", limit=40, quiet=True)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(runner, "evaluate", stopped)
        runner.run(one_model, seeds=(0, 1), out=tmp_path / "stopped", limit=40, quiet=True)
    trained = modified(tmp_path, "stopped/*/last.safetensors")
    assert len(trained) == 2
    again = runner.run(one_model, seeds=(0, 1), out=tmp_path / "stopped", limit=40, quiet=True)
    assert again == whole
    assert modified(tmp_path, "stopped/*/last.safetensors") == trained


@pytest.mark.parametrize("weights", ["best", "last"])
def test_the_weights_that_a_study_asks_for_are_measured(one_model, tmp_path, weights):
    seen = []
    model = dataclasses.replace(one_model.rows[0][0], build=a_model_that_gets_worse)
    study = dataclasses.replace(
        one_model,
        rows=[[model]],
        epochs=2,
        weights=weights,
        picture=lambda out, outcomes, x: seen.extend(outcomes),
    )
    table = runner.run(study, seeds=[0], out=tmp_path, limit=2, quiet=True)
    measured = table["rows"][0]["seeds"][0]["epoch"]
    assert measured["epoch"] == {"best": 1, "last": 2}[weights]
    stored, _ = load_tensors(tmp_path / "plain-diagonal-d2-seed0" / f"{weights}.safetensors")
    for name, value in seen[0].vae.state_dict().items():
        assert torch.equal(value.cpu(), stored[f"model.{name}"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": []}, "seeds is empty; it must hold one seed at least"),
        ({"seeds": [0], "limit": 1}, "limit is 1; a standard error takes 2"),
    ],
    ids=["seeds", "limit"],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(
    one_model, tmp_path, options, says
):
    with pytest.raises(ValueError, match=says):
        runner.run(one_model, out=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "paper",
    [chorales, dpvae, gaps, iaf, orders, pixelvae, rho_vae],
    ids=lambda paper: paper.__name__.rpartition(".")[2],
)
def test_a_reproduction_takes_the_options_of_its_study_and_of_a_run(paper):
    taken = inspect.signature(paper.reproduce).parameters
    of_run = {"seeds": (0, 1), "out": inspect.Parameter.empty, "limit": None, "quiet": False}
    own = inspect.signature(paper.study).parameters
    assert set(taken) == {*own, *of_run, "data_root"}
    assert all(taken[name] == option for name, option in own.items())
    assert all(taken[name].default == default for name, default in of_run.items())
    assert paper.reproduce.__doc__.startswith(inspect.getdoc(paper.study))
    assert paper.reproduce.__name__ == "reproduce"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 1}, "missing a required argument: 'out'"),
        ({"out": "nowhere", "depth": 1}, "unexpected keyword argument 'depth'"),
    ],
    ids=["nowhere to write", "an option of another"],
)
def test_a_reproduction_refuses_other_options_before_anything_is_made(options, says):
    def study(*, epochs=1):
        raise AssertionError("a study was made")

    with pytest.raises(TypeError, match=says):
        runner.reproduction(study)(**options)


def test_a_reproduction_runs_the_study_of_its_options(one_model, tmp_path):
    def study(data, *, colour="red"):
        return dataclasses.replace(one_model, data=data, facts={"colour": colour})

    reproduce = runner.reproduction(study)
    table = reproduce("digits", colour="blue", seeds=[3], out=tmp_path, limit=40, quiet=True)
    assert (table["colour"], table["seeds"], table["nll_data"]) == ("blue", [3], 40)
    assert (tmp_path / "table.md").read_text("utf-8") == "of digits\n"


@pytest.mark.parametrize("paper", registry.PAPERS)
def test_every_option_of_a_paper_is_one_of_the_command(paper):
    taken = set(inspect.signature(registry.PAPERS[paper]).parameters)
    assert taken - {"data"} <= set(inspect.signature(cli.reproduce.reproduce).parameters)


@pytest.mark.parametrize("comparison", registry.FITS)
def test_every_option_of_what_trains_no_vae_is_one_of_the_command(comparison):
    taken = set(inspect.signature(registry.FITS[comparison].reproduce).parameters)
    assert taken - {"data"} <= set(inspect.signature(cli.reproduce.reproduce).parameters)
    assert {"out", "quiet"} <= taken and comparison not in registry.PAPERS


@pytest.mark.parametrize(
    ("study", "name"),
    [
        (rho_vae.study("digits", "cnn", latent=5), "rho-vae-digits-cnn-d5"),
        (iaf.study("digits"), "iaf-digits-round"),
        (iaf.study("cifar-10"), "iaf-cifar-10-none"),
        (iaf.study("mnist", likelihood="logistic"), "iaf-mnist-none-logistic"),
        (dpvae.study("two-moons"), "dpvae-two-moons"),
    ],
    ids=["rho-vae", "iaf", "iaf, colours", "iaf, logistic", "dpvae"],
)
def test_a_study_is_found_again_in_the_directory_of_its_name(study, name):
    assert study.name == name
