"""A training step of each recipe: encoder, sample and KL, decoder, gradients, Adam.

The step is that of `fit`, whose Adam is fused. (Adam's default makes temporaries of megabytes,
whose page faults fall on one model or the other: two identical ones then differ by several
hundredths.) The recipes differ in their posterior alone, some hundredths of a step: it is timed by
itself too. A second plain VAE shows what two medians of the same model differ by.
"""

import pytest
import torch

from rhovae_kernels.vae.recipes import recipe

RECIPES = ("rho-vae", "scaled-rho-vae", "vae")
NOTE = "MLP-400 on 28×28"
# Of whole steps, whose differences are hundredths.
ROUNDS = 600


def models(latent, again=False):
    for name in (*RECIPES, *(["vae"] if again else [])):
        torch.manual_seed(0)
        model = recipe(name).build((1, 28, 28), latent=latent)
        model.validate_args = False  # as `fit` has it, which looks at the data once
        yield name, model


def learning(name, model, x, lr, steps):
    """A training step of the model on x, whose loss fell over the first steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)

    def step():
        optimizer.zero_grad()
        loss = model(x).loss
        loss.backward()
        optimizer.step()
        return loss

    losses = [step().item() for _ in range(steps)]
    assert losses[-1] < losses[0], f"{name} does not learn: not timed"
    return step


@pytest.mark.parametrize("latent", [10, 32])
def test_training_step(compare, latent):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(128, 1, 28, 28, generator=generator)
    variants = {}
    for name, model in models(latent, again=True):
        step = learning(name, model, x, lr=1e-3, steps=30)
        variants["vae, a second one" if name in variants else name] = step
    compare(
        "training step",
        (128, latent),
        "forward+backward+Adam",
        "float32",
        variants,
        "rho-vae",
        {"vae": 1.0},
        note=NOTE,
        rounds=ROUNDS,
    )


@pytest.mark.parametrize("latent", [10, 32])
def test_the_part_of_a_step_in_which_the_recipes_differ(compare, latent):
    variants = {}
    for name, model in models(latent):
        h = torch.randn(128, model.encoder.out_features, requires_grad=True)
        parameters = [h, *model.posterior.parameters()]

        def part(model=model, h=h, parameters=parameters):
            z, kl = model.posterior.rsample_and_kl(h, model.prior)
            return torch.autograd.grad((z, kl), parameters, (torch.ones_like(z), kl.detach()))

        # The closed KL is what log q − log p is on average: a wrong one gets no time.
        q = model.posterior(h.detach())
        z = q.rsample((4096,))
        estimate = q.log_prob(z) - model.prior.log_prob(z)
        error = (estimate.mean(0) - model.posterior.rsample_and_kl(h, model.prior)[1]).abs()
        assert (error < 6 * estimate.std(0) / 64).all(), f"{name}: wrong KL, not timed"
        variants[name] = part
    compare(
        "posterior of a step",
        (128, latent),
        "forward+backward",
        "float32",
        variants,
        "rho-vae",
        {"vae": 1.0},
        note=NOTE,
    )


SEQUENCES = ("sequence-rho-vae", "sequence-vae", "sequence-smooth-vae")
OF_SEQUENCES = "GRU-150 on 88 features, sequences of 64 to 128 steps"


def test_training_step_of_sequences(compare):
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((32, 128, 88), 0.05), generator=generator)
    ends = torch.linspace(64, 128, 32).int()
    x[torch.arange(128) >= ends[:, None]] = torch.nan
    variants = {}
    for name in (*SEQUENCES, "sequence-vae"):
        torch.manual_seed(0)
        model = recipe(name).build((128, 88))
        model.validate_args = False
        step = learning(name, model, x, lr=3e-3, steps=10)
        variants["sequence-vae, a second one" if name in variants else name] = step
    compare(
        "training step of sequences",
        (32, 128, 32),
        "forward+backward+Adam",
        "float32",
        variants,
        "sequence-rho-vae",
        {"sequence-vae": 1.1},
        note=OF_SEQUENCES,
        rounds=30,
    )
