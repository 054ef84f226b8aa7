"""The study of orders: what it compares, and what it says of it."""

import json

import pytest
import torch

from rhovae_kernels.papers import orders, registry
from rhovae_kernels.vae.decoders import NADE, OrderlessNADE


@pytest.fixture
def small(monkeypatch):
    """Few orders, and networks of few units."""
    made = {
        "nade": ("a network each", lambda: NADE((64,), ["raster", "spiral"])),
        "orderless": ("one network", lambda: OrderlessNADE((4,), ["raster", "spiral"])),
    }
    monkeypatch.setattr(orders, "MODELS", made)
    monkeypatch.setattr(orders, "ORDERS", ("raster", "spiral"))


def test_both_models_have_the_same_orders():
    study = orders.study()
    decoders = [row[0].build((1, 8, 8)).p for row in study.rows]
    assert [type(decoder) for decoder in decoders] == [NADE, OrderlessNADE]
    assert all(decoder.orders == orders.ORDERS for decoder in decoders)
    assert study.binarize == "round" and study.data == "digits"
    assert registry.PAPERS["orders"] is orders.study


def test_it_is_trained_measured_and_written_down_once(small, tmp_path):
    out = tmp_path / "out"
    options = {"epochs": 1, "seeds": (0, 3), "limit": 20, "quiet": True}
    table = orders.reproduce(out=out, **options)
    assert json.loads((out / "table.json").read_text("utf-8")) == table
    assert [row["model"] for row in table["rows"]] == ["a network each", "one network"]
    for row in table["rows"]:
        assert [entry["seed"] for entry in row["seeds"]] == [0, 3]
        for entry in row["seeds"]:
            nll = torch.tensor(entry["nll"])
            assert entry["mean"] == pytest.approx(nll.mean().item(), rel=1e-5)
            assert 0 <= entry["gain"] == pytest.approx(entry["mean"] - entry["ensemble"], abs=1e-9)
        first, second = (entry["ensemble"] for entry in row["seeds"])
        assert row["ensemble"]["mean"] == pytest.approx((first + second) / 2)
        assert row["ensemble"]["over_seeds"] == pytest.approx(abs(first - second) / 2**0.5)
    lines = (out / "table.md").read_text("utf-8").splitlines()
    (spiral,) = (line for line in lines if "spiral" in line)
    cell = table["rows"][1]["nll"][1]
    assert f"{cell['mean']:.2f} ± {cell['standard_error']:.2f}" in spiral
    assert (out / "samples-nade.png").exists() and (out / "samples-orderless.png").exists()
    files = {path: path.stat().st_mtime_ns for path in out.glob("*/orders.json")}
    assert len(files) == 4 and orders.reproduce(out=out, **options) == table
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/orders.json")} == files
