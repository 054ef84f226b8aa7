"""The ops in a model and a training loop of one's own: two lines of a plain VAE change.

python examples/own_loop.py
"""

import torch
from torch import Tensor, nn

import rhovae_kernels as rk

LATENT, EPOCHS, BATCH = 8, 10, 128


class MyVAE(nn.Module):
    """A plain VAE but for two lines: the head's one more number, and the sample with its KL."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
        self.head = nn.Linear(128, 2 * LATENT + 1)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> Tensor:
        """−ELBO of each datum, in nats."""
        mu, log_var, rho_logit = self.head(self.encoder(x)).split([LATENT, LATENT, 1], -1)
        z, kl = torch.ops.rhovae.ar1_reparam(mu, log_var, rho_logit, torch.randn_like(mu))
        logits = self.decoder(z)
        log_px = -nn.functional.binary_cross_entropy_with_logits(
            logits, x.flatten(1), reduction="none"
        ).sum(-1)
        return kl - log_px


def main() -> list[float]:
    torch.manual_seed(0)
    x = rk.data.load("digits").images
    model = MyVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in x[torch.randperm(len(x))].split(BATCH):
            loss = model(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(x))
        print(f"epoch {epoch + 1}: −ELBO {losses[-1]:.2f} nats")
    return losses


if __name__ == "__main__":
    main()
