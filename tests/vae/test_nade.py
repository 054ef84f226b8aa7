"""`NADE` and `OrderlessNADE`: distributions, in their orders, drawn as they say."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import rhovae_kernels as rk
from rhovae_kernels.training.run import load_run
from rhovae_kernels.vae import parts
from rhovae_kernels.vae.decoders.orders import check_orders

SHAPE = (1, 3, 3)
ORDERS = ("raster", "reversed", "columns", "spiral", "random-1", (4, 0, 8, 1, 7, 2, 6, 3, 5))
EVERY = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)), dtype=torch.float64)
EVERY = EVERY.view(-1, *SHAPE)


def made(
    orders, latent: int = 0, shape: tuple[int, ...] = SHAPE, kind=rk.decoders.NADE, **options
) -> rk.decoders.Ordered:
    """A decoder in float64 whose conditionals are far from coins."""
    torch.manual_seed(3)
    decoder = kind(hidden=(20, 15), orders=orders, **options)
    decoder.build(None, latent, shape)
    decoder.double().eval()
    with torch.no_grad():
        for p in decoder.parameters():
            p += 0.5 * torch.randn_like(p)
    return decoder


KINDS = pytest.mark.parametrize("kind", [rk.decoders.NADE, rk.decoders.OrderlessNADE])


@pytest.mark.parametrize("orders", [*([order] for order in ORDERS), ORDERS], ids=str)
@KINDS
def test_the_probabilities_of_every_image_add_to_one(kind, orders):
    for latent in (0, 2):
        decoder = made(orders, latent, kind=kind)
        z = torch.randn(latent, dtype=torch.float64) if latent else None
        with torch.no_grad():
            log_p = decoder.log_prob(EVERY, z)
        assert abs(log_p.exp().sum().item() - 1) < 1e-12
        assert log_p.std() > 0.5


@KINDS
def test_the_ensemble_is_the_mean_probability_and_no_worse_than_the_mean_order(kind):
    decoder = made(ORDERS, kind=kind)
    with torch.no_grad():
        of_orders = decoder.log_prob_of_orders(EVERY)
        ensemble = decoder.log_prob(EVERY)
    assert of_orders.shape == (len(ORDERS), len(EVERY))
    for k, _ in enumerate(ORDERS):
        assert abs(of_orders[k].exp().sum().item() - 1) < 1e-12
    torch.testing.assert_close(ensemble, of_orders.exp().mean(0).log())
    assert (ensemble >= of_orders.mean(0)).all()


def test_while_it_is_trained_each_order_counts_alone():
    decoder = made(ORDERS)
    with torch.no_grad():
        of_orders = decoder.log_prob_of_orders(EVERY)
        torch.testing.assert_close(decoder.train().log_prob(EVERY), of_orders.mean(0))


@pytest.mark.parametrize("order", ORDERS, ids=str)
@KINDS
def test_the_jacobian_of_the_logits_is_strictly_triangular_in_the_order(kind, order):
    decoder = made([order], 2, kind=kind)
    z = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    x = torch.rand(1, *SHAPE, dtype=torch.float64)

    def logits(x: Tensor, z: Tensor) -> Tensor:
        return decoder.conditionals(x, z).logits.flatten()

    of_x, of_z = torch.autograd.functional.jacobian(logits, (x, z))
    permutation = rk.decoders.order_of(order, SHAPE)
    jacobian = of_x.view(9, 9)[permutation][:, permutation]
    assert (jacobian.triu() == 0).all()
    assert (jacobian.tril(-1).abs().sum(1)[1:] > 0).all()
    assert (of_z != 0).view(9, 2).any(1).all()


def drawn_one_by_one(decoder: rk.decoders.Ordered, u: Tensor, z: Tensor | None) -> Tensor:
    """x_i = [u_i < p(x_i = 1 | those before it)], one run of the network for each dimension."""
    x = torch.zeros_like(u)
    for i in rk.decoders.order_of(decoder.orders[0], decoder.input_shape).tolist():
        images = x.unflatten(1, decoder.input_shape)
        x[:, i] = (u[:, i] < decoder.conditionals(images, z).probs.flatten(1)[:, i]).double()
    return x.unflatten(1, decoder.input_shape)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@KINDS
def test_draws_equal_those_of_a_loop_from_the_same_uniforms(kind, order):
    decoder = made([order], 2, kind=kind)
    z = torch.randn(50, 2, dtype=torch.float64)
    x = decoder.draw(z, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    if kind is rk.decoders.OrderlessNADE:
        torch.randint(1, (50,), generator=generator)
    u = torch.rand(50, 9, dtype=torch.float64, generator=generator)
    assert torch.equal(x, drawn_one_by_one(decoder, u, z))
    assert 0.1 < x.mean() < 0.9


@KINDS
def test_draws_of_several_orders_have_the_probabilities_of_their_ensemble(kind):
    decoder = made(["reversed", "random-1"], shape=(3,), kind=kind)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    n = 20_000
    p = decoder()
    x = p.sample((n,), generator=torch.Generator().manual_seed(0))
    frequency = (x[:, None] == every).all(2).double().mean(0)
    expected = p.log_prob(every).exp().detach()
    assert ((frequency - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()


class TestGaussian:
    def test_its_density_is_that_of_the_flow_it_draws_by(self):
        decoder = made([(2, 0, 3, 1)], 2, (4,), likelihood="gaussian")
        z = torch.randn(6, 2, dtype=torch.float64)
        x = decoder.draw(z, torch.Generator().manual_seed(1))
        noise = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        p = decoder.conditionals(x, z)
        torch.testing.assert_close(p.mean + p.stddev * noise, x)
        normal = -0.5 * (noise.square() + math.log(2 * math.pi)) - p.stddev.log()
        torch.testing.assert_close(decoder.log_prob(x, z), normal.sum(1))

    @pytest.mark.parametrize("orders", [["raster"], ["reversed", "random-2"]], ids=str)
    def test_its_density_integrates_to_one(self, orders):
        # Of a bounded activation: means and scales are bounded too.
        decoder = made(orders, shape=(2,), likelihood="gaussian", activation="tanh")
        axis = torch.linspace(-40, 40, 501, dtype=torch.float64)
        with torch.no_grad():
            p = decoder.log_prob(torch.cartesian_prod(axis, axis)).exp()
        torch.testing.assert_close(p.sum().item() * 0.16**2, 1.0, rtol=1e-3, atol=0)

    def test_tabular_data_are_learned(self):
        torch.manual_seed(0)
        truth = torch.distributions.MultivariateNormal(
            torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        )
        x = truth.sample((500,))
        decoder = rk.decoders.NADE((8,), ["raster", "reversed"], "gaussian")
        decoder.build(None, 0, (2,))
        optimizer = torch.optim.Adam(decoder.parameters(), 2e-2)
        for _ in range(100):
            optimizer.zero_grad()
            (-decoder.log_prob(x).mean()).backward()
            optimizer.step()
        short = (truth.log_prob(x) - decoder.eval().log_prob(x)).mean().item()
        assert -0.05 < short < 0.02


class TestOrderless:
    def test_what_it_is_trained_on_has_the_mean_of_every_order(self):
        permutations = list(itertools.permutations(range(4)))
        decoder = made(permutations, 2, (4,), kind=rk.decoders.OrderlessNADE)
        x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
        z = torch.randn(1, 2, dtype=torch.float64)
        with torch.no_grad():
            exact = decoder.log_prob_of_orders(x, z).mean().item()
            torch.manual_seed(0)
            n = 20_000
            estimates = decoder.train().log_prob(x.expand(n, -1), z)
        assert estimates.std() > 0.1
        assert abs(estimates.mean().item() - exact) < 4 * estimates.std().item() / math.sqrt(n)

    def test_the_last_dimension_alone_is_predicted_from_all_others(self):
        decoder = made(["raster"], shape=(4,), kind=rk.decoders.OrderlessNADE)
        x = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
        seen = torch.tensor([[True, True, True, False]])
        last = decoder.logits(x, seen, None)[:, 3]
        flipped = torch.cat([x[:, :3], 1 - x[:, 3:]], 1)
        assert torch.equal(decoder.logits(flipped, seen, None)[:, 3], last)
        torch.testing.assert_close(decoder.conditionals(x, None).logits[:, 3], last)


@pytest.mark.parametrize(
    "decoder",
    [
        lambda: rk.decoders.NADE((64,)),
        lambda: rk.decoders.NADE((64,), ["spiral", "random-3"], "gaussian", "elu"),
        lambda: rk.decoders.OrderlessNADE((32,), ["raster", "columns"]),
    ],
    ids=["NADE", "two orders", "orderless"],
)
def test_a_vae_with_it_is_trained_measured_drawn_from_and_read_again(decoder, tmp_path):
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(16,)),
        rk.posteriors.Diagonal(3),
        rk.priors.StandardNormal(3),
        decoder(),
    )
    x = (torch.rand(60, 1, 8, 8) < 0.3).float()
    rk.fit(vae, x, x[:20], epochs=1, out=tmp_path / "run", quiet=True, batch_size=20)
    result = rk.evaluate(tmp_path / "run", x[:20], ["elbo", "nll@4"])
    assert 0 < result["nll@4"]["mean"] < 200
    vae.eval().save_pretrained(tmp_path / "saved")
    again = rk.VAE.from_pretrained(tmp_path / "saved")
    z = torch.randn(5, 3)
    assert torch.equal(again.decoder.log_prob(x[:5], z), vae.decoder.log_prob(x[:5], z))
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    draws = [v.sample(4, generator=g) for v, g in zip((vae, again), generators, strict=True)]
    assert draws[0].shape == (4, 1, 8, 8) and torch.equal(*draws)


@pytest.mark.parametrize(
    "order,shape,expected",
    [
        ("raster", (5,), [0, 1, 2, 3, 4]),
        ("reversed", (5,), [4, 3, 2, 1, 0]),
        # Channels of a pixel in turn.
        ("raster", (2, 2, 2), [0, 4, 1, 5, 2, 6, 3, 7]),
        ("reversed", (2, 2, 2), [7, 3, 6, 2, 5, 1, 4, 0]),
        ("columns", (2, 3), [0, 3, 1, 4, 2, 5]),
        ("columns", (2, 1, 2), [0, 2, 1, 3]),
        ("spiral", (1, 3, 4), [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]),
        ("spiral", (2, 1, 2), [0, 2, 1, 3]),
        ((2, 0, 1), (3,), [2, 0, 1]),
    ],
    ids=str,
)
def test_an_order_is(order, shape, expected):
    assert rk.decoders.order_of(order, shape).tolist() == expected


def test_random_orders_are_those_of_their_seeds():
    orders = [rk.decoders.order_of(f"random-{seed}", SHAPE) for seed in (0, 1, 2)]
    for one, other in itertools.combinations(orders, 2):
        assert not torch.equal(one, other)
    assert torch.equal(rk.decoders.order_of("random", SHAPE), orders[0])
    assert all(order.sort()[0].tolist() == list(range(9)) for order in orders)


def test_it_is_described_and_built_again():
    for decoder in (
        rk.decoders.NADE((9, 12), ["raster", (2, 0, 1)], "gaussian", "tanh"),
        rk.decoders.OrderlessNADE((7,), "spiral"),
    ):
        described = parts.describe(decoder)
        again = parts.build(described)
        assert type(again) is type(decoder) and again.arguments() == decoder.arguments()
        assert parts.describe(again) == described


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: check_orders([]), "orders is empty"),
        (lambda: check_orders(["diagonal"]), "orders holds 'diagonal'; known are raster, reversed"),
        (lambda: check_orders([3]), "orders holds 3; a name or a permutation is wanted"),
        (lambda: rk.decoders.NADE((0,)), "hidden is 0"),
        (lambda: rk.decoders.NADE(likelihood="poisson"), "likelihood is 'poisson'; it must be one"),
        (lambda: made([(0, 1, 1)], shape=(3,)), "order holds 3 numbers and lacks 2; it must be a"),
        (lambda: made([(0, 1)], shape=(3,)), "order holds 2 numbers and lacks 2; it must be a"),
        (lambda: made(["spiral"], shape=(3,)), r"order is 'spiral', of images; data of shape \(3,"),
        (lambda: made(["raster"], shape=(16,)), r"hidden\[1\] is 15; 16 at least is wanted"),
        (
            lambda: made(["raster", "reversed"]).conditionals(EVERY, None),
            "there are 2 orders, each with conditionals of its own",
        ),
        (lambda: rk.nn.MADE(3, (6,), order=[0, 2]), "order holds 2 numbers and lacks 1"),
        (lambda: rk.nn.MADE(3, (6,), heads=2).draw(torch.rand(2, 3)), "takes one head; this MADE"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [rk.decoders.NADE, rk.decoders.OrderlessNADE])
def test_a_density_without_a_code_is_trained_and_measured(kind, tmp_path):
    torch.manual_seed(0)
    x = (torch.rand(60, 5).cumsum(1) % 1 < 0.5).float()
    model = rk.Density(kind((16,), ["raster", "random-1"]), (5,))
    rk.fit(model, x, x[:20], epochs=1, out=tmp_path / "run", quiet=True, batch_size=20)
    measured = rk.evaluate(tmp_path / "run", x, ["nll"])["nll"]
    best, _ = load_run(tmp_path / "run")
    exact = -best.log_prob(x)
    assert measured["mean"] == pytest.approx(exact.mean().item(), rel=1e-5)
