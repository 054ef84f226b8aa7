"""The study of flows: its data, its models, and what it says of them."""

import json
import math

import pytest
import torch

from rhovae_kernels.papers import flow_data, flow_models, maf, registry
from rhovae_kernels.papers.flow_models import FUSED, OURS, PEER, FlowDecoder, Sizes, density
from rhovae_kernels.vae.density import Density

SMALL = Sizes(2, (8, 8))


@pytest.fixture
def small(monkeypatch):
    """Few dimensions and rows, small networks, times that are taken once."""
    rows, labels = {}, {}
    for seed, (split, count) in enumerate({"train": 60, "valid": 20, "test": 30}.items()):
        generator = torch.Generator().manual_seed(seed)
        rows[split] = torch.randn(count, 4, generator=generator, dtype=torch.float64)
        labels[split] = torch.arange(count) % 3
    monkeypatch.setitem(flow_data.TABLES, "digits", lambda root: (rows, labels, "numbers"))
    monkeypatch.setitem(maf.SETTINGS, "digits", maf.Settings(SMALL, 2, 30, 1e-2, 5, 40))
    monkeypatch.setattr(maf, "ROUNDS", 1)


@pytest.mark.parametrize(
    ("name", "counts", "features", "classes"),
    [("breast-cancer", (398, 57, 114), 30, 2), ("digits", (1257, 180, 360), 64, 10)],
    ids=["breast-cancer", "digits"],
)
def test_data_are_standardized_by_the_training_split(name, counts, features, classes):
    found = flow_data.table(name)
    assert tuple(len(x) for x in found.rows.values()) == counts
    assert (found.features, found.classes) == (features, classes)
    train = found.rows["train"]
    torch.testing.assert_close(train.mean(0), torch.zeros(features), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0), torch.ones(features), atol=1e-5, rtol=0)
    given = found.given_to(True, "test")
    assert torch.equal(given[:, :features], found.given_to(False, "test"))
    assert torch.equal(given[:, features:].argmax(1), found.labels["test"])
    assert torch.equal(flow_data.table(name).rows["test"], found.rows["test"])


def test_pixels_are_found_again_in_the_logits_of_their_dequantized_values():
    values, _, _ = flow_data.TABLES["digits"](None)
    margin = flow_data.LOGIT_MARGIN
    x = (values["test"].sigmoid() - margin) / (1 - 2 * margin) * 17
    pixels = 16 * flow_data.load("digits", split="test").images.flatten(1)
    assert torch.equal(x.floor().float(), pixels)
    noise = x - x.floor()
    assert abs(noise.mean().item() - 0.5) < 0.01 and abs(noise.var().item() - 1 / 12) < 0.002


def test_the_log_scale_is_what_standardizing_adds_to_a_density():
    values, _, _ = flow_data.TABLES["breast-cancer"](None)
    found = flow_data.table("breast-cancer")
    before = torch.distributions.Normal(values["train"].mean(0), values["train"].std(0))
    after = torch.distributions.Normal(0.0, 1.0)
    difference = after.log_prob(found.rows["test"]).sum(1) - before.log_prob(values["test"]).sum(1)
    torch.testing.assert_close(
        difference, torch.full_like(difference, found.log_scale), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("classes", [0, 3], ids=["alone", "with the class"])
@pytest.mark.parametrize("flow", flow_models.FLOWS)
@pytest.mark.parametrize("kind", [OURS, PEER, FUSED])
def test_every_kind_is_a_density_that_draws_data_of_its_own_shape(kind, flow, classes):
    if kind != OURS:
        pytest.importorskip("zuko", reason="zuko, a peer, is not installed")
    model = density(kind, flow, SMALL, 4, classes)
    x = model.sample(6)
    assert x.shape == (6, 4 + classes)
    log_p = model.log_prob(x)
    if classes:
        assert torch.equal(x[:, 4:].sum(1), torch.ones(6))
        assert x[:, 4:].unique().tolist() == [0, 1]
        given = model.p.flow(x[:, 4:]).log_prob(x[:, :4])
        torch.testing.assert_close(log_p, given - math.log(classes))
    else:
        torch.testing.assert_close(log_p, model.p.flow(None).log_prob(x))
    model(x).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("classes", [0, 3], ids=["alone", "with the class"])
@pytest.mark.parametrize("flow", flow_models.FLOWS)
def test_both_libraries_have_as_many_parameters_and_fuse_keeps_the_density(flow, classes):
    pytest.importorskip("zuko", reason="zuko, a peer, is not installed")
    models = {}
    for kind in flow_models.kinds():
        torch.manual_seed(0)
        models[kind] = density(kind, flow, SMALL, 4, classes)
    assert len({sum(p.numel() for p in model.parameters()) for model in models.values()}) == 1
    x = models[OURS].sample(20)
    torch.testing.assert_close(models[FUSED].log_prob(x), models[PEER].log_prob(x))


@pytest.mark.parametrize(
    ("latent", "shape"), [(1, (5,)), (0, (3,)), (0, (1, 4, 4))], ids=["code", "class", "images"]
)
def test_a_flow_refuses_what_is_no_row_of_data_and_class(latent, shape):
    decoder = FlowDecoder(flow_models.MAF(4, 1, (8,)), classes=3)
    with pytest.raises(ValueError, match="rows of more than 3 numbers and no code are wanted"):
        decoder.build(None, latent, shape)


def test_it_is_trained_measured_and_written_down_and_goes_on_where_it_was(
    small, monkeypatch, tmp_path
):
    models = ("nsf", "nsf-conditional")
    table = maf.reproduce("digits", models=models, seeds=(0, 3), out=tmp_path, quiet=True)
    assert json.loads((tmp_path / "table.json").read_text("utf-8")) == table
    kinds = flow_models.kinds()
    found = [(row["flow"], row["conditional"], row["kind"]) for row in table["rows"]]
    assert found == [("NSF", conditional, k) for conditional in (False, True) for k in kinds]
    for row in table["rows"]:
        first, second = row["log_prob"]["seeds"]
        assert row["log_prob"]["mean"] == pytest.approx((first + second) / 2)
        assert row["log_prob"]["over_seeds"] == pytest.approx(abs(first - second) / 2**0.5)
        assert ("difference" in row) == (row["kind"] != PEER and PEER in kinds)
        if row["kind"] == FUSED:
            # It starts from the same weights, and is trained on the same batches.
            assert abs(row["difference"]["mean"]) < 1e-3
            assert row["difference"]["standard_error"] < 1e-3
        for of_row in row["seconds"].values():
            assert of_row["rounds"] == [of_row["median"]] and of_row["median"] > 0
    run = tmp_path / "NSF-conditional-rhovae_kernels-seed0"
    p = FlowDecoder(flow_models.NSF(4, *SMALL, context=3, activation="relu"), classes=3)
    test = flow_data.table("digits").given_to(True, "test")
    expected = Density.from_pretrained(run, p=p).log_prob(test).mean().item() + math.log(3)
    of_run = table["rows"][len(kinds)]["log_prob"]["seeds"][0]
    assert of_run == pytest.approx(expected, abs=1e-5)
    page = (tmp_path / "table.md").read_text("utf-8")
    assert page == maf.describe(table) + "\n"
    assert f"| NSF, given the class | {OURS} " in page and f"threads: {table['threads']}," in page
    assert ", an epoch here of 40 data, are medians" in page and "| 5 samples, s |" in page
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/last.safetensors")}
    assert len(files) == 4 * len(kinds)
    monkeypatch.setattr(maf, "kinds", lambda: [OURS])
    again = maf.reproduce("digits", models=models, seeds=(0, 3), out=tmp_path, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    ours = [row["log_prob"] for row in table["rows"] if row["kind"] == OURS]
    assert [row["log_prob"] for row in again["rows"]] == ours


def test_without_zuko_our_flows_are_measured_alone(small, monkeypatch, tmp_path):
    monkeypatch.setattr(maf, "kinds", lambda: [OURS])
    table = maf.reproduce("digits", models=["maf"], seeds=(0,), out=tmp_path, quiet=True)
    assert [(row["flow"], row["conditional"]) for row in table["rows"]] == [("MAF", False)]
    assert {row["kind"] for row in table["rows"]} == {OURS}
    assert "zuko" not in table["versions"] and "| ×" not in maf.describe(table)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": "svhn"}, "data is 'svhn'; it must be one of breast-cancer, digits, mnist"),
        ({"models": ["iaf"]}, "models holds 'iaf'; there are maf, maf-conditional, nsf, nsf-con"),
        ({"seeds": []}, "seeds is empty; it must hold one seed at least"),
    ],
    ids=["data", "models", "seeds"],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        maf.reproduce(**options, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_table_has_settings_and_the_command_knows_the_study():
    assert maf.SETTINGS.keys() == flow_data.TABLES.keys()
    assert registry.FITS["maf"] == (maf.reproduce, maf.describe)
