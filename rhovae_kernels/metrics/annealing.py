"""The chains of annealed importance sampling, one batch of data after another."""

from collections.abc import Callable

import torch
from torch import Tensor

from rhovae_kernels.metrics.hamiltonian import Joint, Point, move
from rhovae_kernels.metrics.stages import Stages
from rhovae_kernels.seeding import generator, seeded
from rhovae_kernels.vae.model import VAE

ACCEPTANCE = 0.65
"""The share of accepted proposals that the pilot run steers to."""

PILOT_CHAINS = 8
"""Chains of each datum in the pilot run, at most."""

RATE = 0.5
"""By how much the logarithm of a step rises for an acceptance of 1 above what is aimed at."""

FIRST_STEP, LEAST_STEP, GREATEST_STEP = 0.5, 1e-4, 10.0
"""The step that the pilot run begins with, times d^(−1/4), and the bounds of all steps."""


class Chains:
    """Chains of one batch after another, forwards and backwards.

    Args:
        vae, chains, leapfrog, seed: as of `ais`.
        betas: the inverse temperatures.
        stages: what was found before.
        advance: told how many moves were made.
    """

    def __init__(
        self,
        vae: VAE,
        betas: list[float],
        chains: int,
        leapfrog: int,
        seed: int,
        stages: Stages,
        advance: Callable[[int], None],
    ) -> None:
        self.vae, self.betas, self.chains, self.leapfrog = vae, betas, chains, leapfrog
        self.seed, self.stages, self.advance = seed, stages, advance

    def bracket(self, batch: int, x: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Weights forwards and backwards, (chains, rows), and acceptance, (rows,)."""
        joint = Joint(self.vae, x)
        latent, n, last = self.vae.latent, len(x), len(self.betas) - 1
        device = x.device

        def from_prior(chains: int) -> Tensor:
            return self.vae.prior.sample(chains * n).view(chains, n, latent)

        up, down = range(1, last), range(last - 1, 0, -1)
        pilot = min(self.chains, PILOT_CHAINS)
        first = torch.full((n,), FIRST_STEP * latent**-0.25, dtype=torch.float64, device=device)
        steps = self._stage((batch, 0), joint, up, lambda: from_prior(pilot), first)["steps"]
        found = self._stage((batch, 1), joint, up, lambda: from_prior(self.chains), steps)
        backward = found["log_w"][:0]
        if z is not None:
            exact = z.to(device).expand(self.chains, n, latent)
            backward = self._stage((batch, 2), joint, down, lambda: exact, steps)["log_w"]
        moves = max(1, last - 1)
        taken = found["taken"] / moves if last > 1 else torch.ones_like(found["taken"])
        return found["log_w"], backward, taken

    def _stage(
        self,
        key: tuple[int, int],
        joint: Joint,
        order: range,
        start: Callable[[], Tensor],
        steps: Tensor,
    ) -> dict[str, Tensor]:
        """One run through the temperatures in this order: weights, acceptances, and steps.

        Args:
            key: batch, and which run of it: the draws follow from both.
            joint: of the batch.
            order: the temperatures at which a move is made.
            start: gives the codes to begin with.
            steps: the greatest step of each datum at each temperature, (T, rows); in the pilot
                run that of the first move, (rows,), from which on they are adapted.
        """
        name, betas = "{}.{}".format(*key), self.betas
        device = joint.x.device
        if (done := self.stages.result(name)) is not None:
            self.advance(len(order))
            return {quantity: value.to(device) for quantity, value in done.items()}
        pilot = steps.dim() == 1
        before = betas[0] if order.step > 0 else betas[-1]
        if (stopped := self.stages.running(name)) is not None:
            begun, state = stopped[0], {k: value.to(device) for k, value in stopped[1].items()}
            point = Point(*(state[field] for field in Point._fields))
            log_w, taken, steps = state["log_w"], state["taken"], state["steps"]
            before = betas[order[begun - 1]]
            self.advance(begun)
        else:
            begun = 0
            with seeded(device, self.seed, *key, 0):
                point = Point.at(joint, start())
            log_w = torch.zeros_like(point.log_prior, dtype=torch.float64)
            taken = torch.zeros_like(log_w[0])
            if pilot:
                steps = steps.repeat(len(betas), 1)
        for i in range(begun, len(order)):
            t = order[i]
            log_w = log_w + (betas[t] - before) * point.log_likelihood.double()
            draws = generator("annealing", self.seed, *key, t)
            point, accepted = move(joint, point, betas[t], steps[t], self.leapfrog, draws)
            share = accepted.double().mean(0)
            taken, before = taken + share, betas[t]
            if pilot:
                adapted = steps[t] * torch.exp(RATE * (share - ACCEPTANCE))
                steps[t:] = adapted.clamp(LEAST_STEP, GREATEST_STEP)
            state = {**point._asdict(), "log_w": log_w, "taken": taken, "steps": steps}
            self.stages.keep(name, i + 1, state)
            self.advance(1)
        end = betas[-1] if order.step > 0 else betas[0]
        log_w = log_w + (end - before) * point.log_likelihood.double()
        result = {"steps": steps} if pilot else {"log_w": log_w, "taken": taken}
        self.stages.finish(name, result)
        return result
