"""VAEs around networks that people have already."""

import numpy as np
import pytest
import torch
from torch import nn

import rhovae_kernels as rk
from rhovae_kernels.vae.trial import NoTrial, trial

SHAPE = (1, 8, 8)


def encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten())


def decoder(latent: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(latent, 64), nn.Unflatten(-1, SHAPE))


def build(
    enc: nn.Module | None = None, dec: nn.Module | None = None, latent: int = 2, **given
) -> rk.VAE:
    return rk.VAE(
        enc or encoder(),
        rk.posteriors.AR1(latent),
        rk.priors.StandardNormal(latent),
        rk.decoders.Bernoulli(dec or decoder(latent)),
        **{"input_shape": SHAPE, **given},
    )


class Tells(nn.Module):
    """A network that says what data it takes."""

    input_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 5)

    def forward(self, x):
        return self.layer(x.flatten(1))


class LooksAtValues(nn.Module):
    """A network that a trial on the meta device says nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 7)

    def forward(self, x):
        if x.sum().item() > 1e9:
            return self.layer(0 * x.flatten(1))
        return self.layer(x.flatten(1))


def test_any_module_is_an_encoder_and_any_a_decoder(tmp_path):
    vae = build()
    assert vae.input_shape == SHAPE and vae.posterior.head.in_features == 36
    history = rk.fit(vae, "digits", epochs=1, out=tmp_path / "run", quiet=True)
    assert history.epochs[0]["train_loss"] > 0
    assert vae.sample(3).shape == (3, *SHAPE)


def test_a_trial_leaves_weights_statistics_and_random_streams_alone():
    enc, dec = encoder(), decoder()
    before = {k: v.clone() for k, v in enc.state_dict().items()}
    state = torch.get_rng_state()
    trial(enc, *SHAPE), trial(dec, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in enc.state_dict().items())
    assert all(not p.is_meta for p in enc.parameters())


def test_an_encoder_may_say_what_it_takes():
    vae = build(Tells(), input_shape=None)
    assert vae.input_shape == SHAPE and vae.posterior.head.in_features == 5


def test_a_width_that_a_trial_does_not_tell_is_asked_for_and_taken():
    with pytest.raises(NoTrial):
        trial(LooksAtValues(), *SHAPE)
    with pytest.raises(ValueError, match=r"LooksAtValues, whose number of features .*features=…"):
        build(LooksAtValues())
    vae = build(LooksAtValues(), features=7)
    assert vae(torch.rand(3, *SHAPE)).rate.shape == (3,)


def test_a_network_that_leaves_torch_is_asked_for_its_width():
    class ThroughNumPy(LooksAtValues):
        def forward(self, x):
            return self.layer(torch.from_numpy(np.tanh(x.detach().numpy())).flatten(1))

    with pytest.raises(ValueError, match=r"ThroughNumPy, whose number of features .*features=…"):
        build(ThroughNumPy())
    assert build(ThroughNumPy(), features=7)(torch.rand(3, *SHAPE)).rate.shape == (3,)


def test_lazy_layers_are_named():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="lazy layers have no shape yet: run it once"):
        build(lazy)
    lazy(torch.zeros(1, *SHAPE))
    assert build(lazy).posterior.head.in_features == 3


WRONG = {
    "no shape": (
        {"input_shape": None},
        r"encoder is a Sequential, which does not say what data it takes: give input_shape",
    ),
    "another shape than its own": ({"enc": Tells(), "input_shape": (64,)}, r"own is \(1, 8, 8\)"),
    "an encoder of other data": (
        {"input_shape": (3, 8, 8)},
        r"Sequential, which does not take data of shape \(2, 3, 8, 8\)",
    ),
    "features that are no rows": (
        {"enc": nn.Conv2d(1, 4, 3)},
        r"encoder gives of shape \(2, 4, 6, 6\) .*end it with a Flatten",
    ),
    "another width": ({"features": 9}, "features is 9; the encoder gives 36"),
    "a decoder of other codes": (
        {"dec": decoder(3)},
        r"decoder: its network does not take codes of shape \(2, 2\)",
    ),
    "a decoder of other data": (
        {"dec": nn.Linear(2, 64)},
        r"p\(x\|z\) of shape \(2, 64\) .* the data are of shape \(2, 1, 8, 8\): they must agree",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_go_together_is_refused_when_the_vae_is_built(name):
    given, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        build(**given)


def test_a_decoder_whose_output_broadcasts_over_the_batch_is_refused():
    """Of data (8, 8), an output (1, 8, 8) would make each datum meet every other."""
    net = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(-1, (1, 8, 8)))
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\) for codes .* the data are .*\(2, 8, 8\)"):
        rk.VAE(
            rk.nets.MLP((8, 8)), rk.posteriors.AR1(2), rk.priors.StandardNormal(2),
            rk.decoders.Bernoulli(net),
        )  # fmt: skip


def test_a_density_is_not_taken_of_data_of_another_shape():
    p = rk.decoders.Bernoulli(decoder())
    with pytest.raises(ValueError, match=r"x is of shape \(5, 8, 8\); p\(x\|z\) is of data of"):
        p.log_prob(torch.zeros(5, 8, 8), torch.zeros(5, 2))


def test_a_decoder_without_a_network_asks_for_one():
    with pytest.raises(ValueError, match=r"no mirror image is known: give it one, Gaussian\(net\)"):
        rk.VAE(
            encoder(), rk.posteriors.AR1(2), rk.priors.StandardNormal(2), rk.decoders.Gaussian(),
            input_shape=SHAPE,
        )  # fmt: skip


def test_a_run_with_ones_own_parts_takes_them_again(tmp_path):
    vae = build()
    rk.fit(vae, "digits", epochs=1, out=tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match=r"encoder: .*was defined outside rhovae_kernels.*hand in"):
        rk.evaluate(tmp_path / "run", metrics=["elbo"])

    def fresh() -> dict[str, nn.Module]:
        return {"encoder": encoder(), "decoder": rk.decoders.Bernoulli(decoder())}

    again = rk.VAE.from_pretrained(tmp_path / "run", **fresh())
    assert again.input_shape == SHAPE
    x = rk.data.load("digits", split="test").images[:20]
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))
    measured = rk.evaluate(tmp_path / "run", metrics=["elbo"], limit=50, **fresh())
    assert measured == rk.evaluate(vae, metrics=["elbo"], limit=50)


def test_a_run_with_ones_own_parts_resumes(tmp_path):
    torch.manual_seed(0)
    vae = build()
    rk.fit(vae, "digits", epochs=1, out=tmp_path / "run", quiet=True)
    history = rk.fit(build(), "digits", epochs=2, out=tmp_path / "run", quiet=True, resume="auto")
    torch.manual_seed(0)
    whole = rk.fit(build(), "digits", epochs=2, out=tmp_path / "whole", quiet=True)
    assert history.epochs == whole.epochs


def test_data_of_another_shape_are_refused_by_a_network_that_would_take_them():
    vae = build(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()))
    with pytest.raises(ValueError, match=r"x is of shape \(5, 1, 9, 9\); this model wants \(B, 1"):
        vae(torch.rand(5, 1, 9, 9))


def test_tied_weights_are_saved_and_loaded(tmp_path):
    dec = decoder()
    enc = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    enc[1].weight = nn.Parameter(dec[0].weight.detach().T.contiguous())
    dec[0].weight = nn.Parameter(enc[1].weight.detach().T)
    tied = build(enc, dec)
    tied.save_pretrained(tmp_path)
    again = rk.VAE.from_pretrained(
        tmp_path,
        encoder=nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
        decoder=rk.decoders.Bernoulli(decoder()),
    )
    loaded = again.state_dict()
    assert loaded.keys() == tied.state_dict().keys()
    for name, value in tied.state_dict().items():
        assert torch.equal(loaded[name], value), name
    # Not to the bit: a weight that lies transposed has products of its own rounding.
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(again.reconstruct(x), tied.reconstruct(x))
