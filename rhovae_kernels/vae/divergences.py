"""Divergences between distributions over codes, estimated from samples of a batch."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

KERNELS = ("rbf", "imq")


def stratified_log_weights(batch: int, data_size: int, like: Tensor) -> Tensor:
    """log W of minibatch stratified sampling, (B, B): q(z_i) ≈ Σ_j W_ij q(z_i|x_j).

    x_i, of which z_i was drawn, is certain to be in the batch: it weighs 1/N, as it does among all
    N data. The others stand for the N − 1 that are left: with M = B − 1, 1/M each but one, to which
    (N−M)/(N·M) is left. Each row sums to 1.

    Args:
        batch: B.
        data_size: N, B at least.
        like: gives type and device.

    Raises:
        ValueError: there are fewer data than the batch holds.

    Source:
        The estimator of β-TC-VAE, Chen, Li, Grosse and Duvenaud, 2018, "Isolating sources of
        disentanglement in VAEs", https://arxiv.org/abs/1802.04942, appendix C.2; the code that most
        libraries carry weighs column 0 in place of the diagonal.

    Example:
        >>> import torch
        >>> stratified_log_weights(3, 10, torch.zeros(())).exp()
        tensor([[0.1000, 0.4000, 0.5000],
                [0.5000, 0.1000, 0.4000],
                [0.4000, 0.5000, 0.1000]])
    """
    if data_size < batch:
        raise ValueError(f"data_size is {data_size}; a batch of {batch} wants that many at least")
    others = batch - 1
    if others == 0:
        return like.new_zeros(1, 1)
    weights = like.new_full((batch, batch), 1 / others)
    rows = torch.arange(batch, device=like.device)
    weights[rows, rows] = 1 / data_size
    weights[rows, (rows + 1) % batch] = (data_size - others) / (data_size * others)
    return weights.log()


def log_mixture(q: Distribution, log_weights: Tensor, z: Tensor) -> Tensor:
    """log Σ_j w_j q_j(z), (S,), of samples z (S, latent) under the B components of q.

    Args:
        q: of batch shape (B,) and event shape (latent,).
        log_weights: log w, (B,), or (S, B) for weights of each sample's own.
        z: the samples.
    """
    return (q.log_prob(z[:, None]) + log_weights).logsumexp(-1)


def log_mixture_of_marginals(marginals: Normal, log_weights: Tensor, z: Tensor) -> Tensor:
    """log Π_k Σ_j w_j q_j(z_k), (S,): the product of the marginals of `log_mixture`.

    Args:
        marginals: the components' marginals, of batch shape (B, latent).
        log_weights: log w, (B,), or (S, B).
        z: the samples, (S, latent).
    """
    return (marginals.log_prob(z[:, None]) + log_weights[..., None]).logsumexp(-2).sum(-1)


def mmd(x: Tensor, y: Tensor, kernel: str = "imq", bandwidth: float = 1.0) -> Tensor:
    """The unbiased estimate of MMD²(p, q) = E k(x,x') + E k(y,y') − 2 E k(x,y), a scalar.

    With C = 2 d·bandwidth²: "rbf": k = exp(−‖x−y‖²/C); "imq": k = C/(C + ‖x−y‖²). Its expectation
    is 0 for equal distributions; an estimate may be negative.

    Args:
        x: samples of p, (n, d), n at least 2.
        y: samples of q, (m, d), m at least 2.
        kernel: "rbf" or "imq".
        bandwidth: the scale, in units of a standard normal's.

    Raises:
        ValueError: an unknown kernel; fewer samples than 2, which make no pair.

    Example:
        >>> import torch
        >>> mmd(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]]))
        tensor(-0.6667)
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; it must be one of {', '.join(KERNELS)}")
    for name, samples in (("x", x), ("y", y)):
        if (count := samples.shape[0]) < 2:
            raise ValueError(f"{name} holds {count} samples; an estimate takes 2 at least")
    scale = 2 * x.shape[-1] * bandwidth**2

    def k(a: Tensor, b: Tensor) -> Tensor:
        distance = (a[:, None] - b).square().sum(-1)
        return torch.exp(-distance / scale) if kernel == "rbf" else scale / (scale + distance)

    def within(a: Tensor) -> Tensor:
        # A point is at no distance of itself: k = 1 on the diagonal, which is no pair.
        n = a.shape[0]
        return (k(a, a).sum() - n) / (n * (n - 1))

    return within(x) + within(y) - 2 * k(x, y).mean()
