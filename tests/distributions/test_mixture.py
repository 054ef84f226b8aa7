"""The mixture of equal weights, against PyTorch's own and against its moments."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
)

from rhovae_kernels.distributions import AR1Normal, UniformMixture


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int) -> Normal:
    return Normal(2 * numbers(*shape), numbers(*shape, seed=1).exp())


COMPONENTS = {
    "scalars": lambda: normal(4),
    "a batch of scalars": lambda: normal(3, 2, 4),
    "vectors": lambda: Independent(normal(4, 3), 1),
    "a batch of matrices": lambda: Independent(normal(2, 4, 3, 2), 2),
}
every_kind = pytest.mark.parametrize(
    "components", [pytest.param(make(), id=name) for name, make in COMPONENTS.items()]
)


def of_torch(components: Distribution) -> MixtureSameFamily:
    weights = torch.ones(components.batch_shape, dtype=torch.float64)
    return MixtureSameFamily(Categorical(weights), components)


@every_kind
class TestEveryKind:
    def test_it_is_pytorchs_mixture_with_equal_weights(self, components):
        found, expected = UniformMixture(components), of_torch(components)
        assert found.batch_shape == expected.batch_shape
        assert found.event_shape == expected.event_shape
        z = numbers(5, *expected.batch_shape, *expected.event_shape, seed=2)
        torch.testing.assert_close(found.log_prob(z), expected.log_prob(z))
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.variance, expected.variance)

    def test_samples_have_its_shape_and_moments(self, components):
        p = UniformMixture(components)
        torch.manual_seed(0)
        for draw in (p.sample, p.rsample):
            z = draw((200, 200))
            assert z.shape == (200, 200, *p.batch_shape, *p.event_shape)
            z = z.flatten(0, 1)
            assert ((z.mean(0) - p.mean).abs() < 5 * (p.variance / len(z)).sqrt()).all()
            # Of five standard errors of a variance, the fourth moment estimated.
            error = ((z - z.mean(0)) ** 4).mean(0).sqrt() / math.sqrt(len(z))
            assert ((z.var(0) - p.variance).abs() < 5 * error).all()

    def test_expanded_it_is_the_same_in_each_row(self, components):
        p = UniformMixture(components)
        wide = p.expand((6, *p.batch_shape))
        assert wide.batch_shape == (6, *p.batch_shape) and wide.event_shape == p.event_shape
        z = numbers(*wide.batch_shape, *wide.event_shape, seed=2)
        torch.testing.assert_close(wide.log_prob(z), p.log_prob(z))
        assert wide.rsample((2,)).shape == (2, *z.shape)


def test_each_draw_is_of_one_component():
    """Components that are far apart and narrow: each is chosen as often, whole vectors of each."""
    means = torch.tensor([[-100.0, 100.0], [0.0, 0.0], [100.0, -100.0]])
    p = UniformMixture(Independent(Normal(means, torch.ones(3, 2)), 1))
    torch.manual_seed(0)
    z = p.rsample((9000,))
    distance = (z[:, None] - means).norm(dim=-1)
    nearest, chosen = distance.min(1)
    assert nearest.max() < 6
    # Five standard deviations of a count of 9000 draws of probability 1/3.
    assert ((chosen.bincount() - 3000).abs() < 5 * math.sqrt(9000 * 2 / 9)).all()


def test_the_gradient_of_a_draw_is_that_of_its_mean():
    """E z² = mean_k(μ_k² + σ_k²): its gradient is 2 μ_k/K and 2 σ_k/K."""
    mu, sigma = numbers(4).requires_grad_(), numbers(4, seed=1).exp().requires_grad_()
    torch.manual_seed(0)
    z = UniformMixture(Normal(mu, sigma)).rsample((100_000,))
    found = torch.autograd.grad(z.square().mean(), (mu, sigma))
    for gradient, parameter in zip(found, (mu, sigma), strict=True):
        torch.testing.assert_close(gradient, parameter.detach() / 2, rtol=0.05, atol=0.02)


def test_far_from_every_component_the_density_is_finite():
    p = UniformMixture(Normal(torch.tensor([-1.0, 1.0]), torch.tensor([1e-3, 1e-3])))
    log_prob = p.log_prob(torch.tensor(1e4))
    torch.testing.assert_close(log_prob, p.components.log_prob(torch.tensor(1e4))[1] - math.log(2))


def test_of_one_component_it_is_the_component():
    q = AR1Normal(numbers(1, 3), scale=torch.ones(1).double(), rho=torch.tensor([0.5]).double())
    p, z = UniformMixture(q), numbers(7, 3, seed=2)
    torch.testing.assert_close(p.log_prob(z), q.log_prob(z))
    torch.testing.assert_close(p.variance, q.variance[0])


def test_what_has_no_reparametrized_sample_is_sampled_alone():
    p = UniformMixture(Bernoulli(torch.tensor([0.0, 1.0])))
    assert not p.has_rsample and UniformMixture(normal(2)).has_rsample
    assert set(p.sample((50,)).tolist()) == {0.0, 1.0}
    with pytest.raises(NotImplementedError):
        p.rsample()


def test_values_are_validated_by_the_support_of_the_components():
    p = UniformMixture(Bernoulli(torch.tensor([0.2, 0.7])), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor(0.5))


@pytest.mark.parametrize("components", [Normal(0.0, 1.0), Normal(torch.zeros(2, 0), 1.0)])
def test_without_a_component_it_is_refused(components):
    with pytest.raises(ValueError, match=r"components is of batch shape \(.*; it must be \(…,K\)"):
        UniformMixture(components)
