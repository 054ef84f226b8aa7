"""KL divergences of Gauss–Markov Gaussians, summed and a step at a time, against dense ones."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from rhovae_kernels import AR1Normal, MarkovNormal
from rhovae_kernels.distributions import (
    DiagonalNormal,
    StandardNormal,
    UniformMixture,
    kl_per_step,
)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def given(d: int, batch: tuple[int, ...], width: int, seed: int) -> list[Tensor]:
    """loc, log_var and rho_logit of this width."""
    widths = d, d, width
    found = [normal(*batch, w, seed=10 * seed + i) for i, w in enumerate(widths)]
    return [x.requires_grad_() for x in found]


def markov(loc: Tensor, log_var: Tensor, a: Tensor) -> MarkovNormal:
    return MarkovNormal(loc, log_var=log_var, rho_logit=a, validate_args=False)


def natural(loc: Tensor, log_var: Tensor, a: Tensor) -> MarkovNormal:
    return MarkovNormal(loc, (0.5 * log_var).exp(), a.tanh(), validate_args=False)


def ar1(loc: Tensor, log_var: Tensor, a: Tensor) -> AR1Normal:
    return AR1Normal(loc, log_var=log_var[..., :1], rho_logit=a, validate_args=False)


def independent(loc: Tensor, log_var: Tensor, a: Tensor) -> Independent:
    base = Normal(loc, (0.5 * log_var).exp(), validate_args=False)
    return Independent(base, 1, validate_args=False)


# Each of loc, log_var and rho_logit, which is (…,1) of those in WITH_ONE.
MAKES = {
    "Markov": markov,
    "Markov, one ρ": markov,
    "Markov, natural": natural,
    "AR1": ar1,
    "Diagonal": lambda loc, log_var, a: DiagonalNormal(loc, log_var, validate_args=False),
    "Independent": independent,
    "Standard": lambda loc, log_var, a: StandardNormal(loc.shape, loc.dtype),
}
WITH_ONE = ["Markov, one ρ", "AR1"]
OTHERS = ["Diagonal", "Independent", "Standard"]
MARKOV = [name for name in MAKES if name not in OTHERS]
PAIRS = [(q, p) for q in MAKES for p in MAKES if q in MARKOV or p in MARKOV]


def made(name: str, d: int, batch: tuple[int, ...], seed: int) -> tuple[Distribution, list[Tensor]]:
    parameters = given(d, batch, 1 if name in WITH_ONE else d, seed)
    return MAKES[name](*parameters), parameters


def dense(p: Distribution) -> MultivariateNormal:
    """The same Gaussian from its covariance: R[i,j] is the product of the ρ from i+1 to j."""
    if not isinstance(p, MarkovNormal):
        return MultivariateNormal(p.mean, torch.diag_embed(p.variance))
    d = p.event_shape[0]
    rho = p.rho.expand(p.loc.shape)
    rows = [
        torch.stack([rho[..., min(i, j) + 1 : max(i, j) + 1].prod(-1) for j in range(d)], -1)
        for i in range(d)
    ]
    scale = p.stddev
    covariance = scale[..., :, None] * torch.stack(rows, -2) * scale[..., None, :]
    return MultivariateNormal(p.loc, covariance)


def assert_same(found: Tensor, expected: Tensor) -> None:
    # float64 through two dense factorizations: a dozen digits, fewer by their condition numbers.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-9)


def assert_same_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    ours, theirs = (
        torch.autograd.grad(x.sum(), inputs, materialize_grads=True, retain_graph=True)
        for x in (found, expected)
    )
    for x, y in zip(ours, theirs, strict=True):
        assert_same(x, y)


every_pair = pytest.mark.parametrize(("of_q", "of_p"), PAIRS)
each_shape = pytest.mark.parametrize(("d", "batch"), [(1, (2,)), (2, ()), (6, (2,))])


@every_pair
@each_shape
class TestBothWays:
    def test_the_kl_is_the_dense_one_and_so_are_its_gradients(self, of_q, of_p, d, batch):
        q, of_first = made(of_q, d, batch, 1)
        p, of_second = made(of_p, d, batch, 2)
        found, expected = kl_divergence(q, p), kl_divergence(dense(q), dense(p))
        assert_same(found, expected)
        assert_same_gradients(found, expected, of_first + of_second)

    def test_a_step_at_a_time_it_is_what_each_step_adds(self, of_q, of_p, d, batch):
        q, of_first = made(of_q, d, batch, 1)
        p, of_second = made(of_p, d, batch, 2)
        # KL of the first j steps, of dense marginals.
        sums = [torch.zeros(batch, dtype=torch.float64)]
        for j in range(1, d + 1):
            first, second = (
                MultivariateNormal(x.loc[..., :j], x.covariance_matrix[..., :j, :j])
                for x in (dense(q), dense(p))
            )
            sums.append(kl_divergence(first, second))
        expected = torch.stack(sums, -1).diff(dim=-1)
        found = kl_per_step(q, p)
        assert_same(found, expected)
        assert_same(found.sum(-1), kl_divergence(q, p))
        assert (found >= 0).all()
        weight = normal(*found.shape, seed=8)
        assert_same_gradients(found * weight, expected * weight, of_first + of_second)


@pytest.mark.parametrize("of_q", MARKOV)
@each_shape
def test_the_kl_with_a_multivariate_normal_is_the_dense_one_both_ways(of_q, d, batch):
    q, parameters = made(of_q, d, batch, 1)
    diagonal = normal(*batch, d, seed=6).exp()
    factor = normal(*batch, d, d, seed=5).tril(-1) + torch.diag_embed(diagonal)
    factor = factor.requires_grad_()
    loc = normal(*batch, d, seed=7).requires_grad_()
    p, inputs = MultivariateNormal(loc, scale_tril=factor), [*parameters, loc, factor]
    for found, expected in (
        (kl_divergence(q, p), kl_divergence(dense(q), p)),
        (kl_divergence(p, q), kl_divergence(p, dense(q))),
    ):
        assert_same(found, expected)
        assert_same_gradients(found, expected, inputs)


@pytest.mark.parametrize("of_p", MAKES)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_padded_sequence_has_the_kl_of_its_own_steps(of_p, length):
    d = 5
    of_first, of_second = given(d, (3,), d, 1), given(d, (3,), 1 if of_p in WITH_ONE else d, 2)
    with torch.no_grad():
        # What is in the padding has no effect on the steps before it.
        for x in (*of_first, *of_second):
            if x.shape[-1] == d:
                x[..., length:] = math.nan
    q, p = markov(*of_first), MAKES[of_p](*of_second)
    short_q = markov(*(x[..., :length] for x in of_first))
    short_p = MAKES[of_p](*(x[..., :length] for x in of_second))
    found = kl_per_step(q, p)[..., :length]
    assert_same(found.sum(-1), kl_divergence(short_q, short_p))
    assert torch.equal(found, kl_per_step(short_q, short_p))


@pytest.mark.parametrize(
    ("of_q", "of_p"),
    [("Markov", "Markov"), ("AR1", "Markov"), ("Markov", "AR1"), ("Independent", "Markov")],
)
def test_second_derivatives_are_right(of_q, of_p):
    _, of_first = made(of_q, 3, (), 1)
    _, of_second = made(of_p, 3, (), 2)

    def kl(*parameters):
        q, p = MAKES[of_q](*parameters[:3]), MAKES[of_p](*parameters[3:])
        return kl_per_step(q, p), kl_divergence(q, p)

    assert torch.autograd.gradcheck(kl, (*of_first, *of_second))
    assert torch.autograd.gradgradcheck(kl, (*of_first, *of_second))


@pytest.mark.parametrize("direction", ["to", "from"])
def test_second_derivatives_with_a_multivariate_normal_are_right(direction):
    parameters = given(3, (), 3, 1)
    factor = (normal(3, 3, seed=5).tril(-1) + torch.eye(3).double()).requires_grad_()

    def kl(factor, *parameters):
        q, p = (
            markov(*parameters),
            MultivariateNormal(parameters[0] + 1, scale_tril=factor),
        )
        return kl_divergence(q, p) if direction == "to" else kl_divergence(p, q)

    # The strict triangle above is no parameter of the Gaussian.
    assert torch.autograd.gradgradcheck(lambda x, *rest: kl(x.tril(), *rest), (factor, *parameters))


@pytest.mark.parametrize("of_p", ["Markov", "Markov, one ρ", "AR1", "Independent"])
def test_the_first_correlation_is_not_read_and_gets_no_gradient(of_p):
    found = []
    for first in (math.nan, 0.25):
        of_first, of_second = given(4, (2,), 4, 1), given(4, (2,), 1 if of_p in WITH_ONE else 4, 2)
        with torch.no_grad():
            of_first[2][..., 0] = first
            if of_second[2].shape[-1] > 1:
                of_second[2][..., 0] = first
        q, p = markov(*of_first), MAKES[of_p](*of_second)
        kl = torch.stack([kl_divergence(q, p), kl_divergence(p, q), kl_per_step(q, p).sum(-1)])
        inputs = [*of_first, *of_second]
        found.append([kl, *torch.autograd.grad(kl.sum(), inputs, materialize_grads=True)])
    assert all(map(torch.equal, *found))
    assert (found[0][3][..., 0] == 0).all()


class TestWhereTanhRoundsToOne:
    """float32, at steps whose ρ is 1 in float32."""

    A = torch.tensor([0.0, -80.0, -20.0, -9.5, -0.1, 0.0, 3.0, 9.5, 20.0, 40.0])

    def of(self, a: Tensor, shift: float = 0.0) -> MarkovNormal:
        loc, log_var = torch.linspace(-1, 1, len(a)), torch.linspace(-2, 1, len(a)) + shift
        return markov(loc.to(a.dtype), log_var.to(a.dtype), a)

    def test_the_kl_to_itself_is_exactly_zero_and_so_is_its_gradient(self):
        a = self.A.clone().requires_grad_()
        kl = kl_per_step(self.of(a), self.of(self.A))
        assert (kl == 0).all()
        assert (torch.autograd.grad(kl.sum(), a)[0] == 0).all()

    def test_between_close_neighbours_it_keeps_its_digits(self):
        # Half the Fisher information times the square of the step: ½ (1 + ρ²) δ² in each logit.
        step = 2.0**-10
        q, p = (
            MarkovNormal(torch.zeros(10), torch.ones(1), rho_logit=self.A + x) for x in (step, 0.0)
        )
        expected = 0.5 * (1 + self.A.tanh().square()) * step**2
        expected[0] = 0
        # The next term of the series is of relative size `step`.
        torch.testing.assert_close(kl_per_step(q, p), expected, rtol=2 * step, atol=0)

    def test_it_is_that_of_float64(self):
        q, p = self.of(self.A, shift=0.1), self.of(0.9 * self.A)
        q64, p64 = self.of(self.A.double(), shift=0.1), self.of((0.9 * self.A).double())
        # Squares of exp of up to 80 in magnitude, rounded to 2⁻²⁴: 160·6e-8 relative.
        expected = kl_per_step(q64, p64)
        within = expected < 1e37
        assert within.sum() >= 8
        found = kl_per_step(q, p).double()
        torch.testing.assert_close(found[within], expected[within], rtol=3e-5, atol=1e-6)

    def test_from_a_dense_gaussian_it_keeps_the_digits_of_the_innovations(self):
        # Samples of q move as p's do, by less than float32 tells 1 − ρ from 0.
        a = torch.tensor([0.0, 9.0, 9.0, 9.0])
        p = MarkovNormal(torch.zeros(4), torch.ones(1), rho_logit=a)
        p64 = MarkovNormal(torch.zeros(4).double(), torch.ones(1).double(), rho_logit=a.double())
        loc = torch.full((4,), 100.0)
        q = MultivariateNormal(loc, scale_tril=torch.eye(4), validate_args=False)
        q64 = MultivariateNormal(loc.double(), scale_tril=torch.eye(4).double())
        expected = kl_divergence(q64, p64)
        torch.testing.assert_close(kl_divergence(q, p).double(), expected, rtol=1e-5, atol=0)


def test_batches_broadcast():
    q, p = made("Markov", 4, (3, 1), 1)[0], made("AR1", 4, (2,), 2)[0]
    assert kl_divergence(q, p).shape == kl_divergence(p, q).shape == (3, 2)
    assert kl_per_step(q, p).shape == kl_per_step(p, q).shape == (3, 2, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_parameters_give_float32(dtype):
    q, p = (markov(*(x.detach().to(dtype) for x in given(4, (2,), 4, seed))) for seed in (1, 2))
    single_q, single_p = (
        markov(x.loc.float(), x.log_var.float(), x.rho_logit.float()) for x in (q, p)
    )
    assert kl_per_step(q, p).dtype is kl_divergence(q, p).dtype is torch.float32
    torch.testing.assert_close(kl_per_step(q, p), kl_per_step(single_q, single_p))


def test_of_no_dimensions_it_is_zero():
    q = MarkovNormal(*(torch.zeros(2, 0) for _ in range(3)), validate_args=False)
    assert kl_per_step(q, q).shape == (2, 0)
    assert torch.equal(kl_divergence(q, q), torch.zeros(2))


def test_under_vmap_and_the_compiler_it_is_the_same():
    parameters = [x.detach() for x in (*given(4, (5,), 4, 1), *given(4, (5,), 4, 2))]

    def kl(*parameters):
        return kl_per_step(markov(*parameters[:3]), markov(*parameters[3:]))

    expected = kl(*parameters)
    assert_same(torch.vmap(kl)(*parameters), expected)
    compiled = torch.compile(kl, backend="aot_eager", fullgraph=True, dynamic=True)
    assert_same(compiled(*parameters), expected)


@pytest.mark.parametrize("other", ["Markov", "AR1", *OTHERS])
def test_other_dimensions_are_refused(other):
    q, p = made("Markov", 3, (), 1)[0], made(other, 4, (), 2)[0]
    names = f"{type(q).__name__} and {type(p).__name__} of d = 3 and d = 4"
    for kl in (kl_divergence, kl_per_step):
        with pytest.raises(ValueError, match=names):
            kl(q, p)
        with pytest.raises(ValueError, match="of d = 4 and d = 3"):
            kl(p, q)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Independent(Normal(torch.zeros(2, 3), torch.ones(2, 3)), 2), r"Independent\(Normal, 2\)"),
        (Independent(Laplace(torch.zeros(3), torch.ones(3)), 1), r"Independent\(Laplace, 1\)"),
        (Normal(torch.zeros(3), torch.ones(3)), "Normal"),
        (UniformMixture(StandardNormal((2, 3))), "UniformMixture"),
    ],
    ids=["two event dimensions", "Laplace", "no event dimension", "mixture"],
)
def test_a_kl_that_is_not_known_says_so(other, named):
    q = MarkovNormal(torch.zeros(3), torch.ones(1), torch.zeros(3))
    for first, second in ((q, other), (other, q)):
        with pytest.raises(NotImplementedError):
            kl_divergence(first, second)
        with pytest.raises(NotImplementedError, match=f"not for {named}"):
            kl_per_step(first, second)
