"""The study of PixelVAEs: what it compares, and what it says of it."""

import dataclasses
import json
from functools import partial

import pytest

import rhovae_kernels as rk
from rhovae_kernels.papers import pixelvae, registry
from rhovae_kernels.vae.recipes import RECIPES

NAMES = ["pixelcnn", "mlp-vae", "pixelvae", "pixelvae-7", "pixelvae-3"]


@pytest.fixture
def narrow(monkeypatch):
    """The recipes of the study as they are, but for the widths and depths of their networks."""
    decoder = partial(rk.decoders.PixelCNN, channels=4, layers=4, hidden=4)
    encoder = partial(rk.nets.Conv, channels=(4, 4), hidden=(8,))
    for name, changes in (
        ("pixelvae", {"decoder": decoder, "encoder": encoder}),
        ("pixelvae-plain", {"decoder": decoder}),
    ):
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], **changes))
    monkeypatch.setattr(pixelvae, "SAMPLES", 2)
    monkeypatch.setattr(pixelvae, "MLP_SAMPLES", 3)


def built(data: str = "digits") -> dict:
    study = pixelvae.study(data)
    return {model.name: model.build((1, 8, 8)) for (model,) in study.rows}


def test_the_pixelvaes_differ_in_how_far_their_decoders_see_alone():
    models = built()
    whole, *others = (models[name] for name in NAMES[2:])
    assert [other.decoder.receptive_field for other in others] == [7, 3]
    assert whole.decoder.receptive_field == 15
    for other in others:
        for name, described in whole._hub_mixin_config.items():
            also = dict(other._hub_mixin_config[name])
            if name == "decoder":
                also["receptive_field"] = None
            assert also == described
    assert models["pixelcnn"].p.arguments() == whole.decoder.arguments()
    assert models["mlp-vae"].latent == 40 and whole.latent == 16
    assert registry.PAPERS["pixelvae"] is pixelvae.study


def test_of_larger_images_there_is_a_receptive_field_of_15_and_the_published_figures():
    study = pixelvae.study("mnist")
    assert [row[0].name for row in study.rows] == [*NAMES[:3], "pixelvae-15", *NAMES[3:]]
    assert study.binarize == "static" and study.facts["published"] == pixelvae.PUBLISHED
    assert pixelvae.study("digits").facts["published"] == {}


@pytest.mark.usefixtures("narrow", "one_thread")
def test_models_trained_by_calls_of_their_own_are_told_of_by_one_with_all(tmp_path):
    options = {"epochs": 1, "seeds": (0,), "limit": 8, "out": tmp_path, "quiet": True}
    part = pixelvae.reproduce(models=NAMES[:2], **options)
    assert [row["model"] for row in part["rows"]] == ["PixelCNN", "MLP VAE, d = 40"]
    assert not (tmp_path / "rate-distortion.png").exists()
    pixelvae.reproduce(models=NAMES[2:], **options)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/measures.json")}
    table = pixelvae.reproduce(**options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/measures.json")} == files
    assert len(files) == 5 and json.loads((tmp_path / "table.json").read_text("utf-8")) == table
    assert (tmp_path / "rate-distortion.png").exists()
    assert {path.name for path in tmp_path.glob("samples-*")} == {f"samples-{n}.png" for n in NAMES}
    exact, mlp, *pixelvaes = table["rows"]
    assert exact["nll"] > 0 and exact["rate"] is None and exact["latent"] == 0
    for row in (mlp, *pixelvaes):
        assert row["negative_elbo"] == pytest.approx(row["distortion"] + row["rate"], abs=0.5)
        assert 0 <= row["share"] <= 1 and len(row["seeds"][0]["kl"]) == row["latent"]
    epochs = [
        len(json.loads(path.read_text("utf-8"))) for path in tmp_path.glob("mlp*/history.json")
    ]
    assert epochs == [10]
    page = (tmp_path / "table.md").read_text("utf-8")
    assert "PixelVAE, whole image" in page and "8 test images" in page and "published" not in page


def test_published_figures_stand_below_with_what_differs():
    row = dict.fromkeys(pixelvae.COLUMNS) | {"model": "PixelCNN", "nll": 85.0}
    table = {
        "data": "mnist",
        "label": "static",
        "training_data": 20430,
        "test_data": 500,
        "epochs": 6,
        "batch_size": 32,
        "lr": 2e-3,
        "seeds": [0],
        "rows": [row],
        "published": pixelvae.PUBLISHED,
    }
    page = pixelvae.describe(table)
    assert page.index("85.00") < page.index("81.30") < page.index("80.10") < page.index("79.66")
    assert "trained on 50,000 images" in page


def test_a_model_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="models holds 'pixelvae-15'; there are pixelcnn, mlp-vae"):
        pixelvae.study("digits", models=["pixelvae-15"])
