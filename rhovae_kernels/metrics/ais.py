"""Annealed importance sampling of log p(x), forwards and backwards."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.metrics.aggregate import refuse_sequences
from rhovae_kernels.metrics.annealing import ACCEPTANCE, Chains
from rhovae_kernels.metrics.stages import Stages
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.progress import progress
from rhovae_kernels.vae.model import VAE, vae_of
from rhovae_kernels.vae.parts import positive_integers

LEAST_ACCEPTANCE = 0.4
"""Of proposals, mean over the data; below this a note says so."""

NUMBERS = 2**22
"""Numbers that the decoder puts out at a time."""

WIDEST = 0.2
"""Nats between the bounds, mean over the data, beyond which a note says so."""


@dataclass(frozen=True)
class Annealed:
    """What annealed importance sampling found.

    Attributes:
        log_weights: log ŵ of each chain, (chains, N), in nats, float64: E[ŵ] = p(x).
        reverse_log_weights: log ŵ of the chains that ran backwards, (chains, N): E[ŵ] = 1/p(x);
            None where no posterior samples were given.
        acceptance: share of proposals that the forward chains took, (N,); 1 where none was made.

    Example:
        >>> log_w, reverse = [[-3.0], [-2.0]], [[2.0], [2.4]]  # two chains of one datum
        >>> found = Annealed(torch.tensor(log_w), torch.tensor(reverse), torch.tensor([0.65]))
        >>> found.lower, found.upper, found.ess
        (tensor([-2.3799]), tensor([-2.2199]), tensor([1.6481]))
    """

    log_weights: Tensor
    reverse_log_weights: Tensor | None
    acceptance: Tensor

    @property
    def lower(self) -> Tensor:
        """log (1/K) Σ_k ŵ_k, (N,): below log p(x) in expectation."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))

    @property
    def upper(self) -> Tensor | None:
        """−log (1/K) Σ_k ŵ_k of the reverse chains, (N,): above log p(x) in expectation."""
        if self.reverse_log_weights is None:
            return None
        chains = len(self.reverse_log_weights)
        return math.log(chains) - self.reverse_log_weights.logsumexp(0)

    @property
    def ess(self) -> Tensor:
        """The effective number of forward chains, (Σŵ)²/Σŵ², (N,)."""
        log_w = self.log_weights
        return torch.exp(2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0))

    @cached_property
    def notes(self) -> list[str]:
        """What says that the chains have not converged, in words; empty where nothing does."""
        found = []
        chains, taken, ess = len(self.log_weights), self.acceptance, float(self.ess.mean())
        if float(taken.mean()) < LEAST_ACCEPTANCE:
            found.append(
                f"acceptance is {float(taken.mean()):.2f}, least {float(taken.min()):.2f} for a "
                f"datum; {ACCEPTANCE} is aimed at: more temperatures, or other leapfrog steps"
            )
        if ess < chains / 4:
            found.append(
                f"the effective number of chains is {ess:.1f} of {chains}, mean over the data: "
                "more temperatures"
            )
        if self.upper is not None and (width := float((self.upper - self.lower).mean())) > WIDEST:
            found.append(
                f"the bounds are {width:.2f} nats apart, mean over the data; {WIDEST} at most is "
                "wanted: more temperatures"
            )
        return found

    def summary(self) -> dict[str, Any]:
        """Means over the data, ready for JSON: the bounds, and what tells of convergence."""
        found: dict[str, Any] = {
            "chains": len(self.log_weights),
            "lower": float(self.lower.mean()),
            "acceptance": float(self.acceptance.mean()),
            "ess_mean": float(self.ess.mean()),
            "ess_min": float(self.ess.min()),
        }
        if self.upper is not None:
            found["upper"] = float(self.upper.mean())
            found["width"] = found["upper"] - found["lower"]
        return {**found, "notes": self.notes}


def schedule(temperatures: int | Sequence[float]) -> list[float]:
    """Inverse temperatures from 0 to 1: as given, or their number, of a sigmoidal schedule.

    β_t = (σ(4(2t/(T−1) − 1)) − σ(−4)) / (σ(4) − σ(−4)), t = 0 … T−1: dense at both ends.

    Raises:
        ValueError: there are fewer than two, or they do not rise from 0 to 1.

    Example:
        >>> [round(beta, 3) for beta in schedule(5)]
        [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    if isinstance(temperatures, int):
        if temperatures < 2:
            raise ValueError(f"temperatures is {temperatures}; 2 at least are wanted, 0 and 1")
        s = [math.tanh(2 * (2 * t / (temperatures - 1) - 1)) for t in range(temperatures)]
        return [(value - s[0]) / (s[-1] - s[0]) for value in s]
    betas = [float(beta) for beta in temperatures]
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1:
        ends = f"{betas[0]:g} to {betas[-1]:g}" if betas else "empty"
        raise ValueError(f"temperatures is {ends}; inverse temperatures from 0 to 1 are wanted")
    for i, (before, after) in enumerate(pairwise(betas)):
        if not before < after:
            raise ValueError(
                f"temperatures is out of order: {after:g} at {i + 1} follows {before:g}; inverse "
                "temperatures that rise from 0 to 1 are wanted"
            )
    return betas


def ais(
    vae: VAE,
    x: Tensor,
    z: Tensor | None = None,
    *,
    chains: int = 16,
    temperatures: int | Sequence[float] = 500,
    leapfrog: int = 5,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = True,
) -> Annealed:
    """log p(x) by annealed importance sampling; from both sides where z ~ p(z|x) is known.

    f_t(z) = p(z) p(x|z)^β_t; ŵ = Π_{t≥1} f_t(z_{t−1}) / f_{t−1}(z_{t−1}); E[ŵ] = p(x)

    z_0 is drawn from the prior, z_t from z_{t−1} by a Hamiltonian move that leaves f_t invariant.
    The weights of data drawn from the model are taken backwards too, from the very z that each was
    drawn with: an exact sample of p(z|x), so that E[ŵ] = 1/p(x), and the bounds bracket log p(x).

    Steps are adapted, for each datum and temperature, in a pilot run whose chains are then thrown
    away, and stand fixed in the run that counts. They are independent of its draws, so that the
    weights are exactly unbiased; steps adapted from the run's own acceptances would not be so.

    All of it takes place where z lives, in the representation space of a prior that is a flow.

    Args:
        vae: the model: any prior, and any decoder whose `log_prob` has a gradient in z.
        x: data, (N, *input_shape).
        z: exact posterior samples, (N, latent): those that x was drawn with.
        chains: K of each datum, in one batch.
        temperatures: how many, of a sigmoidal schedule, or the inverse temperatures themselves.
        leapfrog: steps of each move.
        seed: of every draw.
        out: directory of a file by which a call that was stopped goes on where it was, to the same
            bits; its name is a digest of model, data and arguments.
        quiet: show no progress bar.

    Returns:
        See `Annealed`.

    Raises:
        ValueError: the model is one of sequences; x or z is of another shape; a number is not
            positive; temperatures do not rise from 0 to 1.

    Source:
        Neal, 1998, "Annealed importance sampling", https://arxiv.org/abs/physics/9803008. Grosse,
        Ghahramani and Adams, 2015, "Sandwiching the marginal likelihood using bidirectional Monte
        Carlo", https://arxiv.org/abs/1511.02543. The pilot run is ours.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> _ = torch.manual_seed(0)
        >>> vae = rk.recipes.recipe("vae").build((2,), latent=3)
        >>> x, z = from_model(vae, 4)
        >>> found = ais(vae, x, z, chains=8, temperatures=20)
        >>> found.lower.shape, found.notes
        (torch.Size([4]), [])
    """
    refuse_sequences(vae_of(vae, "annealed importance sampling"), "annealed importance sampling")
    betas = schedule(temperatures)
    positive_integers("chains", (chains,))
    positive_integers("leapfrog", (leapfrog,))
    if not vae.takes(x.shape[1:]) or not len(x):
        raise ValueError(f"x is of shape {tuple(x.shape)}; the model wants {vae.wanted_shape}")
    if z is not None and z.shape != (len(x), vae.latent):
        raise ValueError(
            f"z is of shape {tuple(z.shape)}; a posterior sample of each datum, of shape "
            f"{(len(x), vae.latent)}, is wanted"
        )
    arguments = {"chains": chains, "betas": betas, "leapfrog": leapfrog, "seed": seed}
    path = None if out is None else Path(out) / f"ais-{_digest(vae, x, z, arguments)}.safetensors"
    rows = max(1, NUMBERS // (chains * max(x[0].numel(), vae.latent)))
    batches = -(-len(x) // rows)
    moves = (2 if z is None else 3) * batches * (len(betas) - 2)
    training = vae.training
    vae.eval()
    try:
        with vae.unvalidated(), progress("annealing", moves, quiet) as advance:
            run = Chains(vae, betas, chains, leapfrog, seed, Stages(path), advance)
            parts = []
            for i, own in enumerate(x.split(rows)):
                exact = None if z is None else z[i * rows : i * rows + len(own)]
                parts.append(run.bracket(i, own, exact))
    finally:
        vae.train(training)
    forward, backward, taken = zip(*parts, strict=True)
    return Annealed(
        torch.cat(forward, 1),
        None if z is None else torch.cat(backward, 1),
        torch.cat(taken),
    )


def from_model(vae: VAE, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n data drawn from p(x|z), and the z ~ p(z) that each was drawn with.

    Args:
        vae: the model.
        n: how many.
        seed: of the draws.

    Returns:
        x (n, *input_shape) and z (n, latent), an exact sample of p(z|x).

    Example:
        >>> import rhovae_kernels as rk
        >>> x, z = from_model(rk.recipes.recipe("vae").build((2,), latent=3), 5)
        >>> x.shape, z.shape
        (torch.Size([5, 2]), torch.Size([5, 3]))
    """
    positive_integers("n", (n,))
    training = vae.training
    vae.eval()
    try:
        with seeded(next(vae.parameters()).device, seed), torch.no_grad():
            z = vae.prior.sample(n)
            return vae.decoder.draw(z), z
    finally:
        vae.train(training)


def _digest(vae: VAE, x: Tensor, z: Tensor | None, arguments: dict[str, Any]) -> str:
    """What tells the model, the data and the arguments of a call from others."""
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode())
    given = {"x": x} if z is None else {"x": x, "z": z}
    for name, tensor in [*sorted(vae.state_dict().items()), *given.items()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
