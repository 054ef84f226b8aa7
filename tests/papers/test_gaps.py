"""The study of the gaps: what it compares, and what it says of it."""

import json

import pytest

from rhovae_kernels.papers import gaps, registry

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_but_the_posterior_is_equal():
    study = gaps.study(latent=2)
    models = [model.build((1, 8, 8)) for model in study.rows[0]]
    kinds = [type(vae.posterior).__name__ for vae in models]
    assert kinds == ["Diagonal", "AR1", "ScaledAR1", "IAF"]
    for part in ("encoder", "prior", "decoder", "objective"):
        described = [vae._hub_mixin_config[part] for vae in models]
        assert all(other == described[0] for other in described)
    assert registry.PAPERS["gaps"] is gaps.study


@pytest.mark.parametrize(("data", "hidden"), [("digits", 200), ("mnist", 400), ("kmnist", 400)])
def test_each_data_set_has_its_own_size(data, hidden):
    study = gaps.study(data, epochs=3)
    assert study.epochs == 3 and study.facts["hidden"] == hidden
    assert study.rows[0][0].build((1, 8, 8)).encoder.hidden == (hidden,)
    assert study.limit == gaps.SETTINGS.get(data, gaps.SETTINGS["mnist"])["limit"]


def test_it_is_trained_measured_and_written_down_once(tmp_path, monkeypatch):
    small = {"hidden": 8, "epochs": 1, "limit": 3, "temperatures": 6}
    monkeypatch.setitem(gaps.SETTINGS, "digits", small)
    monkeypatch.setattr(gaps, "SAMPLES", 40)
    monkeypatch.setattr(gaps, "EVERYWHERE", ("diagonal", "full"))
    two = {name: gaps.POSTERIORS[name] for name in ("diagonal", "iaf")}
    monkeypatch.setattr(gaps, "POSTERIORS", two)
    options = {"latent": 2, "seeds": (0, 3), "quiet": True, "out": tmp_path}
    table = gaps.reproduce(**options)
    assert json.loads((tmp_path / "table.json").read_text("utf-8")) == table
    assert table["test_data"] == 3 and table["label"] == "static"
    models = table["rows"][0]["models"]
    assert [model["posterior"] for model in models] == ["diagonal", "IAF"]
    for model in models:
        assert [entry["seed"] for entry in model["seeds"]] == [0, 3]
        total = model["negative_elbo"] - model["nll_upper"]
        assert model["approximation"] + model["amortization"] == pytest.approx(total)
    assert "iaf" in models[-1]["families"] and "iaf" not in models[0]["families"]
    page = (tmp_path / "table.md").read_text("utf-8")
    assert "| IAF       |" in page and "Approximation gap of each family" in page
    noted = json.loads(json.dumps(table))
    noted["rows"][0]["models"][1]["seeds"][1]["notes"].append("bracket: wide")
    assert "note: bracket: wide" in gaps.describe(noted) and "bracket: wide" not in page
    assert (tmp_path / "gaps.png").exists() and (tmp_path / "negative_elbo.png").exists()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/gaps.json")}
    assert len(files) == 4 and gaps.reproduce(**options) == table
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/gaps.json")} == files
    assert gaps.reproduce(**{**options, "seeds": (0,), "limit": 2})["test_data"] == 2
