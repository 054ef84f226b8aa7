"""MarkovNormal given noisy, partly missing observations, against dense conditioning."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from rhovae_kernels import AR1Normal, MarkovNormal


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def assert_same(found: Tensor, expected: Tensor) -> None:
    # float64 through a dense factorization: a dozen digits, fewer by its condition number.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def chain(d: int, batch: tuple[int, ...] = ()) -> tuple[MarkovNormal, list[Tensor]]:
    loc, log_var, rho_logit = (normal(*batch, d, seed=seed).requires_grad_() for seed in range(3))
    p = MarkovNormal(loc, log_var=log_var, rho_logit=rho_logit)
    return p, [loc, log_var, rho_logit]


def conditioned(
    p: MarkovNormal, y: Tensor, r: Tensor, seen: list[int]
) -> tuple[MultivariateNormal, Tensor]:
    """The posterior given y at these steps, and log p(y), through the d × d covariance."""
    covariance = p.covariance_matrix
    noisy = covariance[..., seen, :][..., seen] + torch.diag_embed(r[..., seen])
    gain = torch.linalg.solve(noisy, covariance[..., seen, :]).mT
    residual = (y[..., seen] - p.loc[..., seen])[..., None]
    loc = p.loc + (gain @ residual)[..., 0]
    posterior = MultivariateNormal(loc, covariance - gain @ covariance[..., seen, :])
    return posterior, MultivariateNormal(p.loc[..., seen], noisy).log_prob(y[..., seen])


@pytest.mark.parametrize("missing", [[], [2], [0, 3, 4], [5], [0, 1, 2, 4, 5]])
@pytest.mark.parametrize("batch", [(), (3,)])
class TestAgainstDenseConditioning:
    def observed(self, batch, missing) -> tuple[Tensor, Tensor, list[int]]:
        y, log_r = normal(*batch, 6, seed=3), normal(*batch, 6, seed=4)
        y[..., missing], log_r[..., missing] = math.nan, math.inf
        return y, log_r, [j for j in range(6) if j not in missing]

    def test_the_posterior_and_the_likelihood_agree(self, batch, missing):
        p, _ = chain(6, batch)
        y, log_r, seen = self.observed(batch, missing)
        q, log_marginal = p.condition_on(y, log_r)
        expected, log_likelihood = conditioned(p, y, log_r.exp(), seen)
        assert type(q) is MarkovNormal and q.batch_shape == batch
        assert_same(q.loc, expected.loc)
        assert_same(q.covariance_matrix, expected.covariance_matrix)
        assert_same(log_marginal, log_likelihood)

    def test_its_density_has_the_dense_gradients(self, batch, missing):
        p, inputs = chain(6, batch)
        y, log_r, seen = self.observed(batch, missing)
        inputs = [*inputs, y.requires_grad_(), log_r.requires_grad_()]
        z = normal(*batch, 6, seed=5)
        values = []
        for q, log_marginal in (p.condition_on(y, log_r), conditioned(p, y, log_r.exp(), seen)):
            value = (q.log_prob(z) + 2 * log_marginal).sum()
            values.append(torch.autograd.grad(value, inputs, retain_graph=True))
        for x, wanted in zip(*values, strict=True):
            # What is missing has no gradient, where the dense formula never saw it.
            assert_same(x, wanted.nan_to_num(0.0))


def test_given_nothing_it_is_what_it_was():
    p, _ = chain(5, (2,))
    y = torch.full((2, 5), math.nan, dtype=torch.float64)
    q, log_marginal = p.condition_on(y, torch.full((1,), math.inf, dtype=torch.float64))
    assert_same(q.loc, p.loc)
    assert_same(q.log_var, p.log_var)
    assert_same(q.rho_logit[:, 1:], p.rho_logit[:, 1:])
    assert (log_marginal == 0).all()


def test_in_two_goes_it_is_the_same_as_at_once():
    p, _ = chain(6)
    y, log_r = normal(6, seed=3), normal(6, seed=4)
    first, second = log_r.clone(), log_r.clone()
    first[1::2], second[::2] = math.inf, math.inf
    half, log_first = p.condition_on(y, first)
    both, log_second = half.condition_on(y, second)
    expected, log_marginal = p.condition_on(y, log_r)
    assert_same(both.loc, expected.loc)
    assert_same(both.covariance_matrix, expected.covariance_matrix)
    assert_same(log_first + log_second, log_marginal)


def test_it_smooths_a_process_at_uneven_times_as_a_gaussian_process_does():
    times = normal(9, seed=6).exp().cumsum(-1)
    one = torch.ones(1, dtype=torch.float64)
    p = MarkovNormal.ornstein_uhlenbeck(times, one, 2 * one, tau=3 * one)
    y, log_r = normal(9, seed=3), torch.full((9,), -1.0, dtype=torch.float64)
    log_r[[2, 5, 6]] = math.inf
    seen = [0, 1, 3, 4, 7, 8]
    kernel = 4 * torch.exp(-(times[:, None] - times).abs() / 3)
    noisy = kernel[seen][:, seen] + math.exp(-1) * torch.eye(6, dtype=torch.float64)
    gain = torch.linalg.solve(noisy, kernel[seen]).T
    q, _ = p.condition_on(y, log_r)
    assert_same(q.mean, 1 + gain @ (y[seen] - 1))
    assert_same(q.covariance_matrix, kernel - gain @ kernel[seen])


def test_one_rho_becomes_a_rho_for_each_step():
    one = torch.ones(1)
    p = AR1Normal(torch.zeros(4), one, 0.5 * one)
    q, _ = p.condition_on(
        torch.tensor([1.0, math.nan, 2.0, 0.0]), torch.tensor([0.0, math.inf, 0, 0])
    )
    assert type(q) is MarkovNormal and q.rho_logit.shape == (4,)


def test_batches_of_chains_and_of_observations_broadcast():
    p, _ = chain(4, (3, 1))
    q, log_marginal = p.condition_on(normal(2, 4, seed=3), normal(5, 1, 1, 1, seed=4))
    assert q.batch_shape == log_marginal.shape == (5, 3, 2)


def test_second_derivatives_are_right():
    _, parameters = chain(3)
    y, log_r = normal(3, seed=3).requires_grad_(), normal(3, seed=4).requires_grad_()

    def posterior(y, log_r, loc, log_var, rho_logit):
        p = MarkovNormal(loc, log_var=log_var, rho_logit=rho_logit, validate_args=False)
        q, log_marginal = p.condition_on(y, log_r)
        return q.entropy(), q.log_prob(torch.zeros_like(y)), log_marginal

    assert torch.autograd.gradgradcheck(posterior, (y, log_r, *parameters))


@pytest.mark.parametrize(
    ("y", "log_r", "says"),
    [
        (torch.zeros(3), torch.zeros(4), r"y is of shape \(3,\); it must be of shape \(…,4\)"),
        (torch.tensor(0.0), torch.zeros(4), r"y is of shape \(\); it must be of shape \(…,4\)"),
        (torch.zeros(4), torch.zeros(3), r"log_r is of shape \(3,\); .* \(…,1\) or \(…,4\)"),
        (torch.zeros(3, 4), torch.zeros(1), r"do not broadcast: y \(3, 4\), .*, loc \(2, 4\)"),
        (torch.zeros(4), torch.full((4,), math.nan), "log_r is NaN or -inf somewhere"),
        (torch.zeros(4), torch.full((4,), -math.inf), "log_r is NaN or -inf somewhere"),
        (torch.tensor([0, math.nan, 0, 0]), torch.zeros(4), "y is NaN where log_r is finite"),
        (torch.tensor([0, math.nan, 0, 0]), torch.zeros(1), "y is NaN where log_r is finite"),
        ([0.0] * 4, torch.zeros(4), r"y is \[0.0, 0.0, 0.0, 0.0\]; it must be a tensor"),
        (torch.zeros(4).double(), torch.zeros(4), "log_r is of type torch.float32; it must be"),
    ],
)
def test_observations_that_do_not_fit_are_named(y, log_r, says):
    p = MarkovNormal(torch.zeros(2, 4), torch.ones(1), torch.zeros(4))
    with pytest.raises(ValueError, match=says):
        p.condition_on(y, log_r)
