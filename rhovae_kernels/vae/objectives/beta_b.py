"""`BetaB`: the KL divergence is led along a capacity that grows."""

from torch import Tensor

from rhovae_kernels.vae.objectives.base import Objective, Terms, known_step, not_negative
from rhovae_kernels.vae.parts import positive_integers


class BetaB(Objective):
    """β-VAE with a capacity: γ|mean_b KL_b − C(t)| − mean_b log p(x_b|z_b).

    C(t) rises from 0 to `capacity` in a straight line over the first `steps` steps.

    Args:
        gamma: weight of the distance, not negative.
        capacity: the KL divergence to end at, in nats.
        steps: optimization steps that it takes to get there.

    Raises:
        ValueError: gamma or capacity is negative, or steps is no positive integer.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §4.3 and appendix B; γ and C are ours.

    Example:
        >>> BetaB(100.0, capacity=5.0, steps=1000).capacity_at(100)
        0.5
    """

    needs_step = True

    def __init__(self, gamma: float, capacity: float, steps: int) -> None:
        super().__init__()
        self.gamma = not_negative("gamma", gamma)
        self.capacity = not_negative("capacity", capacity)
        (self.steps,) = positive_integers("steps", (steps,))

    def capacity_at(self, step: int) -> float:
        """C at a step, in nats."""
        return self.capacity * min(1.0, step / self.steps)

    def forward(self, terms: Terms) -> Tensor:
        capacity = self.capacity_at(known_step(terms.step, self))
        distance = (terms.kl.mean() - capacity).abs()
        return self.gamma * distance - terms.log_px.mean()
