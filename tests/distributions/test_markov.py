"""AR1Normal against torch's dense MultivariateNormal, and by the book of torch.distributions."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from rhovae_kernels import AR1Normal
from rhovae_kernels.python_ref.markov_reparam import cosh_times_difference

# Covariance forms (one scale for all dimensions, one for each) and numbers of dimensions.
CASES = [(d, scaled) for d in (1, 2, 7) for scaled in (False, True)]


def made(
    d: int, scaled: bool, batch: tuple[int, ...] = (), seed: int = 0, requires_grad: bool = False
) -> AR1Normal:
    """A float64 AR1Normal in logits whose rows have ρ of either sign."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (d,), (d if scaled else 1,), (1,)
    loc, log_var, rho_logit = (
        torch.randn(*batch, *shape, dtype=torch.float64, generator=generator).requires_grad_(
            requires_grad
        )
        for shape in shapes
    )
    return AR1Normal(loc, log_var=log_var, rho_logit=rho_logit)


def independent(d: int, batch: tuple[int, ...] = (), seed: int = 1) -> Independent:
    generator = torch.Generator().manual_seed(seed)
    loc, log_scale = torch.randn(2, *batch, d, dtype=torch.float64, generator=generator)
    return Independent(Normal(loc, log_scale.exp()), 1)


def dense(q: AR1Normal | Independent) -> MultivariateNormal:
    """The same Gaussian from its covariance, R[i,j] = ρ^|i−j| written out entry by entry."""
    if isinstance(q, Independent):
        return MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    d = q.event_shape[0]
    rho = torch.tanh(q.rho_logit)[..., 0]
    rows = [
        torch.stack([rho ** abs(i - j) if i != j else torch.ones_like(rho) for j in range(d)], -1)
        for i in range(d)
    ]
    scale = torch.exp(0.5 * q.log_var).expand(q.loc.shape)
    return MultivariateNormal(
        q.loc, scale[..., :, None] * torch.stack(rows, -2) * scale[..., None, :]
    )


def parameters(q: AR1Normal) -> list[Tensor]:
    return [q.loc, q.log_var, q.rho_logit]


def assert_same(found: Tensor, expected: Tensor) -> None:
    # float64 through a dense factorization: a dozen digits, fewer by its condition number.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def assert_same_with_gradients(
    found: Callable[[], Tensor], expected: Callable[[], Tensor], inputs: list[Tensor]
) -> None:
    assert_same(found(), expected())
    pairs = zip(
        torch.autograd.grad(found().sum(), inputs, allow_unused=True),
        torch.autograd.grad(expected().sum(), inputs, allow_unused=True),
        strict=True,
    )
    for x, (ours, theirs) in zip(inputs, pairs, strict=True):
        # A gradient that one side leaves out is zero: of ρ where d = 1, of loc in the entropy.
        zero = torch.zeros_like(x)
        assert_same(zero if ours is None else ours, zero if theirs is None else theirs)


@pytest.mark.parametrize(("d", "scaled"), CASES)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
class TestAgainstTheDenseGaussian:
    def test_moments_agree(self, d, scaled, batch):
        q = made(d, scaled, batch)
        p = dense(q)
        assert_same(q.covariance_matrix, p.covariance_matrix)
        assert_same(q.variance, p.variance)
        assert_same(q.stddev, p.stddev)
        assert torch.equal(q.mean, p.mean) and torch.equal(q.mode, p.mode)

    def test_log_prob_and_its_gradients_agree(self, d, scaled, batch):
        q = made(d, scaled, batch, requires_grad=True)
        z = torch.randn(4, *batch, d, dtype=torch.float64, requires_grad=True)
        inputs = [z, *parameters(q)]
        assert_same_with_gradients(lambda: q.log_prob(z), lambda: dense(q).log_prob(z), inputs)

    def test_entropy_and_its_gradients_agree(self, d, scaled, batch):
        q = made(d, scaled, batch, requires_grad=True)
        assert_same_with_gradients(lambda: q.entropy(), lambda: dense(q).entropy(), parameters(q))

    def test_kl_between_two_and_its_gradients_agree(self, d, scaled, batch):
        q = made(d, scaled, batch, requires_grad=True)
        for p_scaled in (False, True):
            p = made(d, p_scaled, batch, seed=5, requires_grad=True)
            assert_same_with_gradients(
                lambda p=p: kl_divergence(q, p),
                lambda p=p: kl_divergence(dense(q), dense(p)),
                parameters(q) + parameters(p),
            )

    def test_kl_to_and_from_an_independent_normal_agrees(self, d, scaled, batch):
        q, p = made(d, scaled, batch), independent(d, batch)
        assert_same(kl_divergence(q, p), kl_divergence(dense(q), dense(p)))
        assert_same(kl_divergence(p, q), kl_divergence(dense(p), dense(q)))

    def test_the_sample_is_the_cholesky_factor_times_the_noise(self, d, scaled, batch):
        q = made(d, scaled, batch)
        torch.manual_seed(3)
        z = q.rsample((5,))
        torch.manual_seed(3)
        eps = torch.randn(5, *batch, d, dtype=torch.float64)
        assert_same(z, q.loc + (dense(q).scale_tril @ eps[..., None])[..., 0])

    def test_the_fused_kl_is_the_kl_to_a_standard_normal(self, d, scaled, batch):
        q = made(d, scaled, batch)
        zero = torch.zeros(d, dtype=torch.float64)
        expected = kl_divergence(q, Independent(Normal(zero, torch.ones_like(zero)), 1))
        z, kl = q.rsample_and_kl()
        assert z.shape == (*batch, d)
        assert_same(kl, expected)
        z, kl = q.rsample_and_kl((4,))
        assert z.shape == (4, *batch, d)
        assert_same(kl, expected.expand(4, *batch))


def test_batch_shapes_of_parameters_and_values_broadcast():
    q = AR1Normal(torch.zeros(3, 1, 4), torch.ones(2, 1), torch.zeros(1))
    assert q.batch_shape == (3, 2) and q.event_shape == (4,)
    assert q.rsample((5,)).shape == (5, 3, 2, 4)
    assert q.log_prob(torch.zeros(4)).shape == (3, 2)
    assert q.log_prob(torch.zeros(6, 1, 1, 4)).shape == (6, 3, 2)
    p = made(4, True, (2,))
    assert kl_divergence(made(4, False, (3, 1)), p).shape == (3, 2)
    assert q.entropy().shape == (3, 2) and q.covariance_matrix.shape == (3, 2, 4, 4)


def test_natural_parameters_and_logits_give_the_same_distribution():
    a = made(5, True, (3,))
    b = AR1Normal(a.loc, a.scale, a.rho)
    assert_same(b.log_var, a.log_var)
    assert_same(b.rho_logit, a.rho_logit)
    z = torch.randn(3, 5, dtype=torch.float64)
    assert_same(b.log_prob(z), a.log_prob(z))
    assert_same(b.entropy(), a.entropy())


def test_gradients_reach_natural_parameters():
    loc = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    rho = torch.tensor([-0.6], dtype=torch.float64, requires_grad=True)
    z = torch.randn(4, dtype=torch.float64)
    powers = (torch.arange(4)[:, None] - torch.arange(4)).abs()
    assert_same_with_gradients(
        lambda: AR1Normal(loc, scale, rho).log_prob(z),
        lambda: MultivariateNormal(loc, scale.square() * rho**powers).log_prob(z),
        [loc, scale, rho],
    )


@pytest.mark.parametrize("form", ["natural", "logits"])
def test_expand_keeps_the_distribution_and_shares_its_parameters(form):
    q = made(3, True, (2,))
    if form == "natural":
        q = AR1Normal(q.loc, q.scale, q.rho)
    wide = q.expand((4, 2))
    assert type(wide) is AR1Normal
    assert wide.batch_shape == (4, 2) and wide.event_shape == (3,)
    assert wide.loc.data_ptr() == q.loc.data_ptr()
    z = torch.randn(4, 2, 3, dtype=torch.float64)
    assert_same(wide.log_prob(z), q.log_prob(z))
    assert_same(wide.entropy(), q.entropy().expand(4, 2))


def test_expand_of_a_subclass_needs_its_own_expand():
    class Special(AR1Normal):
        def __init__(self, loc: Tensor) -> None:
            super().__init__(loc, torch.ones(1), torch.zeros(1))

    with pytest.raises(NotImplementedError, match="Special"):
        Special(torch.zeros(3)).expand((2,))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_the_same_distribution(copied):
    q = made(3, True, (2,))
    q.covariance_matrix  # noqa: B018 - fills what is made when asked for
    other = copied(q)
    z = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(other.log_prob(z), q.log_prob(z))
    assert other.batch_shape == q.batch_shape and other.loc is not q.loc


def test_sample_carries_no_gradient_and_rsample_does():
    q = made(3, True, requires_grad=True)
    assert AR1Normal.has_rsample
    assert not q.sample().requires_grad
    for gradient in torch.autograd.grad(q.rsample((100,)).sum(), parameters(q)):
        assert gradient.abs().sum() > 0


def test_samples_have_the_stated_moments():
    q = AR1Normal(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]), torch.tensor([-0.7])
    )
    torch.manual_seed(0)
    z = q.sample((40_000,))
    # Five standard errors of 40,000 samples: 5·2/200 of a mean, about 5·√2·4/200 of a variance.
    torch.testing.assert_close(z.mean(0), q.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(z.T.cov(), q.covariance_matrix, rtol=0, atol=0.15)


class TestArguments:
    """What is refused, and how it says so."""

    loc, one, half = torch.zeros(2, 3), torch.ones(1), torch.full((1,), 0.5)

    @pytest.mark.parametrize(
        ("keywords", "says"),
        [
            ({"rho": half}, "exactly one of scale and log_var is wanted; neither came"),
            (
                {"scale": one, "log_var": one, "rho": half},
                "exactly one of scale and log_var is wanted; both came",
            ),
            ({"scale": one}, "exactly one of rho and rho_logit is wanted; neither came"),
            (
                {"scale": one, "rho": half, "rho_logit": half},
                "exactly one of rho and rho_logit is wanted; both came",
            ),
            ({"scale": torch.ones(2), "rho": half}, r"scale is of shape \(2,\); it must be of"),
            ({"scale": one, "rho": torch.zeros(2, 3)}, r"rho is of shape \(2, 3\); it must be of"),
            ({"log_var": torch.zeros(()), "rho": half}, r"log_var is of shape \(\); it must be of"),
            (
                {"scale": torch.ones(4, 1), "rho": half},
                r"leading dimensions do not broadcast: loc \(2, 3\), scale \(4, 1\), rho \(1,\)",
            ),
        ],
    )
    def test_shapes_and_choices_that_do_not_fit_are_named(self, keywords, says):
        with pytest.raises(ValueError, match=says):
            AR1Normal(self.loc, **keywords)

    def test_a_scalar_loc_is_refused(self):
        with pytest.raises(ValueError, match="loc is a scalar"):
            AR1Normal(torch.tensor(0.0), self.one, self.half)

    @pytest.mark.parametrize(
        ("name", "keywords"),
        [
            ("rho", {"scale": one, "rho": torch.ones(1)}),
            ("rho", {"scale": one, "rho": torch.tensor([-1.5])}),
            ("scale", {"scale": torch.zeros(1), "rho": half}),
            ("log_var", {"log_var": torch.tensor([math.nan]), "rho": half}),
            ("rho_logit", {"scale": one, "rho_logit": torch.tensor([math.nan])}),
        ],
    )
    def test_values_outside_their_constraint_are_refused_where_asked_for(self, name, keywords):
        with pytest.raises(ValueError, match=f"parameter {name} "):
            AR1Normal(self.loc, **keywords, validate_args=True)
        AR1Normal(self.loc, **keywords, validate_args=False)

    def test_log_prob_refuses_values_outside_the_support(self):
        q = AR1Normal(self.loc, self.one, self.half, validate_args=True)
        with pytest.raises(ValueError, match="support"):
            q.log_prob(torch.full((2, 3), math.nan))
        with pytest.raises(ValueError, match="event_shape"):
            q.log_prob(torch.zeros(2, 4))

    def test_kl_of_different_dimensions_is_refused(self):
        with pytest.raises(ValueError, match="d = 3 and d = 4"):
            kl_divergence(made(3, False), made(4, False))

    @pytest.mark.parametrize(
        "other",
        [
            Independent(Normal(torch.zeros(2, 3), torch.ones(2, 3)), 2),
            Independent(Laplace(torch.zeros(3), torch.ones(3)), 1),
            Normal(torch.zeros(3), torch.ones(3)),
        ],
        ids=["two event dimensions", "Laplace", "no event dimension"],
    )
    def test_kl_that_is_not_known_says_so(self, other):
        q = AR1Normal(self.loc, self.one, self.half)
        with pytest.raises(NotImplementedError):
            kl_divergence(q, other)
        with pytest.raises(NotImplementedError):
            kl_divergence(other, q)


class TestNearAndBeyondSaturation:
    """float32, where tanh has long rounded to 1, against the same formula in float64."""

    logits = (-80.0, -20.0, -9.5, -0.1, 0.0, 3.0, 9.5, 20.0, 40.0)

    @pytest.mark.parametrize("d", [1, 2, 5])
    def test_entropy_is_exact_in_the_logit(self, d):
        a = torch.tensor(self.logits)[:, None]
        q = AR1Normal(torch.zeros(len(a), d), log_var=torch.zeros(1), rho_logit=a)
        # log(1−ρ²) = −2 log cosh a, and log cosh a = |a| − log 2 beyond rounding from 20 on.
        big = a.double()
        log_cosh = torch.where(big.abs() < 20, torch.log(torch.cosh(big)), big.abs() - math.log(2))
        expected = 0.5 * d * (1 + math.log(2 * math.pi)) - (d - 1) * log_cosh[:, 0]
        torch.testing.assert_close(q.entropy().double(), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("at", logits)
    @pytest.mark.parametrize("scaled", [False, True])
    def test_the_kl_to_itself_is_exactly_zero_and_so_is_its_gradient(self, at, scaled):
        loc, log_var = torch.linspace(-1, 1, 4), torch.linspace(-2, 1, 4 if scaled else 1)
        rho_logit = torch.tensor([at], requires_grad=True)
        p = AR1Normal(loc, log_var=log_var, rho_logit=torch.tensor([at]))
        kl = kl_divergence(AR1Normal(loc, log_var=log_var, rho_logit=rho_logit), p)
        assert kl == 0
        assert torch.autograd.grad(kl, rho_logit)[0] == 0

    def test_the_kl_between_close_neighbours_keeps_its_digits(self):
        # At the limit of small steps, the KL is half the Fisher information times the step squared:
        # ½ (d−1) (1 + ρ²) δ² in the logit. A step of 2⁻¹⁰ at a = 12, where float32's ρ is 1.
        a, step, d = torch.tensor([12.0]), 2.0**-10, 9
        zero = torch.zeros(d)
        q = AR1Normal(zero, log_var=torch.zeros(1), rho_logit=a + step)
        p = AR1Normal(zero, log_var=torch.zeros(1), rho_logit=a)
        expected = 0.5 * (d - 1) * 2 * step**2
        # The next term of the series is of relative size `step`.
        assert kl_divergence(q, p).item() == pytest.approx(expected, rel=2 * step)

    def testcosh_times_difference_is_right_wherever_it_is_finite(self):
        grid = torch.linspace(-80, 80, 65)
        a_q, a_p = torch.meshgrid(grid, grid, indexing="ij")
        found = cosh_times_difference(a_q, a_p).double()
        # exp of exponents up to 80 in magnitude, each rounded to 2⁻²⁴: 80·6e-8 relative.
        torch.testing.assert_close(
            found, cosh_times_difference(a_q.double(), a_p.double()), rtol=1e-5, atol=0
        )
        near = (a_q.abs() <= 8) & (a_p.abs() <= 8)
        q, p = a_q[near].double(), a_p[near].double()
        textbook = torch.cosh(p) * (torch.tanh(q) - torch.tanh(p))
        # cosh 8 is 1490: the textbook form loses that much of its 2⁻⁵³.
        torch.testing.assert_close(cosh_times_difference(q, p), textbook, rtol=1e-9, atol=1e-12)

    def test_its_derivatives_are_right_of_both_orders_at_the_tie_too(self):
        a_q = torch.tensor([0.0, 0.3, -0.3, 1.0, -2.0, 0.5], dtype=torch.float64)
        a_p = torch.tensor([0.0, 0.3, -0.3, -1.0, 2.5, 0.0], dtype=torch.float64)
        inputs = (a_q.requires_grad_(), a_p.requires_grad_())
        textbook = (torch.cosh(inputs[1]) * (torch.tanh(inputs[0]) - torch.tanh(inputs[1]))).sum()
        ours = cosh_times_difference(*inputs).sum()
        first = torch.autograd.grad(ours, inputs, create_graph=True)
        expected = torch.autograd.grad(textbook, inputs, create_graph=True)
        for x, y in zip(first, expected, strict=True):
            assert_same(x, y)
            for ours_2, theirs_2 in zip(
                torch.autograd.grad(x.sum(), inputs, retain_graph=True),
                torch.autograd.grad(y.sum(), inputs, retain_graph=True),
                strict=True,
            ):
                assert_same(ours_2, theirs_2)


def test_half_precision_parameters_give_float32_densities():
    q = made(4, True, (2,))
    half = AR1Normal(
        q.loc.bfloat16(), log_var=q.log_var.bfloat16(), rho_logit=q.rho_logit.bfloat16()
    )
    z, kl = half.rsample_and_kl()
    assert z.dtype is torch.bfloat16
    for x in (kl, half.entropy(), half.log_prob(z), kl_divergence(half, half)):
        assert x.dtype is torch.float32


@pytest.mark.parametrize(("rho", "diagonal_loss", "drd_loss"), [(0.9, 21, 0.01), (0.99, 37, 0.07)])
def test_under_a_sequence_prior_correlation_pays_tens_of_nats(rho, diagonal_loss, drd_loss):
    """y_t = x_t + noise, x an AR(1) sequence of T = 128: KL(q ‖ exact posterior), q at its best."""
    T, noise_variance = 128, 1.0
    prior = AR1Normal(
        torch.zeros(T, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        torch.tensor([rho], dtype=torch.float64),
    )
    precision = torch.linalg.inv(prior.covariance_matrix)
    precision = precision + torch.eye(T, dtype=torch.float64) / noise_variance
    exact = MultivariateNormal(torch.zeros(T, dtype=torch.float64), precision_matrix=precision)
    # The best diagonal Gaussian has the exact one's conditional variances.
    best = Independent(Normal(exact.mean, precision.diagonal().rsqrt()), 1)
    assert kl_divergence(dense(best), exact).item() == pytest.approx(diagonal_loss, abs=0.6)

    log_var = torch.full((T,), -1.0, dtype=torch.float64, requires_grad=True)
    rho_logit = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        # KL(q ‖ exact) = ½ tr(precision·C) − entropy(q) + constants; tr needs three diagonals of
        # the precision, since it is tridiagonal.
        q = AR1Normal(exact.mean, log_var=log_var, rho_logit=rho_logit)
        neighbours = q.rho * q.scale[1:] * q.scale[:-1]
        trace = precision.diagonal() @ q.variance + 2 * precision.diagonal(1) @ neighbours
        constant = T * math.log(2 * math.pi) - torch.logdet(precision)
        return 0.5 * (trace + constant) - q.entropy()

    optimizer = torch.optim.LBFGS([log_var, rho_logit], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    found = loss().item()
    assert found == pytest.approx(drd_loss, abs=0.006)
    q = AR1Normal(exact.mean, log_var=log_var.detach(), rho_logit=rho_logit.detach())
    assert kl_divergence(dense(q), exact).item() == pytest.approx(found, abs=1e-8)
