"""What 0.1.0 saved and called by other names: runs, models, descriptions, keywords."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import rhovae_kernels as rk
from rhovae_kernels import legacy
from rhovae_kernels.files import load_tensors
from rhovae_kernels.vae import parts

RUNS = Path(__file__).parent / "fixtures" / "0.1.0"


def parts_of(name):
    """The parts that the runs of 0.1.0 were started with, under the names of now."""
    torch.manual_seed(0)
    net, decoder = rk.nets.MLP((1, 8, 8), hidden=(8,)), rk.decoders.Bernoulli()
    if name == "iaf":
        posterior = rk.posteriors.IAF(2, transforms=2, hidden_features=(4, 4), context=2)
        prior = rk.priors.MAF(2, transforms=2, hidden_features=(4,))
        return rk.VAE(net, posterior, prior, decoder)
    prior = rk.priors.RealNVP(2, transforms=2, hidden_features=(4,))
    objective = rk.objectives.WarmUp(rk.objectives.ELBO(), steps=15)
    return rk.VAE(net, rk.posteriors.AR1(2), prior, decoder, objective)


runs = pytest.mark.parametrize("name", ["iaf", "realnvp-warm-up"])


@runs
def test_a_run_of_0_1_0_goes_on_as_0_1_0_would_have(name, tmp_path):
    """One epoch by 0.1.0 and two of now give the history of three by 0.1.0."""
    out = tmp_path / "run"
    shutil.copytree(RUNS / name, out)
    expected = json.loads((out / "history-of-3-epochs.json").read_text("utf-8"))
    settings = {"epochs": 3, "out": out, "quiet": True, "binarize": "dynamic"}
    history = rk.fit(parts_of(name), "digits", resume="auto", **settings)
    # Weights, the moments of Adam and the noise of each epoch: one that is lost shows at once.
    # Another machine's kernels round otherwise.
    for now, then in zip(history.epochs, expected, strict=True):
        assert now == pytest.approx(then, rel=1e-5)


@runs
def test_a_run_of_0_1_0_is_resumed_with_its_own_settings_alone(name, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(RUNS / name, out)
    torch.manual_seed(0)
    other = parts_of("iaf" if name != "iaf" else "realnvp-warm-up")
    with pytest.raises(ValueError, match="model is"):
        rk.fit(other, "digits", epochs=3, out=out, quiet=True, binarize="dynamic", resume="auto")


@runs
@torch.no_grad()
def test_a_model_of_0_1_0_is_built_and_holds_its_weights(name):
    vae = rk.VAE.from_pretrained(RUNS / name)
    stored, _ = load_tensors(RUNS / name / "model.safetensors")
    now = vae.state_dict()
    # The order of parameters, by which the states of Adam are saved, is that of 0.1.0 as well.
    assert [p.shape for p in vae.parameters()] == [p.shape for p in parts_of(name).parameters()]
    assert sum(x.numel() for x in now.values()) == sum(x.numel() for x in stored.values())
    same = [torch.equal(now[key], stored[key]) for key in now.keys() & stored.keys()]
    assert all(same) and len(same) < len(now)
    x = torch.zeros(3, 1, 8, 8)
    assert vae.elbo(x).shape == (3,) and bool(vae.elbo(x).isfinite().all())


@runs
def test_a_description_of_0_1_0_is_that_of_the_same_parts_now(name):
    config = json.loads((RUNS / name / "config.json").read_text("utf-8"))
    vae = parts_of(name)
    described = {key: parts.describe(part) for key, part in vae.named_children()}
    assert legacy.description(config) == json.loads(json.dumps(described)) != config
    # What is said in the names of now stays as it is.
    assert legacy.description(described) == described


@pytest.mark.parametrize("name", [n for n in legacy.KEYWORDS if not n.startswith("nn.")])
def test_a_part_takes_its_keywords_of_0_1_0(name):
    home, kind = name.split(".")
    (steps, _), (hidden, _) = legacy.KEYWORDS[name].items()
    make = getattr(getattr(rk, home), kind)
    old = make(2, **{steps: 3, hidden: (6,)})
    assert (old.transforms, old.hidden_features) == (3, (6,))
    assert parts.describe(old)["transforms"] == 3
    with pytest.raises(TypeError, match=f"transforms came as {steps} too"):
        make(2, transforms=3, **{steps: 3})


def test_what_has_no_other_name_is_left_alone():
    for described in (
        {"part": "nets.MLP", "input_shape": [2], "hidden": [16]},
        {"part": "objectives.WarmUp", "objective": {"part": "objectives.ELBO"}, "steps": 15},
        {"part": None, "steps": 3},
    ):
        assert legacy.description(described) == described
