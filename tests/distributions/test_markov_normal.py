"""MarkovNormal with a correlation for each step, against dense Gaussians and by the book."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from rhovae_kernels import AR1Normal, MarkovNormal

SHAPES = [(1, ()), (2, (3,)), (3, ()), (7, (2, 3))]
each_shape = pytest.mark.parametrize(("d", "batch"), SHAPES)
each_scale = pytest.mark.parametrize("scaled", [False, True], ids=["one scale", "a scale each"])
LOGITS = (-80.0, -20.0, -9.5, -0.1, 0.0, 3.0, 9.5, 20.0, 40.0)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def parameters(d: int, batch: tuple[int, ...] = (), scaled: bool = True) -> list[Tensor]:
    """loc, log_var and rho_logit, of which gradients are wanted; a third of the ρ are negative."""
    widths = d, d if scaled else 1, d
    found = [normal(*batch, width, seed=seed) for seed, width in enumerate(widths)]
    return [x.requires_grad_() for x in found]


def of(loc: Tensor, log_var: Tensor, rho_logit: Tensor, **given) -> MarkovNormal:
    return MarkovNormal(loc, log_var=log_var, rho_logit=rho_logit, **given)


def covariance(log_var: Tensor, rho_logit: Tensor) -> Tensor:
    """D R D entry by entry: R[i,j] is the product of the ρ from i+1 to j."""
    rho, d = torch.tanh(rho_logit), rho_logit.shape[-1]
    rows = [
        torch.stack([rho[..., min(i, j) + 1 : max(i, j) + 1].prod(-1) for j in range(d)], -1)
        for i in range(d)
    ]
    scale = torch.exp(0.5 * log_var).expand(rho.shape)
    return scale[..., :, None] * torch.stack(rows, -2) * scale[..., None, :]


def dense(loc: Tensor, log_var: Tensor, rho_logit: Tensor) -> MultivariateNormal:
    return MultivariateNormal(loc, covariance(log_var, rho_logit))


def assert_same(found: Tensor, expected: Tensor) -> None:
    # float64 through a dense factorization: a dozen digits, fewer by its condition number.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def assert_same_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    ours, theirs = (
        torch.autograd.grad(x.sum(), inputs, materialize_grads=True) for x in (found, expected)
    )
    for x, y in zip(ours, theirs, strict=True):
        assert_same(x, y)


@each_shape
@each_scale
class TestAgainstTheDenseGaussian:
    def test_moments_and_matrices_agree(self, d, batch, scaled):
        given = parameters(d, batch, scaled)
        q, p = of(*given), dense(*given)
        assert_same(q.covariance_matrix, p.covariance_matrix)
        assert_same(q.scale_tril, p.scale_tril)
        assert_same(q.precision_matrix, torch.linalg.inv(p.covariance_matrix))
        assert_same(q.log_det_covariance, torch.logdet(p.covariance_matrix))
        assert_same(q.variance, p.variance)
        assert_same(q.stddev, p.stddev)
        assert torch.equal(q.mean, q.loc) and torch.equal(q.mode, q.loc)

    @pytest.mark.parametrize("name", ["covariance_matrix", "scale_tril", "precision_matrix"])
    def test_the_matrices_have_the_dense_gradients(self, name, d, batch, scaled):
        given, weight = parameters(d, batch, scaled), normal(*batch, d, d, seed=9)
        found = weight * getattr(of(*given), name)
        assert_same_gradients(found, weight * getattr(dense(*given), name), given)

    def test_the_determinant_has_the_dense_gradient(self, d, batch, scaled):
        given = parameters(d, batch, scaled)
        expected = torch.logdet(covariance(*given[1:]))
        assert_same_gradients(of(*given).log_det_covariance, expected, given)

    def test_log_prob_agrees_and_so_do_its_gradients(self, d, batch, scaled):
        given, z = parameters(d, batch, scaled), normal(4, *batch, d, seed=7).requires_grad_()
        found, expected = of(*given).log_prob(z), dense(*given).log_prob(z)
        assert_same(found, expected)
        assert_same_gradients(found, expected, [z, *given])

    def test_entropy_agrees_and_so_do_its_gradients(self, d, batch, scaled):
        given = parameters(d, batch, scaled)
        found, expected = of(*given).entropy(), dense(*given).entropy()
        assert_same(found, expected)
        assert_same_gradients(found, expected, given)

    def test_the_sample_is_the_cholesky_factor_times_the_noise(self, d, batch, scaled):
        given = parameters(d, batch, scaled)
        z = of(*given).rsample((5,), torch.Generator().manual_seed(3))
        eps = normal(5, *batch, d, seed=3)
        expected = given[0] + (dense(*given).scale_tril @ eps[..., None])[..., 0]
        assert_same(z, expected)
        weight = normal(*z.shape, seed=4)
        assert_same_gradients(z * weight, expected * weight, given)

    def test_the_fused_kl_is_the_kl_to_a_standard_normal(self, d, batch, scaled):
        q = of(*parameters(d, batch, scaled))
        one = torch.ones(d, dtype=torch.float64)
        expected = kl_divergence(q, Independent(Normal(0 * one, one), 1))
        z, kl = q.rsample_and_kl((4,))
        assert z.shape == (4, *batch, d)
        assert_same(kl, expected.expand(4, *batch))

    def test_log_prob_per_step_is_the_density_of_each_given_those_before(self, d, batch, scaled):
        given, z = parameters(d, batch, scaled), normal(4, *batch, d, seed=7).requires_grad_()
        q, p = of(*given), dense(*given)
        of_first = [torch.zeros(4, *batch, dtype=torch.float64)]
        for j in range(1, d + 1):
            marginal = MultivariateNormal(p.loc[..., :j], p.covariance_matrix[..., :j, :j])
            of_first.append(marginal.log_prob(z[..., :j]))
        expected = torch.stack(of_first, -1).diff(dim=-1)
        found = q.log_prob_per_step(z)
        assert_same(found, expected)
        assert_same(found.sum(-1), q.log_prob(z))
        weight = normal(*found.shape, seed=8)
        assert_same_gradients(found * weight, expected * weight, [z, *given])

    def test_the_conditionals_are_the_dense_ones_given_all_before(self, d, batch, scaled):
        given = parameters(d, batch, scaled)
        phi, q, c = of(*given).conditionals
        loc, cov = given[0], covariance(*given[1:])
        for j in range(d):
            before = cov[..., :j, :j]
            weights = torch.linalg.solve(before, cov[..., :j, j, None])[..., 0]
            assert_same(weights[..., :-1], torch.zeros_like(weights[..., :-1]))
            expected = weights[..., -1] if j else torch.zeros_like(loc[..., 0])
            assert_same(phi[..., j], expected)
            assert_same(q[..., j], cov[..., j, j] - (weights * cov[..., :j, j]).sum(-1))
            assert_same(c[..., j], loc[..., j] - (weights * loc[..., :j]).sum(-1))

    def test_the_marginals_are_the_dense_ones(self, d, batch, scaled):
        given = parameters(d, batch, scaled)
        marginals, p = of(*given).marginals, dense(*given)
        assert marginals.batch_shape == (*batch, d)
        assert_same(marginals.mean, p.loc)
        assert_same(marginals.variance, p.covariance_matrix.diagonal(dim1=-2, dim2=-1))


QUANTITIES = {
    "rsample": lambda q, z: q.rsample(generator=torch.Generator().manual_seed(0)),
    "rsample_and_kl": lambda q, z: q.rsample_and_kl(generator=torch.Generator().manual_seed(0))[1],
    "log_prob": lambda q, z: q.log_prob(z),
    "log_prob_per_step": lambda q, z: q.log_prob_per_step(z),
    "entropy": lambda q, z: q.entropy(),
    "variance": lambda q, z: q.variance,
    "covariance_matrix": lambda q, z: q.covariance_matrix,
    "scale_tril": lambda q, z: q.scale_tril,
    "precision_matrix": lambda q, z: q.precision_matrix,
    "log_det_covariance": lambda q, z: q.log_det_covariance,
    "conditionals": lambda q, z: torch.stack(q.conditionals),
    "marginals": lambda q, z: q.marginals.log_prob(z),
}
every_quantity = pytest.mark.parametrize("name", QUANTITIES)


@every_quantity
@pytest.mark.parametrize("first", [math.nan, math.inf, -1.0, 1.0])
@pytest.mark.parametrize("form", ["rho", "rho_logit"])
def test_the_first_correlation_is_not_read_and_gets_no_gradient(name, first, form):
    loc, log_var, rho = parameters(4, (2,))
    z = normal(2, 4, seed=7)

    def quantity(first: float) -> tuple[Tensor, list[Tensor]]:
        given = torch.tanh(rho.detach()) if form == "rho" else rho.detach().clone()
        given[..., 0] = first
        inputs = [loc, log_var, given.requires_grad_()]
        q = MarkovNormal(loc, log_var=log_var, **{form: given}, validate_args=True)
        found = QUANTITIES[name](q, z)
        return found, list(torch.autograd.grad(found.sum(), inputs, materialize_grads=True))

    (found, ours), (expected, theirs) = quantity(first), quantity(0.25)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, ours, theirs))
    assert (ours[2][..., 0] == 0).all()


@every_quantity
@pytest.mark.parametrize("d", [1, 4])
def test_one_rho_each_that_is_the_same_is_the_gaussian_of_one_rho(name, d):
    loc, log_var, _ = parameters(d, (2,))
    rho_logit, z = normal(2, 1, seed=5), normal(2, d, seed=7)
    expected = QUANTITIES[name](AR1Normal(loc, log_var=log_var, rho_logit=rho_logit), z)
    for given in (rho_logit, rho_logit.expand(2, d)):
        assert_same(QUANTITIES[name](of(loc, log_var, given), z), expected)


@every_quantity
def test_second_derivatives_are_right(name):
    given, z = parameters(3, (2,)), normal(2, 3, seed=7).requires_grad_()
    # At no correlation at all too.
    given[2].data[0, 1] = 0.0

    def quantity(z, *given):
        return QUANTITIES[name](of(*given, validate_args=False), z)

    assert torch.autograd.gradcheck(quantity, (z, *given))
    assert torch.autograd.gradgradcheck(quantity, (z, *given))


@every_quantity
@pytest.mark.parametrize("form", ["natural", "logits"])
def test_expanded_and_sliced_parameters_give_what_copies_do(name, form):
    loc, log_var, rho_logit = (x.detach() for x in parameters(5, (6,)))
    # Every second row and step of one memory: no stride is 1.
    loc, log_var, rho_logit = (
        x.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
        for x in (loc, log_var, rho_logit)
    )
    z = normal(6, 5, seed=7)
    if form == "logits":
        q = of(loc, log_var, rho_logit)
        expected = of(loc.clone(), log_var.clone(), rho_logit.clone())
    else:
        q = MarkovNormal(loc, log_var.exp(), rho_logit.tanh())
        expected = MarkovNormal(loc.clone(), log_var.exp().clone(), rho_logit.tanh().clone())
    assert torch.equal(QUANTITIES[name](q, z), QUANTITIES[name](expected, z))
    if not name.startswith("rsample"):
        wide = QUANTITIES[name](q.expand((3, 6)), z)
        assert_same(wide[-1] if name != "conditionals" else wide[:, -1], QUANTITIES[name](q, z))


def test_expand_keeps_what_was_given_and_shares_its_memory():
    loc, log_var, rho_logit = parameters(3, (2,))
    wide = of(loc, log_var, rho_logit).expand((4, 2))
    assert type(wide) is MarkovNormal
    assert wide.batch_shape == (4, 2) and wide.event_shape == (3,)
    assert wide.rho_logit.shape == (4, 2, 3)
    assert wide.rho_logit.data_ptr() == rho_logit.data_ptr() and "rho" not in wide.__dict__


def test_batch_shapes_of_parameters_and_values_broadcast():
    q = MarkovNormal(torch.zeros(3, 1, 4), torch.ones(2, 1), torch.zeros(4))
    assert q.batch_shape == (3, 2) and q.event_shape == (4,)
    z = torch.zeros(6, 1, 1, 4)
    with torch.no_grad():
        assert q.log_prob_per_step(z).shape == (6, 3, 2, 4)
        assert q.log_prob_per_step(torch.zeros(4)).shape == (3, 2, 4)
        assert all(x.shape == (3, 2, 4) for x in q.conditionals)
        assert q.covariance_matrix.shape == q.scale_tril.shape == (3, 2, 4, 4)
        assert q.log_prob(z).shape == (6, 3, 2) and q.rsample((5,)).shape == (5, 3, 2, 4)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_the_same_distribution(copied):
    q = of(*(x.detach() for x in parameters(3, (2,))))
    q.covariance_matrix  # noqa: B018 - fills what is made when asked for
    other = copied(q)
    z = normal(2, 3, seed=7)
    assert torch.equal(other.log_prob(z), q.log_prob(z))
    assert other.batch_shape == q.batch_shape and other.loc is not q.loc


def test_samples_have_the_stated_moments():
    loc, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])
    q = MarkovNormal(loc, scale, torch.tensor([0.0, -0.7, 0.9]))
    z = q.sample((40_000,), torch.Generator().manual_seed(0))
    # Five standard errors of 40,000 samples: 5·2/200 of a mean, about 5·√2·4/200 of a variance.
    torch.testing.assert_close(z.mean(0), q.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(z.T.cov(), q.covariance_matrix, rtol=0, atol=0.15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_parameters_give_float32_densities(dtype):
    loc, log_var, rho_logit = (x.detach().to(dtype) for x in parameters(4, (2,)))
    half, single = of(loc, log_var, rho_logit), of(*(x.float() for x in (loc, log_var, rho_logit)))
    z, kl = half.rsample_and_kl()
    assert z.dtype is dtype and kl.dtype is torch.float32
    for name in ("log_prob", "log_prob_per_step", "entropy", "log_det_covariance"):
        found = QUANTITIES[name](half, z)
        assert found.dtype is torch.float32
        # The same arithmetic on the same numbers.
        torch.testing.assert_close(found, QUANTITIES[name](single, z.float()))
    for name in ("scale_tril", "precision_matrix", "conditionals", "covariance_matrix"):
        found = QUANTITIES[name](half, z)
        assert found.dtype is dtype
        # Rounded once to storage, or twice; a covariance is made of rounded ρ and scales.
        expected = QUANTITIES[name](single, z.float())
        steps = 8 if name == "covariance_matrix" else 2
        tolerance = steps * torch.finfo(dtype).eps
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@every_quantity
def test_of_no_dimensions_it_is_a_constant(name):
    q = of(*(torch.zeros(2, 0) for _ in range(3)), validate_args=True)
    found = QUANTITIES[name](q, torch.zeros(2, 0))
    assert torch.isfinite(found).all() and (found == 0).all()


class TestWhereTanhRoundsToOne:
    """float32 against the same formulas in float64, at steps whose ρ is 1 in float32."""

    A = torch.tensor([0.0, *LOGITS])
    Z = torch.linspace(-2, 2, len(A))

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        loc, log_var = torch.linspace(-1, 1, len(self.A)), torch.linspace(-2, 1, len(self.A))
        found = QUANTITIES[name](of(loc, log_var, self.A), self.Z)
        exact = of(loc.double(), log_var.double(), self.A.double())
        return found.double(), QUANTITIES[name](exact, self.Z.double())

    @pytest.mark.parametrize("name", ["entropy", "log_det_covariance"])
    def test_the_determinant_is_exact_in_the_logit(self, name):
        found, expected = self.both(name)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("name", ["log_prob", "log_prob_per_step"])
    def test_densities_keep_their_digits(self, name):
        found, expected = self.both(name)
        # Squares of cosh a times a difference of two numbers, each of them rounded to 2⁻²⁴.
        where = expected.abs() < 1e30
        torch.testing.assert_close(found[where], expected[where], rtol=2e-5, atol=1e-5)

    def test_the_conditionals_keep_their_digits(self):
        loc, log_var = torch.zeros(len(self.A)), torch.linspace(-2, 1, len(self.A))
        found = of(loc, log_var, self.A).conditionals
        expected = of(loc.double(), log_var.double(), self.A.double()).conditionals
        # exp of up to 80 in magnitude, rounded to 2⁻²⁴: 80·6e-8 relative; below 1e-38 subnormal.
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-38)

    def test_the_factor_keeps_its_digits(self):
        found, expected = self.both("scale_tril")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-38)

    def test_the_precision_keeps_its_digits(self):
        a = torch.tensor([0.0, 12.0, -0.3, -15.0, 0.0])
        found = of(torch.zeros(5), torch.zeros(1), a).precision_matrix.double()
        expected = of(torch.zeros(5).double(), torch.zeros(1).double(), a.double()).precision_matrix
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


class TestArguments:
    """What is refused, and how it says so."""

    loc, one, rho = torch.zeros(2, 3), torch.ones(1), torch.full((3,), 0.5)

    @pytest.mark.parametrize(
        ("keywords", "says"),
        [
            ({"rho": rho}, "exactly one of scale and log_var is wanted; neither came"),
            ({"scale": one}, "exactly one of rho and rho_logit is wanted; neither came"),
            (
                {"scale": one, "rho": rho, "rho_logit": rho},
                "exactly one of rho and rho_logit is wanted; both came",
            ),
            (
                {"scale": one, "rho": torch.zeros(2, 2)},
                r"rho is of shape \(2, 2\); it must be of shape \(…,1\) or \(…,3\)",
            ),
            (
                {"scale": one, "rho_logit": torch.zeros(())},
                r"rho_logit is of shape \(\); it must be of shape \(…,1\) or \(…,3\)",
            ),
            (
                {"scale": one, "rho": torch.zeros(4, 3)},
                r"leading dimensions do not broadcast: loc \(2, 3\), scale \(1,\), rho \(4, 3\)",
            ),
        ],
    )
    def test_shapes_and_choices_that_do_not_fit_are_named(self, keywords, says):
        with pytest.raises(ValueError, match=says):
            MarkovNormal(self.loc, **keywords)

    @pytest.mark.parametrize(
        ("name", "keywords"),
        [
            ("rho", {"scale": one, "rho": torch.tensor([0.0, 0.5, 1.0])}),
            ("rho", {"scale": one, "rho": torch.tensor([-1.5])}),
            ("scale", {"scale": torch.zeros(1), "rho": rho}),
            ("log_var", {"log_var": torch.tensor([math.nan]), "rho": rho}),
            ("rho_logit", {"scale": one, "rho_logit": torch.tensor([0.0, math.nan, 0.0])}),
        ],
    )
    def test_values_outside_their_constraint_are_refused_where_asked_for(self, name, keywords):
        with pytest.raises(ValueError, match=f"parameter {name} "):
            MarkovNormal(self.loc, **keywords, validate_args=True)
        MarkovNormal(self.loc, **keywords, validate_args=False)

    @pytest.mark.parametrize("kind", [AR1Normal, MarkovNormal])
    @pytest.mark.parametrize(
        ("name", "log_var", "rho_logit"), [("scale", -1.0, 0.5), ("rho", 1.0, 1.5)]
    )
    def test_a_log_variance_and_a_logit_by_position_are_told_their_names(
        self, kind, name, log_var, rho_logit
    ):
        by_position = torch.full((1,), log_var), torch.full((1,), rho_logit)
        says = rf"parameter {name} (?s:.*)log_var=\.\.\., .* rho_logit=\.\.\., "
        with pytest.raises(ValueError, match=says):
            kind(self.loc, *by_position, validate_args=True)

    @pytest.mark.parametrize("method", ["log_prob", "log_prob_per_step"])
    def test_densities_refuse_values_outside_the_support(self, method):
        q = MarkovNormal(self.loc, self.one, self.rho, validate_args=True)
        with pytest.raises(ValueError, match="support"):
            getattr(q, method)(torch.full((2, 3), math.nan))
        with pytest.raises(ValueError, match="event_shape"):
            getattr(q, method)(torch.zeros(2, 4))

    def test_the_gaussian_of_one_rho_refuses_one_for_each_step(self):
        with pytest.raises(
            ValueError, match=r"rho is of shape \(3,\); it must be of shape \(…,1\)"
        ):
            AR1Normal(self.loc, self.one, self.rho)


class TestUnderTransforms:
    def test_vmap_over_every_parameter_is_the_batch(self):
        given, z = [x.detach() for x in parameters(4, (5,))], normal(5, 4, seed=7)
        # A generator does not go through vmap.
        names = [name for name in QUANTITIES if not name.startswith("rsample")]

        def quantities(z, *given):
            q = of(*given, validate_args=False)
            return [QUANTITIES[name](q, z) for name in names]

        found = torch.vmap(quantities)(z, *given)
        rows = [quantities(*row) for row in zip(z, *given, strict=True)]
        for x, *each in zip(found, *rows, strict=True):
            assert_same(x, torch.stack(each))

    def test_hessians_are_those_of_the_dense_density(self):
        given, z = [x.detach() for x in parameters(3)], normal(3, seed=7)
        arguments = (0, 1, 2)
        found = torch.func.hessian(
            lambda *given: of(*given, validate_args=False).log_prob_per_step(z).sum(), arguments
        )(*given)
        fused = torch.func.hessian(
            lambda *given: of(*given, validate_args=False).log_prob(z), arguments
        )(*given)
        expected = torch.func.hessian(
            lambda loc, *rest: MultivariateNormal(
                loc, covariance(*rest), validate_args=False
            ).log_prob(z),
            arguments,
        )(*given)
        for row, fused_row, wanted_row in zip(found, fused, expected, strict=True):
            for x, y, wanted in zip(row, fused_row, wanted_row, strict=True):
                assert_same(x, wanted)
                assert_same(y, wanted)

    def test_a_training_step_compiles_in_one_graph(self):
        given = [x.detach().float() for x in parameters(4, (5,))]
        z = normal(5, 4, seed=7).float()

        def step(z, *given):
            q = of(*given, validate_args=False)
            return q.log_prob(z), q.log_prob_per_step(z), q.entropy(), q.rsample().shape

        found = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)(z, *given)
        for x, y in zip(found[:3], step(z, *given)[:3], strict=True):
            torch.testing.assert_close(x, y)
        assert found[3] == (5, 4)
