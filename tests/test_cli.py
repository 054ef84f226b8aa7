"""The command `rhovae`, as a user runs it."""

import dataclasses
import functools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rhovae_kernels as rk
from rhovae_kernels import backends, cli, demo, nets
from rhovae_kernels.data import cifar
from rhovae_kernels.papers import stochastic_volatility
from rhovae_kernels.plots import pictures
from rhovae_kernels.vae.recipes import RECIPES

ROOT = Path(__file__).parents[1]


def rhovae(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command, run in this process; strings hold words."""
    words = [w for x in arguments for w in (x.split() if isinstance(x, str) else [str(x)])]
    monkeypatch.setattr(sys, "argv", ["rhovae", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of one epoch of rho-vae on the digits."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = f"train digits --recipe rho-vae --latent 2 --epochs 1 --seed 3 --quiet --out {out}"
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}


def test_train_writes_a_run_named_by_its_recipe(run):
    settings = json.loads((run / "run.json").read_text())
    assert (settings["recipe"], settings["latent"], settings["seed"]) == ("rho-vae", 2, 3)


def test_train_goes_on_with_a_run_when_asked_to(capsys, monkeypatch, run):
    command = "train digits --recipe rho-vae --latent 2 --epochs 2 --seed 3 --quiet"
    status, shown, _ = rhovae(capsys, monkeypatch, command, "--resume auto --out", run)
    assert status == 0
    assert "epoch 2" in shown


def test_train_without_resume_leaves_a_run_alone_and_says_so(capsys, monkeypatch, run):
    before = contents(run)
    status, shown, error = rhovae(capsys, monkeypatch, "train", "digits", "--out", run)
    assert (status, shown) == (1, "")
    assert "already holds a run" in error
    assert contents(run) == before


def test_evaluate_prints_json_that_a_script_can_read(capsys, monkeypatch, run):
    options = "--metrics elbo,nll@16 --limit 100 --json"
    status, shown, _ = rhovae(capsys, monkeypatch, "evaluate", run, options)
    assert status == 0
    result = json.loads(shown)
    assert result["count"] == 100
    assert result["nll@16"]["mean"] < -result["elbo"]["mean"]


def test_evaluate_prints_for_readers_what_the_numbers_are_of(capsys, monkeypatch, run):
    # (No string, whose words would be taken apart.)
    spaced = ["--metrics", Path("elbo, nll@16, active-units"), "--limit 50"]
    status, shown, _ = rhovae(capsys, monkeypatch, "evaluate", run, *spaced)
    assert status == 0
    assert "50 data of digits, test, grey; nats" in shown
    for name in ("−ELBO", "nll@16", "effective sample size", "active-units"):
        assert name in shown


SMALL_GAP = "--limit 3 --samples 20 --chains 2 --temperatures 4 --families full,ar1 --quiet"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("data", ["test", "simulated"])
def test_gap_prints_a_table_and_draws_a_picture(capsys, monkeypatch, run, tmp_path, data):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    status, shown, _ = rhovae(capsys, monkeypatch, "gap", copy, SMALL_GAP, "--data", data)
    assert status == 0
    assert "3 data, " + {"test": "digits, test, grey"}.get(data, "drawn from the model") in shown
    assert "| full   |" in shown and "approximation gap" in shown
    assert ("at most" in shown) == (data == "simulated")
    picture = copy / f"gap-{data}.png"
    assert str(picture) in shown and picture.read_bytes().startswith(b"\x89PNG")
    status, shown, _ = rhovae(capsys, monkeypatch, "gap", copy, SMALL_GAP, "--json --data", data)
    assert status == 0
    assert json.loads(shown) == json.loads((copy / f"gap-{data}.json").read_text("utf-8"))
    assert set(json.loads(shown)["families"]) == {"full", "ar1"}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--data train", "data is 'train'; it must be one of test, simulated"),
        ("--families full,laplace", "families holds 'laplace'"),
        ("--temperatures 1", "temperatures is 1; 2 at least"),
    ],
    ids=["data", "family", "temperatures"],
)
def test_gap_names_what_it_does_not_take(capsys, monkeypatch, run, option, says):
    status, shown, error = rhovae(capsys, monkeypatch, "gap", run, option)
    assert (status, shown) == (1, "") and says in error


@pytest.mark.parametrize("mode", ["--mean", "--draw"])
def test_sample_writes_a_picture(capsys, monkeypatch, run, tmp_path, mode):
    picture = tmp_path / "samples.png"
    status, shown, _ = rhovae(capsys, monkeypatch, "sample", run, "--n", 5, mode, "--out", picture)
    assert status == 0
    assert str(picture) in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["sample", "traverse"])
@pytest.mark.parametrize("seed", [-1, 10**25])
def test_any_integer_is_a_seed(capsys, monkeypatch, run, tmp_path, command, seed):
    picture = tmp_path / "picture.png"
    assert rhovae(capsys, monkeypatch, command, run, "--seed", seed, "--out", picture)[0] == 0
    assert picture.exists()


def test_doctor_says_what_runs_each_op(capsys, monkeypatch):
    status, shown, _ = rhovae(capsys, monkeypatch, "doctor")
    assert status == 0
    for op in ("ar1_reparam", "ar1_reparam_rng", "ar1_log_prob", "linear_scan"):
        assert op in shown
    status, shown, _ = rhovae(capsys, monkeypatch, "doctor", "--json")
    assert {row["op"] for row in json.loads(shown)["ops"]} >= {"ar1_reparam", "linear_scan"}
    with rk.use_backend("cuda"):
        status, shown, _ = rhovae(capsys, monkeypatch, "doctor")
    assert status == 1 and "asks for 'cuda'" in shown


def test_points_in_the_plane_are_trained_on_and_drawn(capsys, monkeypatch, tmp_path):
    out = tmp_path / "moons"
    command = "train two-moons --recipe scaled-rho-vae --latent 2 --epochs 1 --quiet --out"
    assert rhovae(capsys, monkeypatch, command, out)[0] == 0
    assert rhovae(capsys, monkeypatch, "sample", out)[0] == 0
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "recipe"),
    [
        ("two-moons", "nade-gaussian"),
        ("digits --binarize static", "nade"),
        ("digits --binarize static", "nade-orderless"),
    ],
    ids=["real", "binary", "orderless"],
)
def test_a_recipe_of_nade_is_trained_measured_and_drawn_from(
    capsys, monkeypatch, tmp_path, data, recipe
):
    command = f"train {data} --recipe {recipe} --epochs 1 --quiet --out"
    status, shown, error = rhovae(capsys, monkeypatch, command, tmp_path)
    assert status == 0, error
    command = "evaluate --metrics nll --limit 8 --json"
    status, shown, error = rhovae(capsys, monkeypatch, command, tmp_path)
    assert status == 0, error
    assert math.isfinite(json.loads(shown)["nll"]["mean"])
    assert rhovae(capsys, monkeypatch, "sample", tmp_path)[0] == 0
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def own_file(tmp_path) -> Path:
    path = tmp_path / "mine.npy"
    np.save(path, (255 * rk.data.load("digits").values[:80, 0]).to(torch.uint8).numpy())
    return path


def test_a_file_of_ones_own_is_trained_on_measured_and_drawn(
    capsys, monkeypatch, tmp_path, own_file
):
    out = tmp_path / "run"
    options = "--latent 2 --epochs 2 --batch-size 32 --optimizer adamw --schedule cosine"
    options += " --weight-decay 0.01 --clip 5 --average 0.9 --accumulate 2 --patience 5 --samples 2"
    status, shown, error = rhovae(
        capsys, monkeypatch, "train", own_file, options, "--valid 0.25 --out", out
    )
    assert status == 0, error
    assert "bytes are pixels: divided by 255" in shown
    assert "20 of 80 data, drawn at random, are held out" in shown
    settings = json.loads((out / "run.json").read_text())
    assert settings["data"]["kind"] == "file" and settings["data_path"] == str(own_file)
    assert settings["optimizer"] == "adamw" and settings["average"] == 0.9
    # The run knows its file.
    status, shown, error = rhovae(capsys, monkeypatch, "evaluate", out, "--metrics elbo --json")
    assert status == 0, error
    assert (json.loads(shown)["split"], json.loads(shown)["count"]) == ("valid", 20)
    for split, count in (("valid", 20), ("train", 60)):
        asked = ("evaluate", out, "--metrics elbo --json --split", split)
        status, shown, error = rhovae(capsys, monkeypatch, *asked)
        assert status == 0, error
        assert (json.loads(shown)["split"], json.loads(shown)["count"]) == (split, count)
    status, _, error = rhovae(capsys, monkeypatch, "evaluate", out, "--split test")
    assert status == 1 and "split is 'test'; of mine.npy the run has train and valid" in error
    for command in ("sample", "traverse"):
        assert rhovae(capsys, monkeypatch, command, out)[0] == 0
    own_file.unlink()
    status, _, error = rhovae(capsys, monkeypatch, "evaluate", out, "--metrics elbo")
    assert status == 1 and "mine.npy: no such file" in error


def test_of_a_table_samples_and_paths_are_arrays(capsys, monkeypatch, tmp_path):
    table, out = tmp_path / "table.npy", tmp_path / "run"
    np.save(table, np.random.default_rng(0).random((40, 12), np.float32))
    options = "--recipe scaled-rho-vae --latent 3 --epochs 1 --out"
    assert rhovae(capsys, monkeypatch, "train", table, options, out)[0] == 0
    for command, options, shape in (
        ("sample", "--n 5", (5, 12)),
        ("traverse", "--n 4 --steps 6", (4, 6, 12)),
    ):
        status, shown, error = rhovae(capsys, monkeypatch, command, out, options)
        assert status == 0, error
        path = Path(shown.strip())
        assert path.suffix == ".npy" and np.load(path).shape == shape
    status, _, error = rhovae(capsys, monkeypatch, "sample", out, "--out", tmp_path / "table.png")
    assert status == 1 and "pictures are of images" in error


PARTS = """
import torch

def parts():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Tanh())
    return {"encoder": net}
"""


def test_a_run_with_a_network_of_ones_own_takes_it_from_a_file(capsys, monkeypatch, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(PARTS)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Tanh())
    own = rk.VAE(
        encoder,
        rk.posteriors.AR1(2),
        rk.priors.StandardNormal(2),
        rk.decoders.Bernoulli(nets.MLP((1, 8, 8), hidden=(8,)).mirror(2)),
        input_shape=(1, 8, 8),
    )
    out = tmp_path / "run"
    rk.fit(own, "digits", epochs=1, out=out, quiet=True)
    status, _, error = rhovae(capsys, monkeypatch, "evaluate", out, "--metrics elbo --limit 20")
    assert status == 1 and "was defined outside rhovae_kernels" in error
    source.write_text(
        PARTS.replace('{"encoder": net}', '{"encoder": net, "decoder": decoder()}')
        + """
def decoder():
    import rhovae_kernels as rk
    return rk.decoders.Bernoulli(rk.nets.MLP((1, 8, 8), hidden=(8,)).mirror(2))
"""
    )
    parts = f"--parts {source}:parts"
    options = ["evaluate", out, parts, "--metrics elbo --limit 20 --json"]
    status, shown, error = rhovae(capsys, monkeypatch, *options)
    assert status == 0, error
    wanted = rk.evaluate(own, "digits", ["elbo"], limit=20)
    assert json.loads(shown)["elbo"] == wanted["elbo"]
    assert rhovae(capsys, monkeypatch, "sample", out, parts)[0] == 0
    status, _, error = rhovae(capsys, monkeypatch, "sample", out, f"--parts {source}:nothing")
    assert status == 1 and "holds no function 'nothing'" in error


ERRORS = {
    "recipe": ("train digits --recipe sigma-vae", "there is no recipe 'sigma-vae'"),
    "file": ("train nothing.npy", "nothing.npy: no such file"),
    "kind of file": ("train .", "holds no image, no file .bmp"),
    "optimizer": ("train digits --optimizer adamm", "optimizer is 'adamm'"),
    "schedule": ("train digits --schedule slow", "schedule is 'slow'"),
    "tracker": ("train digits --tracker wall", "trackers holds 'wall'"),
    "data set": ("train imagenet", "name is 'imagenet'; it must be one of digits"),
    "latent": ("train digits --latent 0", "latent is 0"),
    "epochs": ("train digits --epochs 0", "epochs is 0; it must be at least 1"),
    "binarize": ("train digits --binarize maybe", "binarize is 'maybe'"),
    "resume": ("train digits --resume yes", "resume is 'yes'"),
    "architecture": ("train two-moons --recipe cnn-vae", "input_shape is (2,)"),
    "run": ("evaluate nowhere", "nowhere holds no run"),
    "sample": ("sample nowhere", "nowhere holds no run"),
    "paper": ("reproduce vae", "there is no reproduction of 'vae'; there are rho-vae, iaf, dpvae"),
    "objectives": ("reproduce dpvae --objectives vae", "objectives is vae; there are dpvae, beta"),
    "models": (
        "reproduce pixelvae --models vae",
        "models holds 'vae'; there are pixelcnn, mlp-vae, pixelvae, pixelvae-7, pixelvae-3",
    ),
    "models of dpvae": (
        "reproduce dpvae --models vae",
        "models is 'vae'; a reproduction of dpvae takes none",
    ),
    "latent of a density": (
        "train digits --recipe pixelcnn --latent 3",
        "latent is 3; pixelvae-plain has no latent code",
    ),
    "points as zeros and ones": (
        "train two-moons --recipe nade",
        "outside the support of NADE",
    ),
    "orders of points": (
        "train two-moons --recipe nade-ensemble",
        "order is 'columns', of images; data of shape (2,) are none",
    ),
    "traversal": ("traverse nowhere", "nowhere holds no run"),
    "form": ("reproduce rho-vae --form info", "form is 'info'"),
    "form of iaf": ("reproduce iaf --form cnn", "form is 'cnn'; a reproduction of iaf takes none"),
    "grey": (
        "reproduce rho-vae --binarize round",
        "binarize is 'round'; a reproduction of rho-vae",
    ),
    "seeds": ("reproduce rho-vae --seeds a", "seeds is 'a'"),
    # What cannot be measured is said before anything is trained.
    "limit of rho-vae": ("reproduce rho-vae --data digits --limit 1", "limit is 1; a standard"),
    "limit of dpvae": ("reproduce dpvae --data two-moons --limit 1", "limit is 1; a standard"),
    "weights": ("reproduce dpvae --data digits --fid-weights nowhere", "nowhere: no such file"),
    "likelihood": (
        "reproduce iaf --likelihood normal",
        "likelihood is 'normal'; it must be one of",
    ),
    "likelihood of binary pixels": (
        "reproduce iaf --likelihood logistic --binarize round",
        "binarize is 'round'; the logistic likelihood is of 256 values",
    ),
    "days": ("reproduce volatility --days 7", "days is '7'; it must be one of all, 100"),
    "days of iaf": ("reproduce iaf --days 100", "days is '100'; a reproduction of iaf takes none"),
    "seeds of volatility": (
        "reproduce volatility --seeds 1",
        "seeds is '1'; a reproduction of volatility takes none",
    ),
    "seeds of maf": ("reproduce maf --seeds a", "seeds is 'a'; it must be integers"),
    "data of maf": ("reproduce maf --data svhn", "data is 'svhn'; it must be one of breast-cancer"),
    "data of volatility": (
        "reproduce volatility --data mnist",
        "data is 'mnist'; a reproduction of volatility takes none",
    ),
    "likelihood of rho-vae": (
        "reproduce rho-vae --likelihood logistic",
        "likelihood is 'logistic'; a reproduction of rho-vae takes none",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_with_status_one_and_leaves_nothing(
    capsys, monkeypatch, tmp_path, case
):
    monkeypatch.chdir(tmp_path)
    command, message = ERRORS[case]
    status, shown, error = rhovae(capsys, monkeypatch, command)
    assert (status, shown) == (1, "")
    assert error.startswith("rhovae: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_metric_lists_those_that_are_there(capsys, monkeypatch, run):
    status, _, error = rhovae(capsys, monkeypatch, "evaluate", run, "--metrics", "elbo,psnr")
    assert status == 1
    assert "there is no metric 'psnr'; there are elbo, nll@K" in error


def test_a_picture_of_no_known_format_is_refused(capsys, monkeypatch, run, tmp_path):
    path = tmp_path / "samples.docx"
    status, _, error = rhovae(capsys, monkeypatch, "sample", run, "--out", path)
    assert status == 1
    assert "samples.docx; its suffix must name a picture's format" in error
    assert not path.exists()


def test_a_damaged_model_is_named(capsys, monkeypatch, run, tmp_path):
    for path in run.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:-9] if path.suffix == ".safetensors" else data)
    status, _, error = rhovae(capsys, monkeypatch, "evaluate", tmp_path)
    assert status == 1
    assert "model.safetensors: truncated or corrupted" in error


def test_wrong_usage_has_status_two(capsys, monkeypatch):
    assert rhovae(capsys, monkeypatch, "train", "digits", "--colour", "red")[0] == 2
    assert rhovae(capsys, monkeypatch, "sample", "run", "--n", "0")[0] == 2


def test_help_and_doctor_do_not_wait_for_libraries_that_only_training_needs():
    code = "import sys, rhovae_kernels.cli; print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    heavy = ["matplotlib", "sklearn", "accelerate"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.stdout == "[]\n", ended.stderr


def test_reproduce_prints_reported_and_true_figures_side_by_side_and_resumes(
    capsys, monkeypatch, tmp_path
):
    command = "reproduce rho-vae --data digits --latent 2 --epochs 2 --seeds 0 --limit 40 --quiet"
    arguments = [command, "--out", tmp_path]
    status, shown, _ = rhovae(capsys, monkeypatch, *arguments)
    assert status == 0
    assert "as published: not a bound" in shown
    table = json.loads((tmp_path / "table.json").read_text())
    rows = {row["model"]: row for row in table["rows"]}
    assert len(rows) == 4
    wrong = rows.pop("as published: not a bound")
    assert wrong["reported_loss"] < wrong["negative_elbo"] - 1
    for row in rows.values():
        # The objective of the others is −ELBO itself, summed in another order.
        assert row["reported_loss"] == pytest.approx(row["negative_elbo"], rel=1e-6)
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert {"reported_loss.png", "negative_elbo.png", "samples-published.png"} <= pictures
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/last.safetensors")}
    assert len(runs) == 4
    status, again, _ = rhovae(capsys, monkeypatch, *arguments, "--json")
    assert status == 0
    assert json.loads(again) == table
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


def test_reproduce_iaf_names_the_data_keeps_the_posts_apart_and_resumes(
    capsys, monkeypatch, tmp_path
):
    command = "reproduce iaf --data digits --latent 4 --epochs 1 --seeds 0 --limit 20 --quiet"
    arguments = [command, "--out", tmp_path]
    status, shown, _ = rhovae(capsys, monkeypatch, *arguments)
    assert status == 0
    assert "digits (rounded pixels)" in shown
    ours, theirs = shown.split("Keng (2017), on other data")
    assert "72.33" not in ours and "72.33" in theirs
    assert "CIFAR-10 was not given" in theirs and "1820.17" in theirs
    table = json.loads((tmp_path / "table.json").read_text())
    assert len(table["rows"]) == 3
    for row in table["rows"]:
        total = row["test_distortion"] + row["test_rate"]
        assert row["test_negative_elbo"] == pytest.approx(total)
        assert f"{row['test_distortion']:.2f}" in ours
        assert row["nll"] != row["test_negative_elbo"]
    sizes = [row["parameters"] for row in table["rows"]]
    assert sizes[0] < sizes[2] < sizes[1]
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert {"validation_loss.png", "samples-iaf-vae.png"} <= drawn
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/last.safetensors")}
    assert len(runs) == 3
    status, again, _ = rhovae(capsys, monkeypatch, *arguments, "--json")
    assert status == 0
    assert json.loads(again) == table
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


@pytest.fixture
def colours(tmp_path) -> Path:
    """The directory of a CIFAR-10 of a few records."""
    directory = tmp_path / "data" / "cifar-10"
    directory.mkdir(parents=True)
    state = np.random.RandomState(0)
    for name in (name for names in cifar.FILES.values() for name in names):
        records = state.randint(0, 256, (4, cifar.RECORD)).astype(np.uint8)
        records[:, 0] %= 10
        (directory / name).write_bytes(records.tobytes())
    return directory.parent


@pytest.fixture
def narrow_cifar_networks(monkeypatch):
    """The recipes of CIFAR-10 as they are, but for the widths of their convolutions."""
    narrow = functools.partial(nets.Conv, channels=(4, 4, 4), hidden=(8, 8), activation="elu")
    for name in [name for name in RECIPES if name.startswith("iaf-vae-cifar")]:
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], encoder=narrow))


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic"])
@pytest.mark.usefixtures("narrow_cifar_networks")
def test_reproduce_iaf_trains_on_cifar_10_and_prints_the_posts_rows_of_it(
    capsys, monkeypatch, tmp_path, colours, likelihood
):
    command = "reproduce iaf --data cifar-10 --latent 4 --epochs 1 --seeds 0 --limit 2 --quiet"
    arguments = [command, "--likelihood", likelihood, "--data-root", colours]
    status, shown, _ = rhovae(capsys, monkeypatch, *arguments, "--out", tmp_path / "out")
    assert status == 0
    assert "cifar-10 (grey pixels)" in shown and "CIFAR-10 was not given" not in shown
    assert "does not state the likelihood" in shown and "70.92" not in shown
    for figure in ("1815.29", "1820.17", "1781.58", "1815.07", "1823.05", "1786.24"):
        assert shown.count(figure) == 1
    # Of Keng's likelihood, as far as it can be known, the rows are in one table.
    assert ("Keng (2017), on CIFAR-10, but of another" in shown) == (likelihood == "logistic")
    assert ("bits/dim" in shown) == (likelihood == "logistic")
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["training_data"] == 18 and len(table["rows"]) == 3
    kind = {"bernoulli": "decoders.Bernoulli", "logistic": "decoders.DiscretizedLogistic"}
    for path in (tmp_path / "out").glob("*/config.json"):
        assert json.loads(path.read_text())["decoder"]["part"] == kind[likelihood]
    for row in table["rows"]:
        assert f"{row['test_distortion']:.2f}" in shown
        if likelihood == "logistic":
            assert row["nll_bits"] == pytest.approx(row["nll"] / (3 * 32 * 32) / math.log(2))
            line = next(line for line in shown.splitlines() if line.startswith(f"| {row['model']}"))
            cells = [cell.strip() for cell in line.split("|")]
            assert cells[-3:-1] == [f"{row['elbo_bits']:.2f}", f"{row['nll_bits']:.2f}"]


def test_reproduce_dpvae_prints_both_priors_side_by_side_and_resumes(capsys, monkeypatch, tmp_path):
    command = "reproduce dpvae --data two-moons --objectives dpvae --epochs 1 --seeds 0,1"
    arguments = [command, "--limit 100 --quiet --out", tmp_path]
    status, shown, _ = rhovae(capsys, monkeypatch, *arguments)
    assert status == 0
    assert "two-moons (continuous), d = 2" in shown and "1 epochs (20 steps)" in shown
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["objective"] for row in table["rows"]] == ["dpvae"]
    for row in table["rows"]:
        assert row["published"] == {}
        for prior in ("plain", "decoupled"):
            skl = [entry["skl"] for entry in row[prior]["seeds"]]
            assert row[prior]["skl"]["mean"] == pytest.approx(sum(skl) / 2)
            assert row[prior]["skl"]["spread"] == pytest.approx(abs(skl[0] - skl[1]) / 2**0.5)
        assert (tmp_path / f"pockets-{row['objective']}.png").read_bytes().startswith(b"\x89PNG")
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/last.safetensors")}
    assert len(runs) == 4
    status, again, _ = rhovae(capsys, monkeypatch, *arguments, "--json")
    assert status == 0 and json.loads(again) == table
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


@pytest.mark.parametrize("mode", ["low-posterior", "high-posterior"])
def test_pockets_and_leaks_are_sampled(capsys, monkeypatch, run, tmp_path, mode):
    path = tmp_path / "samples.png"
    arguments = ["sample", run, "--n 6 --mode", mode, "--out", path]
    assert rhovae(capsys, monkeypatch, *arguments)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mode", ["samples", "factors"])
def test_traverse_draws_paths(capsys, monkeypatch, run, tmp_path, mode):
    path = tmp_path / "paths.png"
    arguments = ["traverse", run, "--n 3 --steps 4 --mode", mode, "--out", path]
    assert rhovae(capsys, monkeypatch, *arguments)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_modes_metrics_and_thresholds_that_cannot_be_are_named(capsys, monkeypatch, run, tmp_path):
    for words, says in (
        ("--mode blur", "mode is 'blur'; it must be one of prior, low-posterior"),
        ("--mode low-posterior --n 6000", "n is 6000; it must be at most 5000"),
    ):
        status, _, error = rhovae(capsys, monkeypatch, "sample", run, words, "--out", tmp_path)
        assert status == 1 and says in error
    status, _, error = rhovae(capsys, monkeypatch, "traverse", run, "--mode up")
    assert status == 1 and "mode is 'up'; it must be one of samples, factors" in error
    for words, says in (
        ("leakage --thresholds 2,1", "thresholds is 2, 1; it must hold finite numbers that ascend"),
        ("leakage --thresholds 1,b", "thresholds is '1,b'; it must be numbers, with commas"),
        ("fid", "fid takes fid_weights (--fid-weights)"),
        ("fid --fid-weights nowhere", "nowhere: no such file"),
    ):
        status, _, error = rhovae(capsys, monkeypatch, "evaluate", run, "--metrics", words)
        assert status == 1 and says in error
    assert list(tmp_path.iterdir()) == []


def test_reproduce_volatility_holds_every_posterior_against_stan(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(stochastic_volatility, "ROUND", 2)
    monkeypatch.setattr(stochastic_volatility, "MOST_ROUNDS", 2)
    command = "reproduce volatility --days 100 --quiet --out"
    status, shown, error = rhovae(capsys, monkeypatch, command, tmp_path)
    assert status == 0 and error == ""
    assert "100 days, 2020-02-03 to 2020-06-24" in shown and "| Stan " in shown
    status, shown, _ = rhovae(capsys, monkeypatch, command, tmp_path, "--json")
    (series,) = json.loads(shown)["series"]
    assert status == 0 and len(series["rows"]) == 5
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.json",
        "table.md",
        "volatility-100.png",
    }


def test_demo_ends_in_a_table_and_pictures_and_can_be_run_again(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "TIMED_STEPS", 2)
    monkeypatch.setattr(demo, "DAYS", 100)
    status, shown, _ = rhovae(capsys, monkeypatch, "demo --out", tmp_path)
    assert status == 0
    assert "NLL@256" in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["models"]) == {"vae", "rho-vae"}
    assert set(results["ops"]) == set(rk.ops.__all__)
    assert all(row["error"] <= demo.TOLERANCE for row in results["ops"].values())
    assert [row["form"] for row in results["volatility"]["rows"]] == list(demo.VOLATILITIES)
    # It leads with the volatility, and ends in its picture.
    assert shown.index("mean field") < shown.index("backend")
    assert (
        "Correlation of the days is worth 14.2 nats; one ρ for all of them has all but 0.2" in shown
    )
    *_, picture, following, command = shown.rstrip().splitlines()
    assert picture.endswith(f"and Stan: {tmp_path / 'volatility.png'}")
    assert following.endswith("docs/index.md") and command.startswith("rhovae train mine.npy ")
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert "volatility.png" in drawn
    for kind in ("samples", "reconstructions"):
        assert {f"{kind}-vae.png", f"{kind}-rho-vae.png"} <= drawn
    assert rhovae(capsys, monkeypatch, "demo --out", tmp_path)[0] == 0
    again = json.loads((tmp_path / "results.json").read_text())
    for name, row in results["models"].items():
        assert again["models"][name]["nll@256"] == row["nll@256"]


def test_demo_times_no_op_that_differs_from_its_reference():
    def wrong(x: torch.Tensor) -> torch.Tensor:
        forced = backends.choose("cpu")[0] == "reference"
        return x if forced else x * (1 + 1e-4)

    with pytest.raises(FloatingPointError, match=r"wrong differs from its reference by 1\.0e-04"):
        demo._check("wrong", (wrong, [torch.ones(3)]), "cpu")


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (5, 3, 8, 8), (5, 2)])
def test_images_and_points_are_drawn(tmp_path, shape):
    x = torch.rand(shape)
    pictures.samples(tmp_path / "samples.png", x, "samples")
    pictures.reconstructions(tmp_path / "reconstructions.svg", x, x)
    pictures.paths(tmp_path / "paths.png", torch.stack([x, x]))
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "reconstructions.svg").read_bytes()


def test_data_that_are_neither_images_nor_points_are_not_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"x is of shape \(5, 3\); pictures are of images"):
        pictures.samples(tmp_path / "samples.png", torch.rand(5, 3))
    assert list(tmp_path.iterdir()) == []
