"""`FreeBits`: some nats of KL divergence cost nothing."""

from torch import Tensor

from rhovae_kernels.vae.objectives.base import Objective, OnKL, Terms, not_negative


class FreeBits(OnKL):
    """An objective to which a mean KL divergence below `nats` is `nats`: no gradient lowers it.

    The whole code is one group: max(nats, mean_b KL_b).

    Args:
        objective: the objective.
        nats: what is free, not negative.

    Raises:
        ValueError: nats is negative; the objective does not average the KL divergence (`IWAE`).

    Example:
        >>> import rhovae_kernels as rk
        >>> FreeBits(rk.objectives.ELBO(), nats=2.0).nats
        2.0
    """

    def __init__(self, objective: Objective, nats: float) -> None:
        super().__init__(objective)
        self.nats = not_negative("nats", nats)

    def kl(self, terms: Terms) -> Tensor:
        # What lifts the mean takes the gradient of the mean away.
        return terms.kl + (self.nats - terms.kl.mean()).clamp(min=0)
