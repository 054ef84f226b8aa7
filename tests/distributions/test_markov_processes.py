"""The constructors of MarkovNormal against the dense covariance of the process each is of."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from rhovae_kernels import AR1Normal, MarkovNormal
from rhovae_kernels.papers.published import RandomWalkNormal


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def assert_same(found: Tensor, expected: Tensor) -> None:
    # float64 through a dense factorization: a dozen digits, fewer by its condition number.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def assert_is(q: MarkovNormal, loc: Tensor, covariance: Tensor, inputs: list[Tensor]) -> None:
    """q is this Gaussian: its moments, and its density with the gradients of it."""
    assert_same(q.mean, loc)
    assert_same(q.covariance_matrix, covariance)
    z = normal(4, *q.loc.shape, seed=99)
    found = q.log_prob(z)
    expected = MultivariateNormal(loc, covariance, validate_args=False).log_prob(z)
    assert_same(found, expected)
    ours, theirs = (
        torch.autograd.grad(x.sum(), inputs, materialize_grads=True) for x in (found, expected)
    )
    for x, y in zip(ours, theirs, strict=True):
        assert_same(x, y)


def in_both(make, *parameters: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """log_var, the logits and their gradients, in float32 and of the same numbers in float64."""
    found = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.to(dtype).requires_grad_() for x in parameters]
        q = make(*inputs)
        values = q.log_var, q.rho_logit[..., 1:]
        gradients = torch.autograd.grad(values[0].sum() + values[1].sum(), inputs)
        found.append([x.detach().double() for x in (*values, *gradients)])
    return found[0], found[1]


class TestFromConditionals:
    def parameters(self, d: int, batch: tuple[int, ...]) -> list[Tensor]:
        phi, log_q, c = (normal(*batch, d, seed=seed) for seed in range(3))
        return [x.requires_grad_() for x in (phi, log_q.exp(), c)]

    @pytest.mark.parametrize(("d", "batch"), [(1, ()), (2, (3,)), (6, (2,))])
    def test_it_is_the_gaussian_that_the_recursion_makes_of_white_noise(self, d, batch):
        phi, q, c = self.parameters(d, batch)
        # z = Φ z + c + √q ε, Φ below the diagonal.
        step = torch.diag_embed(phi[..., 1:], -1)
        response = torch.linalg.inv(torch.eye(d, dtype=torch.float64) - step)
        loc = (response @ c[..., None])[..., 0]
        covariance = response @ torch.diag_embed(q) @ response.mT
        assert_is(MarkovNormal.from_conditionals(phi, q, c), loc, covariance, [phi, q, c])

    def test_the_conditionals_of_a_chain_give_it_back(self):
        q = MarkovNormal(
            normal(2, 5, seed=0), log_var=normal(2, 5, seed=1), rho_logit=normal(2, 5, seed=2)
        )
        again = MarkovNormal.from_conditionals(*q.conditionals)
        assert_same(again.loc, q.loc)
        assert_same(again.log_var, q.log_var)
        assert_same(again.rho_logit[:, 1:], q.rho_logit[:, 1:])

    def test_a_stationary_chain_is_the_gaussian_of_one_rho(self):
        rho, scale, d = torch.tensor([-0.8]).double(), torch.tensor([1.5]).double(), 6
        q = torch.full((d,), (scale.square() * (1 - rho.square())).item(), dtype=torch.float64)
        q[0] = scale.square()
        chain = MarkovNormal.from_conditionals(rho, q, torch.zeros(d).double())
        expected = AR1Normal(torch.zeros(d).double(), scale, rho)
        assert_same(chain.covariance_matrix, expected.covariance_matrix)

    def test_all_three_broadcast(self):
        one = torch.ones(1)
        p = MarkovNormal.from_conditionals(one, torch.ones(3, 1, 1), torch.zeros(2, 4))
        assert p.batch_shape == (3, 2) and p.event_shape == (4,)
        torch.testing.assert_close(p.variance, torch.arange(1.0, 5.0).expand(3, 2, 4))

    @pytest.mark.parametrize("first", [math.nan, math.inf, 3.0])
    def test_the_first_factor_is_not_read_and_gets_no_gradient(self, first):
        phi, q, c = self.parameters(4, ())
        expected = MarkovNormal.from_conditionals(phi, q, c)
        with torch.no_grad():
            given = phi.clone()
            given[0] = first
        p = MarkovNormal.from_conditionals(given.requires_grad_(), q, c, validate_args=True)
        for name in ("loc", "log_var", "rho_logit"):
            assert torch.equal(getattr(p, name), getattr(expected, name))
        gradients = torch.autograd.grad(p.entropy() + p.loc.sum(), (given, q, c))
        assert gradients[0][0] == 0 and all(torch.isfinite(x).all() for x in gradients)

    def test_second_derivatives_are_right_where_a_factor_is_zero_too(self):
        phi, q, c = self.parameters(4, ())
        with torch.no_grad():
            phi[2] = 0.0

        def parameters(phi, q, c):
            p = MarkovNormal.from_conditionals(phi, q, c, validate_args=False)
            return p.loc, p.log_var, p.rho_logit

        assert torch.autograd.gradcheck(parameters, (phi, q, c))
        assert torch.autograd.gradgradcheck(parameters, (phi, q, c))

    def test_steps_that_are_all_but_certain_keep_their_digits_and_gradients(self):
        phi = torch.tensor([0.0, 1.0, -0.5, 2.0, 1e-3, 1.0])
        q = torch.tensor([1.0, 1e-6, 1e-20, 1e-34, 1e-37, 1.0])

        def make(phi, q):
            return MarkovNormal.from_conditionals(phi, q, torch.zeros_like(q))

        found, expected = in_both(make, phi, q)
        # Sums of d terms, each of them rounded to 2⁻²⁴ a few times.
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)

    def test_an_exploding_chain_is_right(self):
        d = 60
        p = MarkovNormal.from_conditionals(torch.tensor([3.0]), torch.ones(1), torch.zeros(d))
        # s_j = (9ʲ − 1)/8; sinh a_j = 3 √s_{j−1}
        s = (9.0 ** torch.arange(1, d + 1).double() - 1) / 8
        within = s < 1e38
        torch.testing.assert_close(p.log_var[within].double(), s[within].log(), rtol=1e-6, atol=0)
        expected = torch.asinh(3 * s[:-1].sqrt())
        found = p.rho_logit[1:].double()
        torch.testing.assert_close(found[within[1:]], expected[within[1:]], rtol=1e-6, atol=0)


class TestRandomWalk:
    @pytest.mark.parametrize("d", [1, 2, 6])
    @pytest.mark.parametrize("wide", [False, True], ids=["one mean", "a mean each"])
    def test_its_covariance_is_that_of_the_earlier_step(self, d, wide):
        loc = normal(2, d if wide else 1, seed=0).requires_grad_()
        scale = normal(2, 1, seed=1).exp().requires_grad_()
        steps = torch.arange(1, d + 1, dtype=torch.float64)
        covariance = scale[..., None].square() * torch.minimum(steps[:, None], steps)
        q = MarkovNormal.random_walk(loc, scale, d)
        assert_is(q, loc.expand(2, d), covariance, [loc, scale])

    @pytest.mark.parametrize("d", [1, 2, 6])
    def test_it_may_begin_wider_or_narrower_than_a_step(self, d):
        loc, log_scale, log_initial = (normal(2, 1, seed=seed) for seed in range(3))
        inputs = [x.requires_grad_() for x in (loc, log_scale.exp(), log_initial.exp())]
        loc, scale, initial = inputs
        steps = torch.arange(d, dtype=torch.float64)
        covariance = scale[..., None].square() * torch.minimum(steps[:, None], steps)
        covariance = covariance + initial[..., None].square()
        q = MarkovNormal.random_walk(loc, scale, d, initial)
        assert_is(q, loc.expand(2, d), covariance, inputs)

    def test_it_is_the_one_of_the_conditionals(self):
        one = torch.ones(1, dtype=torch.float64)
        q = torch.tensor([9.0, 0.25, 0.25, 0.25], dtype=torch.float64)
        c = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        expected = MarkovNormal.from_conditionals(one, q, c)
        walk = MarkovNormal.random_walk(2 * one, 0.5 * one, 4, initial_scale=3 * one)
        assert_same(walk.loc, expected.loc)
        assert_same(walk.log_var, expected.log_var)
        assert_same(walk.rho_logit, expected.rho_logit)

    def test_it_is_the_walk_that_the_published_sampler_draws_from(self):
        loc, log_s, d = normal(2, 5, seed=0), normal(2, 1, seed=1), 5
        published = RandomWalkNormal(loc, log_s, torch.zeros(2, 1).double())
        walk = MarkovNormal.random_walk(loc, torch.exp(0.5 * log_s), d)
        z = normal(3, 2, d, seed=2)
        assert_same(walk.log_prob(z), published.log_prob(z))
        assert_same(walk.variance, published.variance)

    def test_a_long_one_keeps_its_digits_in_float32(self):
        d = 100_000
        walk = MarkovNormal.random_walk(torch.zeros(1), torch.tensor([1e-3]), d)
        j = torch.arange(1, d + 1).double()
        expected = 2 * math.log(1e-3) + j.log()
        # One rounding of 1e-3 and a few of numbers up to 14.
        torch.testing.assert_close(walk.log_var.double(), expected, rtol=0, atol=4e-6)
        rho_logit = torch.atanh(((j - 1) / j).sqrt()[1:])
        torch.testing.assert_close(walk.rho_logit[1:].double(), rho_logit, rtol=1e-6, atol=0)

    def test_second_derivatives_are_right(self):
        inputs = [normal(1, seed=0), normal(1, seed=1).exp(), normal(1, seed=2).exp()]
        inputs = [x.requires_grad_() for x in inputs]

        def parameters(loc, scale, initial):
            q = MarkovNormal.random_walk(loc, scale, 4, initial, validate_args=False)
            return q.loc, q.log_var, q.rho_logit

        assert torch.autograd.gradcheck(parameters, inputs)
        assert torch.autograd.gradgradcheck(parameters, inputs)


def uneven(d: int, batch: tuple[int, ...] = ()) -> Tensor:
    """Times that increase by steps of very different length."""
    return (1.5 * normal(*batch, d, seed=3)).exp().cumsum(-1) - 2


class TestOrnsteinUhlenbeck:
    @pytest.mark.parametrize(("d", "batch"), [(1, ()), (2, (3,)), (8, (2,))])
    @pytest.mark.parametrize("wide", [False, True], ids=["one scale", "a scale each"])
    def test_it_is_the_gaussian_process_of_the_exponential_kernel(self, d, batch, wide):
        width = d if wide else 1
        loc, log_scale, log_tau = (normal(*batch, w, seed=w) for w in (width, width, 1))
        inputs = [
            x.requires_grad_() for x in (uneven(d, batch), loc, log_scale.exp(), log_tau.exp())
        ]
        times, loc, scale, tau = inputs
        q = MarkovNormal.ornstein_uhlenbeck(times, loc, scale, tau)
        lag = (times[..., :, None] - times[..., None, :]).abs()
        each = scale.expand(*batch, d)
        kernel = each[..., :, None] * torch.exp(-lag / tau[..., None]) * each[..., None, :]
        assert_is(q, loc.expand(*batch, d), kernel, inputs)

    def test_at_even_times_it_is_the_gaussian_of_one_rho(self):
        one, times = torch.ones(1).double(), 0.25 * torch.arange(6).double()
        q = MarkovNormal.ornstein_uhlenbeck(times, 0 * one, 2 * one, tau=0.5 * one)
        expected = AR1Normal(torch.zeros(6).double(), 2 * one, torch.exp(-0.5 * one))
        assert_same(q.covariance_matrix, expected.covariance_matrix)

    def test_times_between_leave_the_others_as_they_were(self):
        times, one = uneven(9), torch.ones(1).double()
        fine = MarkovNormal.ornstein_uhlenbeck(times, one, one, tau=one)
        coarse = MarkovNormal.ornstein_uhlenbeck(times[::3], one, one, tau=one)
        assert_same(fine.covariance_matrix[::3, ::3], coarse.covariance_matrix)

    def test_from_all_but_no_correlation_to_all_but_one_it_keeps_its_digits_and_gradients(self):
        y = torch.tensor([0.0, 1e-12, 1e-6, 1e-3, 0.5, 1.0, 5.0, 9.0, 20.0, 80.0, 100.0, 1e4])

        def logits(times, tau):
            one = torch.ones(1, dtype=tau.dtype)
            # One interval a row: from 0, so that float32 has it exactly.
            return MarkovNormal.ornstein_uhlenbeck(times, 0 * one, one, tau)

        times = torch.stack([torch.zeros(11), y[1:]], -1)
        found, expected = in_both(lambda t, tau: logits(t, tau), times, torch.ones(11, 1))
        torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-38)
        for x, wanted in zip(found[2:], expected[2:], strict=True):
            torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-37)
        # sinh a = e^{−y}/√(1 − e^{−2y}), of which neither term cancels.
        exact = times[:, 1].double()
        sinh = torch.exp(-exact) / torch.sqrt(-torch.expm1(-2 * exact))
        torch.testing.assert_close(torch.sinh(found[1][:, 0]), sinh, rtol=1e-5, atol=1e-38)

    def test_times_may_be_integers_or_finer_than_the_parameters(self):
        one = torch.ones(1)
        days = torch.tensor([1_700_000_000, 1_700_000_001, 1_700_000_003])
        found = MarkovNormal.ornstein_uhlenbeck(days, 0 * one, one, tau=2 * one)
        expected = torch.exp(torch.tensor([-0.5, -1.0]))
        torch.testing.assert_close(found.rho[1:], expected)
        fine = MarkovNormal.ornstein_uhlenbeck(days.double(), 0 * one, one, tau=2 * one)
        assert (
            torch.equal(fine.rho_logit, found.rho_logit) and fine.rho_logit.dtype is torch.float32
        )

    def test_batches_broadcast(self):
        one = torch.ones(1)
        q = MarkovNormal.ornstein_uhlenbeck(
            torch.arange(4.0), torch.zeros(3, 1, 1), one, torch.ones(2, 1)
        )
        assert q.batch_shape == (3, 2) and q.event_shape == (4,)

    def test_second_derivatives_are_right(self):
        inputs = [uneven(4), normal(1, seed=0), normal(1, seed=1).exp(), normal(1, seed=2).exp()]
        inputs = [x.requires_grad_() for x in inputs]

        def parameters(*inputs):
            q = MarkovNormal.ornstein_uhlenbeck(*inputs, validate_args=False)
            return q.loc, q.log_var, q.rho_logit

        assert torch.autograd.gradcheck(parameters, inputs)
        assert torch.autograd.gradgradcheck(parameters, inputs)


ONE = torch.ones(1)
CONSTRUCTORS = {
    "from_conditionals": {"phi": torch.ones(3), "q": torch.ones(3), "c": torch.zeros(3)},
    "random_walk": {"loc": torch.zeros(1), "scale": ONE, "d": 3, "initial_scale": ONE},
    "ornstein_uhlenbeck": {
        "times": torch.arange(3.0),
        "loc": torch.zeros(1),
        "scale": ONE,
        "tau": ONE,
    },
}
every_constructor = pytest.mark.parametrize("name", CONSTRUCTORS)


@every_constructor
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parameters_are_of_the_type_that_was_given(name, dtype):
    given = {k: x.to(dtype) if isinstance(x, Tensor) else x for k, x in CONSTRUCTORS[name].items()}
    q = getattr(MarkovNormal, name)(**given)
    assert type(q) is MarkovNormal and q.event_shape == (3,)
    assert {x.dtype for x in (q.loc, q.log_var, q.rho_logit)} == {dtype}
    assert q.rsample().dtype is dtype
    exact = getattr(MarkovNormal, name)(**CONSTRUCTORS[name])
    # Rounded once to storage.
    tolerance = torch.finfo(dtype).eps + 1e-6
    torch.testing.assert_close(q.rho_logit.float(), exact.rho_logit, rtol=tolerance, atol=0)


@every_constructor
def test_the_gaussian_of_one_rho_is_none_of_these(name):
    with pytest.raises(ValueError, match=r"rho_logit is of shape \(3,\); .* shape \(…,1\) for"):
        getattr(AR1Normal, name)(**CONSTRUCTORS[name])


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("from_conditionals", {"q": torch.tensor([1.0, 0.0, 1.0])}, "q has an entry of 0.0; it"),
        ("from_conditionals", {"q": torch.tensor([1.0, math.nan, 1.0])}, "q has an entry of nan"),
        ("random_walk", {"scale": -ONE}, "scale has an entry of -1.0; it must be positive"),
        ("random_walk", {"initial_scale": 0 * ONE}, "initial_scale has an entry of 0.0; it must"),
        (
            "ornstein_uhlenbeck",
            {"scale": 0 * ONE},
            "scale has an entry of 0.0; it must be positive",
        ),
        ("ornstein_uhlenbeck", {"tau": -ONE}, "tau has an entry of -1.0; it must be positive"),
        (
            "ornstein_uhlenbeck",
            {"times": torch.tensor([0.0, 1.0, 1.0])},
            "times has an interval of 0.0; times must increase",
        ),
        (
            "ornstein_uhlenbeck",
            {"times": torch.tensor([0.0, 2.0, 1.5])},
            "times has an interval of -0.5; times must increase",
        ),
        (
            "ornstein_uhlenbeck",
            {"times": torch.tensor([0.0, math.nan, 1.0])},
            "times has an interval of nan; times must increase",
        ),
    ],
)
def test_values_that_do_not_fit_are_named_where_asked_for(name, wrong, says):
    given = CONSTRUCTORS[name] | wrong
    make = getattr(MarkovNormal, name)
    with pytest.raises(ValueError, match=says):
        make(**given, validate_args=True)
    make(**given, validate_args=False)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        (
            "from_conditionals",
            {"phi": torch.ones(2)},
            r"phi is of shape \(2,\), q is of shape \(3,\), .*: they must broadcast",
        ),
        (
            "from_conditionals",
            {name: torch.tensor(1.0) for name in ("phi", "q", "c")},
            r"phi is of shape \(\), .*; they must be of shape \(…,d\)",
        ),
        ("random_walk", {"d": 0}, "d is 0; a positive integer is wanted"),
        ("random_walk", {"d": 2.5}, "d is 2.5; a positive integer is wanted"),
        (
            "random_walk",
            {"loc": torch.zeros(2)},
            r"loc is of shape \(2,\); it must be of shape \(…,1\) or \(…,3\)",
        ),
        (
            "random_walk",
            {"scale": torch.ones(3)},
            r"scale is of shape \(3,\); it must be of shape \(…,1\)",
        ),
        (
            "random_walk",
            {"initial_scale": torch.tensor(1.0)},
            r"initial_scale is of shape \(\); it must be of shape \(…,1\)",
        ),
        ("ornstein_uhlenbeck", {"times": torch.tensor(1.0)}, "times is a scalar; it must be of"),
        (
            "ornstein_uhlenbeck",
            {"scale": torch.ones(2)},
            r"scale is of shape \(2,\); it must be of shape \(…,1\) or \(…,3\)",
        ),
        (
            "ornstein_uhlenbeck",
            {"tau": torch.ones(3)},
            r"tau is of shape \(3,\); it must be of shape \(…,1\)",
        ),
        (
            "random_walk",
            {"scale": torch.ones(2, 1), "initial_scale": torch.ones(4, 1)},
            r"not broadcast: loc \(1,\), scale \(2, 1\), initial_scale \(4, 1\)",
        ),
        (
            "ornstein_uhlenbeck",
            {"times": torch.arange(6.0).view(2, 3), "tau": torch.ones(4, 1)},
            r"not broadcast: times \(2, 3\), loc \(1,\), scale \(1,\), tau \(4, 1\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, wrong, says):
    with pytest.raises(ValueError, match=says):
        getattr(MarkovNormal, name)(**CONSTRUCTORS[name] | wrong)


@every_constructor
def test_it_compiles_in_one_graph_and_goes_under_vmap(name):
    fixed = {k: x for k, x in CONSTRUCTORS[name].items() if not isinstance(x, Tensor)}
    given = {k: x for k, x in CONSTRUCTORS[name].items() if isinstance(x, Tensor)}

    def parameters(given):
        q = getattr(MarkovNormal, name)(**given, **fixed, validate_args=False)
        return q.loc, q.log_var, q.rho_logit

    expected = parameters(given)
    compiled = torch.compile(parameters, backend="aot_eager", fullgraph=True)
    rows = torch.vmap(parameters)({k: x.expand(2, *x.shape) for k, x in given.items()})
    for x, found, mapped in zip(expected, compiled(given), rows, strict=True):
        torch.testing.assert_close(found, x)
        torch.testing.assert_close(mapped, x.expand(2, *x.shape))
