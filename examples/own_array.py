"""A VAE on an array of one's own: trained, measured, sampled, and loaded again.

    python examples/own_array.py [OUT]

The array holds 12 measurements of each of 2,000 things; put your own (N, columns) in its place.
"""

import sys

import numpy as np

import rhovae_kernels as rk


def measurements(n: int = 2000, columns: int = 12) -> np.ndarray:
    """What a sensor might give: three hidden causes, seen through noise."""
    random = np.random.default_rng(0)
    causes = random.normal(size=(n, 3))
    seen = np.tanh(causes @ random.normal(size=(3, columns)))
    return (seen + 0.1 * random.normal(size=(n, columns))).astype(np.float32)


def main(out: str) -> None:
    x = measurements()
    vae = rk.VAE(
        encoder=rk.nets.MLP((x.shape[1],), hidden=(64,)),
        posterior=rk.posteriors.ScaledAR1(3),
        prior=rk.priors.StandardNormal(3),
        decoder=rk.decoders.Gaussian(),
    )
    # A tenth is held out to choose the best epoch by; valid=... gives other data or another part.
    rk.fit(vae, x[:1600], epochs=30, out=out, resume="auto", quiet=True)
    result = rk.evaluate(vae, x[1600:], ["elbo", "nll@256", "active-units"])
    for name, value in result.lines():
        print(f"{name:<24}{value}")
    again = rk.VAE.from_pretrained(out)
    print("drawn:", again.sample(1)[0, :4].numpy().round(2), "…")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/own-array")
