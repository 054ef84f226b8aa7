"""The best member of a variational family for each datum."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam

from rhovae_kernels.metrics.families import Family, Parameters
from rhovae_kernels.metrics.hamiltonian import Joint

POINTS, HELD_OUT = 64, 256
"""Points of noise that a step is taken at, and that phases and starts are compared at; 4d where
that is more."""

PHASE = 25
"""Steps of a phase."""

STEP, CUT, CUTS = 0.1, 4.0, 3
"""Adam's first step size, by what it is divided at a cut, and how many cuts there are."""

TOLERANCE = 1e-3
"""Nats: a phase that raises the mean ELBO by less cuts the step size."""

TRIAL_PHASES = 2
"""Phases that every start is given before the best of them is chosen."""

MOST_PHASES = 60
"""Phases after which the optimization ends, converged or not."""


class Fitted(NamedTuple):
    """Where an optimization ended.

    Attributes:
        parameters: of the best member for each datum.
        converged: whether the step size was cut so often that the rule ended it.
    """

    parameters: Parameters
    converged: bool


def noise(n: int, like: Tensor) -> Tensor:
    """n points of N(0, I), of mean 0 and second moment I exactly, in pairs (ε, −ε): (n, d).

    The ELBO of a Gaussian is exact at them wherever log p(x, z) is quadratic in z: its optimum is
    that of the family, not that of the points.

    Args:
        n: how many, 4d at least.
        like: a tensor (…, d) of their type, where they are wanted.

    Example:
        >>> eps = noise(16, torch.zeros(3))
        >>> bool(torch.allclose(eps.mT @ eps / 16, torch.eye(3), atol=1e-6))
        True
    """
    d = like.shape[-1]
    half = torch.randn(n // 2, d, dtype=torch.float64, device=like.device)
    factor = torch.linalg.cholesky(half.mT @ half / len(half))
    half = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT
    return torch.cat([half, -half]).to(like.dtype)


def best_members(family: Family, joint: Joint) -> Fitted:
    """q* of each datum: the member of the family of greatest ELBO, E_q[log p(x, z) − log q(z)].

    Adam, from the encoder's answer. After each phase of 25 steps, whose noise is drawn afresh at
    every step, the ELBO is taken at points that stay the same throughout, and each datum keeps the
    best that it has had. A phase that raises its mean over the data by less than 0.001 nats divides
    the step size by 4 and goes back to the best; what would be the fourth cut is the end. Where a
    family has several starts each datum goes on with its best one after two phases.

    Args:
        family: what is optimized over.
        joint: log p(z) and log p(x|z) of the data.

    Returns:
        See `Fitted`.
    """
    d = family.loc.shape[-1]
    held_out = noise(max(HELD_OUT, 4 * d), family.loc)
    starts = [_Search(family, joint, start, held_out) for start in family.starts()]
    if len(starts) == 1:
        (search,) = starts
    else:
        for start in starts:
            for _ in range(TRIAL_PHASES):
                start.phase(STEP)
        search = _Search(family, joint, _best_of(starts), held_out)
    step, cuts = STEP, 0
    for _ in range(MOST_PHASES):
        # Of an ELBO that is no number, no phase is a gain.
        if not search.phase(step) >= TOLERANCE:
            if cuts == CUTS:
                return Fitted(search.best, True)
            step, cuts = step / CUT, cuts + 1
            search.go_back()
    return Fitted(search.best, False)


class _Search:
    """One optimization from one start.

    Args:
        family, joint: as of `best_members`.
        start: the parameters to begin with.
        held_out: the points that parameters are compared at.

    Attributes:
        best: the best parameters that each datum has had.
        value: their ELBO at the held-out points, (N,).
    """

    def __init__(self, family: Family, joint: Joint, start: Parameters, held_out: Tensor) -> None:
        self.family, self.joint, self.held_out = family, joint, held_out
        self.best = {name: value.detach().clone() for name, value in start.items()}
        with torch.no_grad():
            self.value = self._elbo(self.best, held_out)
        self.go_back()

    def go_back(self) -> None:
        """Go on from the best, with an optimizer that knows nothing of what was before."""
        self.now = {name: value.clone().requires_grad_() for name, value in self.best.items()}
        self.optimizer = Adam(self.now.values())

    def phase(self, step: float) -> float:
        """25 steps of this size; by how much the mean of the best ELBOs rose."""
        for group in self.optimizer.param_groups:
            group["lr"] = step
        points = max(POINTS, 4 * self.held_out.shape[-1])
        inputs = list(self.now.values())
        for _ in range(PHASE):
            with torch.enable_grad():
                loss = -self._elbo(self.now, noise(points, self.held_out)).sum()
                # Of the decoder and the prior no gradient is asked for.
                loss.backward(inputs=inputs)
            self.optimizer.step()
            self.optimizer.zero_grad()
        before = self.value.mean()
        with torch.no_grad():
            value = self._elbo(self.now, self.held_out)
            better = value > self.value
            self.value = torch.where(better, value, self.value)
            for name, new in self.now.items():
                self.best[name] = _chosen(better, new.detach(), self.best[name])
        return float(self.value.mean() - before)

    def _elbo(self, p: Parameters, eps: Tensor) -> Tensor:
        """The ELBO at these points, (N,), their mean of log p(x, z) − log q(z)."""
        n, d = self.family.loc.shape
        z, log_q = self.family.draw(p, eps[:, None].expand(len(eps), n, d))
        log_prior, log_likelihood = self.joint(z)
        return (log_prior + log_likelihood - log_q).mean(0)


def _best_of(searches: list[_Search]) -> Parameters:
    """Of each datum the best parameters among those of several searches."""
    found, value = dict(searches[0].best), searches[0].value
    for other in searches[1:]:
        better = other.value > value
        value = torch.where(better, other.value, value)
        found = {name: _chosen(better, other.best[name], found[name]) for name in found}
    return found


def _chosen(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old)
