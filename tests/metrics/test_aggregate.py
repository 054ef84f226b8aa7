"""Metrics of the aggregate posterior, against Gaussians in closed form and quadrature; FID."""

import json
import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import rhovae_kernels as rk
from rhovae_kernels.metrics import aggregate, traversals
from rhovae_kernels.metrics.fid import fid


class Straight(rk.nets.Encoder):
    """Features that are the data themselves."""

    def __init__(self, d: int) -> None:
        super().__init__((d,), (d,))
        self.layers = nn.Identity()

    def mirror(self, latent: int, channels_out: int | None = None) -> nn.Module:
        return nn.Identity()


def gaussian_vae(d: int, scale: float, prior: rk.priors.Prior | None = None) -> rk.VAE:
    """q(z|x) = N(x, scale² I), in float64."""
    vae = rk.VAE(
        Straight(d),
        rk.posteriors.Diagonal(d),
        prior or rk.priors.StandardNormal(d),
        rk.decoders.Gaussian(),
    ).double()
    with torch.no_grad():
        vae.posterior.head.weight.copy_(torch.eye(2 * d, d))
        vae.posterior.head.bias[:d] = 0
        vae.posterior.head.bias[d:] = 2 * math.log(scale)
    return vae


def at(*means: list[float]) -> Tensor:
    return torch.tensor(means, dtype=torch.float64)


def shifted(shift: float, log_scale: float) -> rk.priors.RealNVP:
    """The prior N(shift, e^{2 log_scale}) in one dimension, as a flow of one layer."""
    prior = rk.priors.RealNVP(1, transforms=1, hidden_features=(4,))
    with torch.no_grad():
        # z0 = z e^{−log_scale} − shift e^{−log_scale}
        bias = prior.flow.transforms[0].net[-1].bias
        bias[0] = math.atanh(-log_scale)
        bias[1] = -shift * math.exp(-log_scale)
    return prior


def kl_normal(m: float, s: float, n: float, t: float) -> float:
    """KL(N(m, s²) ‖ N(n, t²))."""
    return math.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5


def below(x: float) -> float:
    """The standard normal's mass below x."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


class TestTwoGaussians:
    """q(z) = N(m, s²), one datum, against p(z) = N(0, 1), or against a decoupled N(n, t²)."""

    @pytest.mark.parametrize(
        ("prior", "n", "t"),
        [(None, 0.0, 1.0), (shifted(0.3, 0.25), 0.3, math.exp(0.25))],
        ids=["N(0, I)", "decoupled"],
    )
    def test_skl_is_the_sum_of_both_divergences(self, prior, n, t):
        m, s = 0.7, 0.6
        torch.manual_seed(0)
        found = aggregate.skl(gaussian_vae(1, s, prior), at([m]), samples=100_000)
        exact = kl_normal(m, s, n, t) + kl_normal(n, t, m, s)
        assert abs(found["mean"] - exact) < 4 * found["standard_error"] < 0.1
        assert found["kl_q_p"] == pytest.approx(kl_normal(m, s, n, t), abs=0.02)
        assert found["mean"] == pytest.approx(found["kl_q_p"] + found["kl_p_q"])

    def test_leakage_is_the_integral_over_where_the_ratio_exceeds_the_threshold(self):
        """Equal widths: log q − log p = m z − m²/2 for N(m, 1) and N(0, 1), so above τ is beyond
        z* = τ/m + m/2. Mass: Φ(m − z*). Score: ∫ q² there, = Φ((m − z*)√2)/(2√π)."""
        m, samples = 1.5, 100_000
        thresholds = [-1.0, 0.0, 1.0, 2.5]
        torch.manual_seed(0)
        found = aggregate.leakage(gaussian_vae(1, 1.0), at([m]), thresholds, samples)
        assert found["thresholds"] == thresholds
        for threshold, score, mass in zip(
            *(found[k] for k in ("thresholds", "score", "mass")), strict=True
        ):
            edge = threshold / m + m / 2
            expected = below(m - edge)
            # Four standard errors of a frequency, and of a mean of values between 0 and 0.4.
            error = math.sqrt(expected * (1 - expected) / samples)
            assert abs(mass - expected) < 4 * error
            exact = below((m - edge) * math.sqrt(2)) / (2 * math.sqrt(math.pi))
            assert abs(score - exact) < 4 * 0.4 / math.sqrt(samples)

    def test_both_densities_of_the_leakage_are_in_the_representation_space(self):
        """A decoupled prior that equals q leaks nothing, whatever its flow's Jacobian.

        Its constants were rounded to float32: the densities differ by some 1e-7.
        """
        vae = gaussian_vae(1, math.exp(-0.5), shifted(2.0, -0.5))
        found = aggregate.leakage(vae, at([2.0]), [-1e-5, 1e-5], 1000)
        assert found["mass"] == [1.0, 0.0]
        assert aggregate.skl(vae, at([2.0]))["mean"] == pytest.approx(0, abs=1e-5)


class TestMixture:
    MEANS = at([-1.0, -1.2], [0.8, 1.0], [1.5, 0.9], [0.0, 0.1])

    @staticmethod
    def grid() -> tuple[Tensor, float]:
        axis = torch.linspace(-7, 7, 401, dtype=torch.float64)
        return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2

    def test_the_density_is_the_mean_of_the_posteriors(self):
        vae = gaussian_vae(2, 0.5)
        z, _ = self.grid()
        each = Independent(Normal(self.MEANS, torch.tensor(0.5, dtype=torch.float64)), 1)
        expected = each.log_prob(z[:, None]).exp().mean(1).log()
        q = aggregate.AggregatePosterior(vae, self.MEANS)
        torch.testing.assert_close(q.log_prob(z), expected)

    def test_the_chunk_does_not_change_a_density(self, monkeypatch):
        q = aggregate.AggregatePosterior(gaussian_vae(2, 0.5), self.MEANS)
        z, _ = q.sample(50)
        whole = q.log_prob(z), q.log_prob_of_marginals(z)
        monkeypatch.setattr(aggregate, "CHUNK_NUMBERS", 3 * 8)
        torch.testing.assert_close((q.log_prob(z), q.log_prob_of_marginals(z)), whole)

    @pytest.mark.parametrize("n", [3, 4, 10])
    def test_samples_come_from_each_datum_alike(self, n):
        vae = gaussian_vae(2, 1e-6)
        z, log_conditional = aggregate.AggregatePosterior(vae, self.MEANS).sample(n)
        nearest = torch.cdist(z, self.MEANS).argmin(1).bincount(minlength=4)
        assert nearest.max() - nearest.min() <= 1 and nearest.sum() == n
        assert log_conditional.shape == (n,)

    def test_information_and_total_correlation_are_those_of_quadrature(self):
        vae, scale = gaussian_vae(2, 0.5), torch.tensor(0.5, dtype=torch.float64)
        z, cell = self.grid()
        components = Normal(self.MEANS, scale).log_prob(z[:, None])
        density = components.sum(-1).exp().mean(1)
        product = components.exp().mean(1).prod(-1)
        entropy = -(density * density.log()).sum() * cell
        information = (entropy - Independent(Normal(self.MEANS, scale), 1).entropy()[0]).item()
        correlation = (density * (density / product).log()).sum().item() * cell
        torch.manual_seed(0)
        for measure, exact in ((aggregate.mi, information), (aggregate.tc, correlation)):
            found = measure(vae, self.MEANS, samples=100_000)
            assert abs(found["mean"] - exact) < 4 * found["standard_error"] < 0.05

    def test_pockets_and_leaks_lie_where_the_other_density_is_least(self):
        """Codes at ±3: the prior's middle is a pocket, the codes' far sides are leaks."""
        x = at([-3.0, 0.0], [3.0, 0.0])
        vae = gaussian_vae(2, 0.5)
        torch.manual_seed(0)
        low = aggregate.low_posterior(vae, x, 100)
        high = aggregate.high_posterior(vae, x, 100)
        assert low[:, 0].abs().median() < 1 and low.norm(dim=1).max() < 4.5
        assert (high.norm(dim=1) > 3.5).all()
        q = aggregate.AggregatePosterior(vae, x)
        assert (q.log_prob(low).diff() >= 0).all()
        assert (vae.prior.log_prob(high).diff() >= 0).all()

    def test_more_samples_than_there_are_to_choose_from_are_refused(self):
        with pytest.raises(ValueError, match="n is 6; it must be at most 5"):
            aggregate.low_posterior(gaussian_vae(2, 0.5), self.MEANS, 6, of=5)


@pytest.mark.parametrize(
    ("thresholds", "shown"),
    [([], "empty"), ([1.0, 0.5], "1, 0.5"), ([0.0, 0.0], "0, 0"), ([0.0, math.inf], "0, inf")],
)
def test_thresholds_out_of_order_are_refused_before_anything_is_measured(thresholds, shown):
    vae = gaussian_vae(2, 0.5).float()
    with pytest.raises(ValueError, match=f"thresholds is {shown}; it must hold finite numbers th"):
        rk.evaluate(vae, "two-moons", ["elbo", "leakage"], thresholds=thresholds)


def test_evaluate_holds_them_ready_for_json_and_for_readers():
    vae = gaussian_vae(2, 0.5).float()
    result = rk.evaluate(
        vae, "two-moons", ["skl", "leakage", "mi", "tc"], limit=40, thresholds=[0.5, 2]
    )
    assert json.loads(result.json()) == result
    assert result["leakage"]["thresholds"] == [0.5, 2.0]
    assert 0 < result["mi"]["mean"] <= math.log(40)
    shown = dict(result.lines())
    assert {"skl", "mi", "tc", "leakage", "  above 0.5", "  above 2"} <= shown.keys()


class TestTraversal:
    DATA = rk.data.load("two-moons", split="test").images

    def test_between_data_the_path_is_straight_in_the_generation_space(self):
        torch.manual_seed(0)
        prior = rk.priors.RealNVP(2, 2, (8,))
        for p in prior.parameters():
            p.data.add_(0.3 * torch.randn_like(p))
        vae = gaussian_vae(2, 0.5, prior).float()
        z = traversals.traverse(vae, self.DATA, "samples", 3, 5, seed=1)
        assert z.shape == (3, 5, 2)
        straight = vae.prior.to_generation(z)
        torch.testing.assert_close(
            straight.diff(dim=1), (straight[:, -1:] - straight[:, :1]).expand(-1, 4, -1) / 4,
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip
        assert (z.diff(dim=1).diff(dim=1).abs() > 1e-3).any()

    def test_one_factor_at_a_time_moves_on_its_own(self):
        vae = gaussian_vae(2, 0.5).float()
        z = traversals.traverse(vae, self.DATA, "factors", 1, 7, seed=1)
        assert z.shape == (2, 7, 2)
        for k in range(2):
            assert (z[k, :, k].diff() > 0).all()
            assert (z[k, :, 1 - k].diff() == 0).all()
        torch.testing.assert_close(z[0, 3], z[1, 3])

    def test_unknown_modes_are_refused(self):
        vae = gaussian_vae(2, 0.5).float()
        with pytest.raises(ValueError, match="mode is 'up'; it must be one of samples, factors"):
            traversals.traverse(vae, self.DATA, "up", 1, 3, 0)
        with pytest.raises(ValueError, match="mode is 'up'; it must be one of prior, low-post"):
            traversals.chosen_codes(vae, self.DATA, "up", 1, 0)


class TestFID:
    def test_weights_that_are_missing_are_asked_for_before_anything_is_measured(self, tmp_path):
        vae = rk.recipes.recipe("vae").build((1, 8, 8), latent=2)
        with pytest.raises(ValueError, match=r"fid takes fid_weights .*a file of torch-fidelity's"):
            rk.evaluate(vae, "digits", ["elbo", "fid"])
        with pytest.raises(FileNotFoundError, match="nowhere: no such file; fid_weights must hold"):
            rk.evaluate(vae, "digits", ["fid-low-posterior"], fid_weights=tmp_path / "nowhere")

    def test_points_have_none(self, tmp_path):
        (tmp_path / "weights").touch()
        with pytest.raises(ValueError, match=r"fid is of images .*the data are \(2,\)"):
            fid(gaussian_vae(2, 0.5), at([0.0, 0.0]), tmp_path / "weights")

    def test_a_library_that_is_not_installed_is_named_with_the_command(self, tmp_path, monkeypatch):
        (tmp_path / "weights").touch()
        monkeypatch.setitem(sys.modules, "torchmetrics", None)
        monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
        vae = rk.recipes.recipe("vae").build((1, 8, 8), latent=2)
        with pytest.raises(RuntimeError, match=r"missing; install it with: pip .*\[fid\]"):
            fid(vae, torch.zeros(4, 1, 8, 8), tmp_path / "weights")
