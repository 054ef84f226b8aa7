"""The study of the chorales: what it compares, and what it says of it."""

import json

import pytest
import torch

from rhovae_kernels.papers import chorales, registry


@pytest.fixture
def root(tmp_path):
    """Chorales of a few steps, in the published file's form."""
    torch.manual_seed(0)
    splits = {}
    for split, count in (("train", 12), ("valid", 3), ("test", 4)):
        ends = torch.randint(2, 6, (count,)).tolist()
        splits[split] = [torch.randint(40, 60, (end, 2)).tolist() for end in ends]
    (tmp_path / "jsb").mkdir()
    (tmp_path / "jsb" / "jsb-chorales-quarter.json").write_text(json.dumps(splits))
    return tmp_path


def test_all_but_the_posterior_is_equal():
    study = chorales.study(latent=2)
    one, other = (row[0].build((5, 88)) for row in study.rows)
    kinds = [type(vae.posterior).__name__ for vae in (one, other)]
    assert kinds == ["DiagonalSteps", "Markov"]
    for part in ("encoder", "prior", "decoder", "objective"):
        described = [vae._hub_mixin_config[part] for vae in (one, other)]
        assert described[0] == described[1]
    assert registry.PAPERS["chorales"] is chorales.study


def test_it_is_trained_measured_and_written_down_once(root, tmp_path):
    out = tmp_path / "out"
    options = {"latent": 2, "epochs": 2, "seeds": (0, 3), "data_root": root, "quiet": True}
    table = chorales.reproduce(out=out, **options)
    assert json.loads((out / "table.json").read_text("utf-8")) == table
    assert [row["posterior"] for row in table["rows"]] == ["independent steps", "Markov"]
    for row in table["rows"]:
        assert [entry["seed"] for entry in row["seeds"]] == [0, 3]
        for entry in row["seeds"]:
            # An importance-weighted bound is the tighter of the two, but for what was drawn.
            assert 0 < entry["nll"] < entry["negative_elbo"] + 1
            assert entry["rate"] > 0
    page = (out / "table.md").read_text("utf-8")
    assert "deep Markov model (Krishnan et al., 2017)" in page and "6.93" in page
    assert "NLL of Markov below that of independent steps, by seed:" in page
    assert (out / "samples-sequence-rho-vae.png").exists() and (out / "negative_elbo.png").exists()
    files = {path: path.stat().st_mtime_ns for path in out.glob("*/measures.json")}
    assert len(files) == 4 and chorales.reproduce(out=out, **options) == table
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/measures.json")} == files


def test_of_other_data_no_published_figures_are_shown():
    assert chorales.study("sp500").facts["published"] == {}
