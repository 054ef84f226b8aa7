"""A model without a latent code: trained, measured, saved, loaded and sampled as a VAE is."""

import copy
import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rhovae_kernels as rk
from rhovae_kernels.cli import main
from rhovae_kernels.training.run import load_run
from rhovae_kernels.vae.decoders import Autoregressive
from rhovae_kernels.vae.loading import load

SHAPE = (1, 2, 3)


class Chain(Autoregressive):
    """p(x_i = 1 | x_<i) = σ(b_i + Σ_{j<i} w_ij x_j)."""

    support = torch.distributions.constraints.unit_interval

    def __init__(self, spread: float = 1.0):
        super().__init__()
        self.spread = spread

    def make(self) -> None:
        d = math.prod(self.input_shape)
        self.weight = nn.Parameter(self.spread * torch.randn(d, d))
        self.bias = nn.Parameter(self.spread * torch.randn(d))

    def conditionals(self, x: Tensor, z: Tensor | None) -> torch.distributions.Distribution:
        logits = x.flatten(1) @ self.weight.tril(-1).mT + self.bias
        logits = logits.unflatten(1, self.input_shape)
        return torch.distributions.Bernoulli(logits=logits, validate_args=False)

    def sample_rows(self, n: int, z: Tensor | None, generator: torch.Generator | None) -> Tensor:
        x = self.bias.new_zeros(n, len(self.bias))
        for i in range(len(self.bias)):
            chances = self.conditionals(x.unflatten(1, self.input_shape), z).mean.flatten(1)[:, i]
            x[:, i] = torch.bernoulli(chances, generator=generator)
        return x.unflatten(1, self.input_shape)


def density(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> rk.Density:
    torch.manual_seed(seed)
    return rk.Density(Chain(), shape)


def bits(n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, *SHAPE, generator=generator) < 0.4).float()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a density, and the model that it left."""
    model, out = density(), tmp_path_factory.mktemp("runs") / "run"
    rk.fit(model, bits(300), epochs=6, lr=0.1, out=out, quiet=True)
    return model, out


def test_the_loss_is_the_mean_surprise_and_there_is_no_rate():
    model, x = density(), bits(7)
    output = model(x)
    torch.testing.assert_close(output.distortion, -model.log_prob(x))
    torch.testing.assert_close(output.loss, output.distortion.mean())
    assert torch.equal(output.rate, torch.zeros(7)) and model.latent == 0
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6))).view(-1, *SHAPE)
    torch.testing.assert_close(model.log_prob(every).logsumexp(0), torch.tensor(0.0))


def test_fit_lowers_the_nll_and_its_run_holds_the_best_model(run):
    model, out = run
    history = json.loads((out / "history.json").read_text("utf-8"))
    column = [row["valid_negative_elbo"] for row in history]
    assert column[-1] < column[0] - 0.5 and {row["valid_rate"] for row in history} == {0}
    loaded, settings = load_run(out, p=Chain())
    assert settings["latent"] == 0 and list(settings["model"]) == ["p"]
    x = bits(5)
    assert isinstance(loaded, rk.Density) and torch.equal(loaded.log_prob(x), model.log_prob(x))


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(run, tmp_path):
    model, _ = run
    for epochs in (2, 6):
        again = density()
        rk.fit(again, bits(300), epochs=epochs, lr=0.1, out=tmp_path, resume="auto", quiet=True)
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


def test_an_average_of_its_weights_is_what_is_measured_and_kept(tmp_path):
    model = density()
    rk.fit(model, bits(64), epochs=2, average=0.9, out=tmp_path, quiet=True)
    found = rk.evaluate(model, bits(64))["nll"]["mean"]
    assert math.isfinite(found) and model.validate_args


def test_evaluate_gives_the_exact_nll_with_its_error_and_in_bits(run):
    model, _ = run
    x = bits(50, seed=3)
    result = rk.evaluate(model, x)
    surprise = -model.log_prob(x).detach().double()
    entry = result["nll"]
    assert entry["mean"] == pytest.approx(surprise.mean().item())
    assert entry["standard_error"] == pytest.approx(surprise.std().item() / math.sqrt(50))
    assert entry["bits_per_dimension"] == pytest.approx(entry["mean"] / 6 / math.log(2))
    assert dict(result.lines())["  bits per dimension"] == f"{entry['bits_per_dimension']:.4f}"


@pytest.mark.parametrize("metric", ["elbo", "nll@5", "active-units", "skl", "leakage", "mi", "tc"])
def test_a_metric_of_a_code_is_refused_by_name(run, metric):
    with pytest.raises(ValueError, match=f"{metric} is measured of a VAE, and this model is a De"):
        rk.evaluate(run[0], bits(5), [metric])


def test_the_exact_nll_of_a_vae_is_refused():
    vae = rk.recipes.recipe("vae").build(SHAPE, 2)
    with pytest.raises(ValueError, match=r"nll is measured of a Density, and .* there are elbo"):
        rk.evaluate(vae, bits(5), ["nll"])


def test_samples_are_drawn_from_the_generator_as_the_density_says():
    model = density()
    first, again = (model.sample(4000, generator=torch.Generator().manual_seed(5)) for _ in "ab")
    assert torch.equal(first, again) and first.shape == (4000, *SHAPE)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6))).view(-1, *SHAPE)
    chances = model.log_prob(every).exp()
    counts = (first[:, None] == every).flatten(2).all(2).float().mean(0)
    assert ((counts - chances).abs() < 5 * (chances / 4000).sqrt() + 1e-3).all()
    with pytest.raises(ValueError, match="mode is 'mean'; without a code there are draws alone"):
        model.sample(2, "mean")


def test_saved_it_is_loaded_with_the_part_that_is_handed_in(tmp_path):
    model = density()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert list(config) == ["p", "input_shape"] and config["input_shape"] == list(SHAPE)
    again, x = rk.Density.from_pretrained(tmp_path, p=Chain()), bits(4)
    assert torch.equal(again.log_prob(x), model.log_prob(x)) and not again.training
    with pytest.raises(ValueError, match=r"config.json: p: .*defined outside rhovae_kernels"):
        rk.Density.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.json: not a VAE's; it must describe encoder"):
        rk.VAE.from_pretrained(tmp_path)
    rk.recipes.recipe("vae").build(SHAPE, 2).save_pretrained(tmp_path / "vae")
    assert isinstance(load(tmp_path / "vae"), rk.VAE)
    with pytest.raises(ValueError, match=r"config.json: not a Density's; it must describe p"):
        rk.Density.from_pretrained(tmp_path / "vae")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda m: m(bits(2), samples=3), "samples is 3; a Density has no code to draw"),
        (lambda m: m(bits(2)[:, :, :1]), r"x is of shape .*; this model wants \(B, 1, 2, 3\)"),
        (lambda m: m(bits(2) * 2), "x holds 2 at 0, outside the support of Chain"),
        (lambda m: m(bits(2) * torch.nan), "x holds a NaN or an infinity, first at 0"),
        (lambda m: rk.Density(m.p, SHAPE), "p is a Chain that is part of another Density; a part"),
        (lambda m: rk.Density(rk.decoders.Bernoulli(), SHAPE), "p is a Bernoulli, whose distrib"),
        (lambda m: rk.Density(Chain(), ()), "input_shape is empty; positive integers are wanted"),
    ],
    ids=["samples", "shape", "support", "NaN", "taken", "of a code", "no shape"],
)
def test_what_does_not_fit_is_refused_by_name(wrong, error):
    with pytest.raises(ValueError, match=error):
        wrong(density())


def test_several_samples_a_datum_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="samples is 2; a Density has no code"):
        rk.fit(density(), bits(20), epochs=1, samples=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_its_copy_has_parts_of_its_own():
    model = density()
    copied = copy.deepcopy(model)
    with pytest.raises(ValueError, match="part of another Density"):
        rk.Density(copied.p, SHAPE)


@pytest.fixture
def command(run, tmp_path, monkeypatch, capsys):
    """The command on the run, whose part a function in a file makes; what it prints."""
    parts, data = tmp_path / "parts.py", tmp_path / "x.npy"
    parts.write_text(f"def p():\n    from {__name__} import Chain\n    return {{'p': Chain()}}\n")
    np.save(data, bits(20).numpy())

    def call(name: str, *more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["rhovae", name, str(run[1]), "--parts", f"{parts}:p"])
        sys.argv += [argument.replace("DATA", str(data)) for argument in more]
        with pytest.raises(SystemExit):
            main()
        return "".join(capsys.readouterr())

    return call


def test_the_command_measures_and_samples_it(command, tmp_path):
    assert json.loads(command("evaluate", "--dataset", "DATA", "--json"))["nll"]["mean"] > 0
    command("sample", "--n", "4", "--out", str(tmp_path / "drawn.png"))
    assert (tmp_path / "drawn.png").exists()


@pytest.mark.parametrize(
    ("name", "more", "error"),
    [
        ("evaluate", ("--dataset", "DATA", "--metrics", "mi"), "mi is measured of a VAE"),
        ("sample", ("--mode", "low-posterior"), "mode 'low-posterior' is of a latent code"),
        ("traverse", (), "a traversal is of a latent code; this model is a Density, which has"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_the_command_refuses_what_is_of_a_code(command, name, more, error):
    assert error in command(name, *more)
