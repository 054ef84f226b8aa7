"""A training step of each recipe: encoder, sample and KL, decoder, gradients, Adam."""

import pytest
import torch

from rhovae_kernels.vae.recipes import recipe


@pytest.mark.parametrize("latent", [10, 32])
def test_training_step(compare, latent):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(128, 1, 28, 28, generator=generator)
    variants = {}
    for name in ("rho-vae", "scaled-rho-vae", "vae"):
        torch.manual_seed(0)
        model = recipe(name).build((1, 28, 28), latent=latent)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def step(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).loss
            loss.backward()
            optimizer.step()
            return loss

        losses = [step().item() for _ in range(30)]
        assert losses[-1] < losses[0], f"{name} does not learn: not timed"
        variants[name] = step
    compare(
        "training step",
        (128, latent),
        "forward+backward+Adam",
        "float32",
        variants,
        "rho-vae",
        {"vae": 1.0},
        note="MLP-400 on 28×28",
    )
