"""`AR1Normal`: a `MarkovNormal` of one correlation."""

from rhovae_kernels.distributions.markov import MarkovNormal


class AR1Normal(MarkovNormal):
    """A Gaussian whose neighbours are correlated: N(loc, D R D), R[i,j] = ρ^|i−j|, D = diag(scale).

    u_1 = ε_1; u_j = ρ u_{j−1} + √(1−ρ²) ε_j; z = loc + scale ⊙ u

    The `MarkovNormal` of one ρ for all steps, whose methods it has. By position, as of PyTorch's
    `Normal`, come the scale and then ρ: what an encoder puts out goes by name.

    Args:
        loc: mean, shape (…,d).
        scale: standard deviation, shape (…,1), one for all dimensions, or (…,d).
        rho: correlation of neighbours, −1 < ρ < 1, shape (…,1).
        log_var: log variance, in place of scale: scale = exp(½ log_var).
        rho_logit: in place of rho, shape (…,1): ρ = tanh(rho_logit).
        validate_args: whether to check parameters and values; PyTorch's default where left out.

    Leading dimensions broadcast.

    Raises:
        ValueError: not exactly one of scale and log_var, or of rho and rho_logit; a shape does not
            fit; a value is outside its constraint.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, equations 4 to 7,
        with 7 corrected; KL between two of them: tridiagonal R⁻¹.

    Example:
        >>> import torch
        >>> q = AR1Normal(torch.zeros(3), scale=torch.ones(1), rho=torch.tensor([0.5]))
        >>> q.covariance_matrix
        tensor([[1.0000, 0.5000, 0.2500],
                [0.5000, 1.0000, 0.5000],
                [0.2500, 0.5000, 1.0000]])
        >>> q.log_prob(torch.zeros(3)), q.entropy()
        (tensor(-2.4691), tensor(3.9691))
    """

    _one_rho = True
