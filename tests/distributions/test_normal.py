"""DiagonalNormal and StandardNormal against PyTorch's own of the same parameters."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from rhovae_kernels.distributions import DiagonalNormal, StandardNormal


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pairs():
    """Of each kind, and PyTorch's equal."""
    loc, log_var = draw(5, 3), draw(5, 3, seed=1)
    yield "diagonal", DiagonalNormal(loc, log_var), Normal(loc, torch.exp(0.5 * log_var))
    shared = DiagonalNormal(loc, log_var[0])
    yield "broadcast", shared, Normal(loc, torch.exp(0.5 * log_var[0]).expand(5, 3))
    zero = torch.zeros(5, 3, dtype=torch.float64)
    yield "standard", StandardNormal((5, 3), torch.float64), Normal(zero, zero + 1)


each = pytest.mark.parametrize(
    "p,theirs", [(p, Independent(q, 1)) for _, p, q in pairs()], ids=[name for name, *_ in pairs()]
)


@each
def test_its_density_moments_and_entropy_are_pytorchs(p, theirs):
    assert (p.batch_shape, p.event_shape) == (theirs.batch_shape, theirs.event_shape)
    for value in (draw(5, 3, seed=2), draw(3, seed=3), draw(2, 5, 3, seed=4)):
        torch.testing.assert_close(p.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(p.entropy().expand(5), theirs.entropy())
    for moment in ("mean", "mode", "variance", "stddev"):
        torch.testing.assert_close(getattr(p, moment), getattr(theirs, moment))


@each
def test_its_samples_are_pytorchs_of_the_same_noise(p, theirs):
    drawn = []
    for q in (p, theirs):
        torch.manual_seed(0)
        drawn.append(q.rsample((4,)))
    torch.testing.assert_close(*drawn)
    torch.manual_seed(0)
    z, log_p = p.rsample_and_log_prob((4,))
    assert torch.equal(z, drawn[0])
    torch.testing.assert_close(log_p, theirs.log_prob(z))


@each
def test_expanded_it_is_the_same_in_every_row(p, theirs):
    wide = p.expand((2, 5))
    assert type(wide) is type(p) and wide.batch_shape == (2, 5)
    assert wide.sample((4,)).shape == (4, 2, 5, 3)
    value = draw(2, 5, 3)
    torch.testing.assert_close(wide.log_prob(value), theirs.log_prob(value))
    assert wide.log_prob(value[0, 0]).shape == (2, 5)


@each
@pytest.mark.parametrize("other", [other for _, other, _ in pairs()], ids=[n for n, *_ in pairs()])
def test_its_kl_divergences_are_pytorchs(p, theirs, other):
    normal = Independent(Normal(other.mean, other.stddev), 1)
    expected = kl_divergence(theirs, normal)
    for q, r in ((p, other), (p, normal), (theirs, other)):
        torch.testing.assert_close(kl_divergence(q, r).expand(5), expected)


def test_gradients_reach_its_parameters():
    loc, log_var = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    eps = draw(5, 3, seed=2)

    def log_prob(loc, log_var):
        return DiagonalNormal(loc, log_var).log_prob(eps)

    assert torch.autograd.gradcheck(log_prob, (loc, log_var))
    q = DiagonalNormal(loc, log_var)
    q.rsample().square().sum().backward()
    assert loc.grad.abs().min() > 0 and log_var.grad.abs().min() > 0


def test_half_precision_gives_float32_densities():
    loc = draw(5, 3, dtype=torch.float32).bfloat16()
    for p in (DiagonalNormal(loc, loc), StandardNormal((5, 3), torch.bfloat16)):
        z, log_p = p.rsample_and_log_prob()
        assert z.dtype == torch.bfloat16
        assert log_p.dtype == p.log_prob(z).dtype == p.entropy().dtype == torch.float32


# PyTorch's default is the process's: importing zuko turns it off.
CHECKED = {"validate_args": True}


@pytest.mark.parametrize(
    "make,says",
    [
        (
            lambda: DiagonalNormal(draw(2, 3), draw(4)),
            r"loc is of shape \(2, 3\), log_var of shape",
        ),
        (lambda: DiagonalNormal(draw(), draw()), r"they must be of shape \(…,d\)"),
        (lambda: StandardNormal(()), r"shape is empty; it must be \(…,d\)"),
        (lambda: DiagonalNormal(draw(3) * torch.nan, draw(3), **CHECKED), "parameter loc"),
        (
            lambda: DiagonalNormal(draw(3), draw(3), **CHECKED).log_prob(draw(3) * torch.nan),
            "support",
        ),
        (lambda: StandardNormal((3,), **CHECKED).log_prob(draw(3) * torch.nan), "support"),
    ],
)
def test_what_does_not_fit_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_kl_that_is_not_known_is_refused_by_name():
    p = Independent(Bernoulli(logits=draw(5, 3)), 1)
    with pytest.raises(NotImplementedError, match=r"not for Independent\(Bernoulli, 1\)"):
        kl_divergence(StandardNormal((5, 3)), p)
    with pytest.raises(ValueError, match="d = 3 and d = 4"):
        kl_divergence(StandardNormal((5, 3)), StandardNormal((5, 4)))
