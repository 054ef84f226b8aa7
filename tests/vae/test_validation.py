"""Data are looked at: once by `fit` and `evaluate`, in each call of one's own loop elsewhere."""

import pytest
import torch

import rhovae_kernels as rk

X = rk.data.load("digits").images[:16]


def build(decoder=None, **given) -> rk.VAE:
    torch.manual_seed(0)
    return rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(8,)),
        rk.posteriors.AR1(2),
        rk.priors.StandardNormal(2),
        decoder or rk.decoders.Bernoulli(),
        **given,
    )


STANDARDIZED = (X - X.mean()) / X.std()
CALLS = {
    "the loss": lambda vae, x: vae(x),
    "the ELBO": lambda vae, x: vae.elbo(x),
    "the weights": lambda vae, x: vae.log_weights(x, 3),
    "the posterior": lambda vae, x: vae.posterior_for(x),
    "a reconstruction": lambda vae, x: vae.reconstruct(x),
}


@pytest.mark.parametrize("call", CALLS)
def test_values_outside_the_support_are_refused_in_ones_own_loop(call):
    """Standardized pixels under a Bernoulli likelihood give −10⁸ nats without a word."""
    with pytest.raises(ValueError, match="outside the support of Bernoulli"):
        CALLS[call](build(), STANDARDIZED)
    CALLS[call](build(rk.decoders.Gaussian()), STANDARDIZED)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("decoder", ["Bernoulli", "Gaussian", "DiscretizedLogistic"])
def test_what_is_not_finite_is_refused_by_its_row(decoder, bad):
    x = X.clone()
    x[5, 0, 2, 3] = bad
    with pytest.raises(ValueError, match="x holds a NaN or an infinity, first at 5"):
        build(getattr(rk.decoders, decoder)())(x)


def test_the_ends_of_the_support_are_in_it():
    for x in (torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)):
        build()(x)
    with pytest.raises(ValueError, match="x holds 1 at 1, outside"):
        build()(torch.stack([X[0], X[1].fill_(1.0).nextafter(torch.tensor(2.0))]))


def test_whoever_asks_for_it_gets_no_check():
    assert build(validate_args=False)(STANDARDIZED).loss.isfinite()


def test_fit_and_evaluate_look_once(tmp_path, monkeypatch):
    looked = []
    check = rk.VAE.check_data
    monkeypatch.setattr(
        rk.VAE, "check_data", lambda self, x, name="x": (looked.append(name), check(self, x, name))
    )
    vae = build()
    rk.fit(vae, "digits", epochs=2, out=tmp_path / "run", quiet=True, average=0.9)
    assert looked == ["digits", "valid (digits)", "test (digits)"]
    looked.clear()
    rk.evaluate(vae, "digits", ["elbo", "nll@5", "active-units"], limit=20)
    assert looked == ["digits"]
    assert vae.validate_args


def test_where_a_graph_is_made_nothing_is_looked_at():
    torch._dynamo.reset()
    vae = build()
    compiled = torch.compile(vae, fullgraph=True, backend="aot_eager")
    assert compiled(STANDARDIZED).loss.isfinite()
    torch.export.export(vae, (X,))
    rates = torch.vmap(lambda x: vae(x[None]).rate[0], randomness="different")(X)
    assert rates.shape == (16,)
    assert vae.to("meta")(X.to("meta")).loss.is_meta
