"""A Dataset of one's own, with a convolutional encoder and a decoder of one's own.

python examples/own_dataset.py [OUT] [EPOCHS]
"""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rhovae_kernels as rk

SHAPE, LATENT = (1, 16, 16), 6


class Discs(Dataset):
    """Images of a disc, labelled with its radius: each is made of a seed when it is asked for."""

    def __init__(self, seeds: range) -> None:
        self.seeds = seeds

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, i: int) -> tuple[Tensor, float]:
        x, y, radius = torch.rand(3, generator=torch.Generator().manual_seed(self.seeds[i]))
        grid = torch.linspace(0, 1, SHAPE[-1])
        distance = ((grid - x) ** 2 + (grid[:, None] - y) ** 2).sqrt()
        return torch.sigmoid(40 * (0.1 + 0.2 * radius - distance))[None], float(radius)


def encoder() -> nn.Module:
    """Any module from images to rows of features: how many come out is found by a trial."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
    )


def decoder() -> nn.Module:
    """Any module from a code to logits of an image."""
    return nn.Sequential(
        nn.Linear(LATENT, 512),
        nn.SiLU(),
        nn.Unflatten(-1, (32, 4, 4)),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
    )


def main(out: str = "runs/own-dataset", epochs: str = "25") -> None:
    vae = rk.VAE(
        encoder(),
        rk.posteriors.AR1(LATENT),
        rk.priors.RealNVP(LATENT),
        rk.decoders.Bernoulli(decoder()),
        input_shape=SHAPE,
    )
    loader = DataLoader(Discs(range(1024)), batch_size=64, shuffle=True)
    # Order and workers follow from (seed, epoch): a run that is killed resumes to the same bits.
    settings = {
        "epochs": int(epochs),
        "lr": 3e-3,
        "optimizer": "adamw",
        "schedule": "cosine",
        "average": 0.99,
    }
    rk.fit(
        vae, loader, valid=Discs(range(1024, 1280)), out=out, resume="auto", quiet=True, **settings
    )
    result = rk.evaluate(vae, Discs(range(1280, 1536)), ["elbo", "active-units"])
    for name, value in result.lines():
        print(f"{name:<24}{value}")
    # A run does not hold the code of your networks: hand them in.
    parts = {"encoder": encoder(), "decoder": rk.decoders.Bernoulli(decoder())}
    print("drawn:", tuple(rk.VAE.from_pretrained(out, **parts).sample(4).shape))


if __name__ == "__main__":
    main(*sys.argv[1:])
