"""`InfoMMD`: a distance of the aggregate posterior and the prior in place of KL divergence."""

from torch import Tensor

from rhovae_kernels.vae import divergences
from rhovae_kernels.vae.objectives.base import Objective, Terms


class InfoMMD(Objective):
    """InfoVAE: mean_b[(1−α) KL_b − log p(x_b|z_b)] + (α+λ−1) MMD²(q(z), p(z)).

    MMD² is the unbiased estimate from the batch's z and as many samples of the prior, through
    which its gradient reaches a prior that is learned. A batch of one holds no pair: none is taken.

    Args:
        alpha: how much of the KL divergence to drop, at most 1.
        lambda_: λ; α+λ−1 must not be negative.
        kernel: "imq" or "rbf", see `divergences.mmd`.
        bandwidth: the kernel's scale.

    Raises:
        ValueError: a weight is negative, the kernel is unknown, the bandwidth is not positive.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §4.3 and appendix B; α and λ are ours.

    Example:
        >>> InfoMMD(alpha=0.0, lambda_=10.0).kernel
        'imq'
    """

    takes_sequences = False

    def __init__(
        self, alpha: float, lambda_: float, kernel: str = "imq", bandwidth: float = 1.0
    ) -> None:
        super().__init__()
        if not alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be at most 1")
        if not alpha + lambda_ >= 1:
            raise ValueError(f"alpha + lambda_ is {alpha + lambda_}; it must be at least 1")
        if kernel not in divergences.KERNELS:
            raise ValueError(
                f"kernel is {kernel!r}; it must be one of {', '.join(divergences.KERNELS)}"
            )
        if not bandwidth > 0:
            raise ValueError(f"bandwidth is {bandwidth}; it must be positive")
        self.alpha = float(alpha)
        self.lambda_ = float(lambda_)
        self.kernel = kernel
        self.bandwidth = float(bandwidth)

    def forward(self, terms: Terms) -> Tensor:
        loss = ((1 - self.alpha) * terms.kl - terms.log_px).mean()
        count = terms.z.shape[0]
        if count < 2:
            return loss
        drawn = terms.prior().rsample((count,))
        mmd = divergences.mmd(terms.z, drawn, self.kernel, self.bandwidth)
        return loss + (self.alpha + self.lambda_ - 1) * mmd
