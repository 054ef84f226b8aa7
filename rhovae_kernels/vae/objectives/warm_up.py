"""`WarmUp`: the KL divergence gains its weight over the first steps."""

from dataclasses import replace

from torch import Tensor

from rhovae_kernels.vae.objectives.base import Objective, OnKL, Terms, known_step
from rhovae_kernels.vae.parts import positive_integers


class WarmUp(OnKL):
    """An objective whose KL divergence weighs nothing at first and all after `steps` steps.

    Args:
        objective: the objective.
        steps: optimization steps over which the weight rises, in a straight line.

    Raises:
        ValueError: steps is no positive integer.

    Example:
        >>> import rhovae_kernels as rk
        >>> WarmUp(rk.objectives.ELBO(), steps=1000).weight_at(250)
        0.25
    """

    scales_kl = True
    needs_step = True

    def __init__(self, objective: Objective, steps: int) -> None:
        super().__init__(objective)
        (self.steps,) = positive_integers("steps", (steps,))

    def weight_at(self, step: int) -> float:
        """The weight at a step."""
        return min(1.0, step / self.steps)

    def forward(self, terms: Terms) -> Tensor:
        weight = terms.kl_weight * self.weight_at(known_step(terms.step, self))
        return super().forward(replace(terms, kl_weight=weight))

    def kl(self, terms: Terms) -> Tensor:
        return self.weight_at(known_step(terms.step, self)) * terms.kl
