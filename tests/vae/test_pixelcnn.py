"""PixelCNN: the order of its pixels, its likelihoods, its draws, and VAEs with it."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import rhovae_kernels as rk
from rhovae_kernels.nn.gated_pixel_cnn import GatedPixelCNN, spread
from rhovae_kernels.vae import parts
from rhovae_kernels.vae.decoders.pixel_likelihoods import CategoricalLevels

LATENT = 2
FORMS = {
    "bernoulli": {"likelihood": "bernoulli"},
    "categorical": {"likelihood": "categorical", "levels": 3},
    "logistic mixture": {"likelihood": "logistic-mixture", "levels": 5, "mixtures": 2},
}
every_form = pytest.mark.parametrize("form", FORMS)
every_latent = pytest.mark.parametrize("latent", [0, LATENT], ids=["no z", "z"])
every_colour = pytest.mark.parametrize("colours", [1, 3], ids=["1 colour", "3 colours"])


def built(shape, latent=0, layers=3, channels=12, hidden=13, **given) -> rk.decoders.PixelCNN:
    """A decoder in float64 whose every parameter was moved at random."""
    torch.manual_seed(0)
    decoder = rk.decoders.PixelCNN(channels=channels, layers=layers, hidden=hidden, **given)
    decoder.build(None, latent, shape)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        # No unit of the head that is 0 for every image.
        decoder.net.head.bias.add_(1)
    return decoder.double()


def random(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def codes(n: int, latent: int) -> Tensor | None:
    return 2 * random(n, latent, seed=2) - 1 if latent else None


def values(decoder: rk.decoders.PixelCNN) -> Tensor:
    """All that a colour of a pixel can be."""
    levels = 2 if decoder.likelihood == "bernoulli" else decoder.levels
    return torch.arange(levels, dtype=torch.float64) / (levels - 1)


def dependence(decoder: rk.decoders.PixelCNN) -> Tensor:
    """Whether outputs of place i change with place j: (i,j) in raster order, colours in order
    within a pixel.

    At several images, as what lies behind a ReLU that is 0 at one of them does not change there.
    """
    net, n = decoder.net, 6
    z, weights = codes(n, decoder.latent), random(1, sum(net.outputs), 1, 1)

    def outputs(x: Tensor) -> Tensor:
        """A sum of each colour's outputs, over the images too: (places,)."""
        of_colours = (weights * net(x, z)).sum(0).split(net.outputs)
        return torch.stack([out.sum(0) for out in of_colours], -1).flatten()

    found = torch.autograd.functional.jacobian(outputs, 4 * random(n, *decoder.input_shape) - 2)
    return (found.movedim(2, -1).flatten(2) != 0).any(1)


@torch.no_grad()
def one_by_one(decoder, z: Tensor | None, uniform: Tensor) -> Tensor:
    """The draw that these uniform numbers stand for, by a pass of the network for each place."""
    colours, height, width = decoder.input_shape
    x = torch.zeros_like(uniform)
    for i, j, c in itertools.product(range(height), range(width), range(colours)):
        out = decoder._outputs(x, z)[..., i, j].split(decoder.net.outputs, -1)[c]
        parameters = decoder._form.parameters(out, x[:, :c, i, j])
        x[:, c, i, j] = decoder._form.quantile(uniform[:, c, i, j], *parameters)
    return x


class TestOrder:
    @every_form
    @every_colour
    @every_latent
    def test_outputs_are_functions_of_all_places_before_and_of_no_other(
        self, form, colours, latent
    ):
        decoder = built((colours, 3, 4), latent, **FORMS[form])
        places = 3 * 4 * colours
        assert torch.equal(dependence(decoder), torch.ones(places, places).tril(-1).bool())

    @every_colour
    @pytest.mark.parametrize("side,layers", [(3, 1), (3, 3), (5, 3), (7, 3)])
    def test_they_are_functions_of_all_places_within_the_receptive_field(
        self, colours, side, layers
    ):
        decoder = built((colours, 5, 6), layers=layers, receptive_field=side)
        assert decoder.receptive_field == side
        i, j, _ = torch.meshgrid(*map(torch.arange, (5, 6, colours)), indexing="ij")
        i, j = ((place.flatten()[:, None] - place.flatten()).abs() <= side // 2 for place in (i, j))
        before = torch.ones(i.shape).tril(-1).bool()
        assert torch.equal(dependence(decoder), i & j & before)

    @pytest.mark.parametrize("side", [3, 7, 15, None], ids=str)
    def test_seven_layers_reach_as_far_as_is_asked(self, side):
        torch.manual_seed(0)
        decoder = rk.decoders.PixelCNN(channels=8, hidden=8, receptive_field=side)
        assert decoder.receptive_field == side
        decoder.build(None, 0, (1, 28, 28))
        assert decoder.receptive_field == (side or 2 * 27 + 1)
        out = decoder.net(x := torch.rand(8, 1, 28, 28, requires_grad=True))
        (of_last,) = torch.autograd.grad(out[:, 0, 27, 27].sum(), x)
        rows, columns = of_last.sum(0)[0].nonzero().T
        reach = side // 2 if side else 27
        assert (rows.min(), columns.min()) == (27 - reach, 27 - reach)

    @pytest.mark.parametrize("layers", range(1, 7))
    def test_dilations_leave_out_no_pixel(self, layers):
        for reach in range(1, 2 ** (layers - 1) + 1):
            dilations = spread(reach, layers)
            assert len(dilations) == layers and sum(dilations) == reach
            # The first is sure to be taken; what the others take or leave.
            choices = itertools.product(*((0, d) for d in dilations[1:]))
            assert {1 + sum(taken) for taken in choices} == set(range(1, reach + 1))

    @every_form
    def test_another_z_changes_the_outputs_of_every_place(self, form):
        decoder = built((3, 4, 5), LATENT, **FORMS[form])
        x = random(1, 3, 4, 5).expand(12, -1, -1, -1)
        one, other = (
            decoder.net(x[:1], torch.zeros(1, LATENT).double()),
            decoder.net(x, codes(12, LATENT)),
        )
        # Behind a ReLU that is 0 for one z nothing changes.
        assert (one != other).any(0).all()


class TestLikelihood:
    @every_latent
    def test_the_probabilities_of_all_images_of_nine_bits_sum_to_one(self, latent):
        decoder = built((1, 3, 3), latent)
        images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9))).double()
        z = codes(1, latent)
        total = decoder.log_prob(images.view(-1, 1, 3, 3), z).exp().sum()
        assert abs(total.item() - 1) < 1e-12

    @every_form
    @every_latent
    def test_the_probabilities_of_all_images_of_two_colours_sum_to_one(self, form, latent):
        decoder = built((2, 1, 2), latent, **FORMS[form])
        images = torch.tensor(list(itertools.product(values(decoder).tolist(), repeat=4))).double()
        total = decoder.log_prob(images.view(-1, 2, 1, 2), codes(1, latent)).exp().sum()
        assert abs(total.item() - 1) < 1e-12

    @pytest.mark.parametrize(
        "given",
        [
            {"likelihood": "categorical", "levels": 256},
            {"likelihood": "logistic-mixture", "levels": 256, "mixtures": 3},
        ],
        ids=["categorical", "logistic mixture"],
    )
    @pytest.mark.parametrize("colour", range(3))
    def test_the_probabilities_of_the_256_values_of_a_place_sum_to_one(self, given, colour):
        decoder = built((3, 2, 2), **given)
        x = values(decoder)[torch.randint(256, (1, 3, 2, 2))].repeat(256, 1, 1, 1)
        x[:, colour, 1, 0] = values(decoder)
        log_prob = decoder.conditionals(x, None).log_prob(x)[:, colour, 1, 0]
        assert log_prob.isfinite().all()
        assert abs(log_prob.exp().sum().item() - 1) < 1e-12

    def test_the_location_of_a_mixture_is_linear_in_the_colours_before(self):
        """By hand, in the coordinates of the source, −1 to 1."""
        form = built((3, 2, 2), **FORMS["logistic mixture"])._form
        out, before = 2 * random(form.outputs(2)) - 1, random(2)
        logits, loc, log_scale = form.parameters(out, before)
        m, a, b = out[2:4], out[6:8], out[8:10]
        y = 2 * before - 1
        torch.testing.assert_close(2 * loc - 1, m + a.tanh() * y[0] + b.tanh() * y[1])
        torch.testing.assert_close(log_scale + math.log(2), out[4:6])
        torch.testing.assert_close(logits, out[:2])

    def test_bernoulli_on_grey_values_is_the_cross_entropy(self):
        decoder = built((1, 4, 4))
        x = random(3, 1, 4, 4)
        p = torch.sigmoid(decoder.net(x))
        expected = (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
        torch.testing.assert_close(decoder.log_prob(x), expected)

    @every_form
    def test_leading_dimensions_of_x_and_z_broadcast(self, form):
        decoder = built((2, 2, 3), LATENT, **FORMS[form])
        x = values(decoder)[torch.randint(2, (4, 2, 2, 3))]
        z = codes(5 * 4, LATENT).view(5, 4, LATENT)
        expected = torch.stack([decoder.log_prob(x, row) for row in z])
        torch.testing.assert_close(decoder.log_prob(x, z), expected)

    @every_form
    def test_it_is_compiled_whole(self, form):
        torch._dynamo.reset()
        decoder = built((2, 3, 3), LATENT, layers=2, **FORMS[form])
        x, z = values(decoder)[torch.randint(2, (4, 2, 3, 3))], codes(4, LATENT)
        compiled = torch.compile(decoder.log_prob, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, z), decoder.log_prob(x, z))


class TestCategoricalLevels:
    # Compiling turns validation off by default in PyTorch's distributions.
    P = CategoricalLevels(
        torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]]).double(), validate_args=True
    )

    def test_values_and_logits_broadcast(self):
        x = torch.tensor([0.0, 0.5, 1.0]).double()[:, None]
        torch.testing.assert_close(self.P.log_prob(x), self.P.logits.log_softmax(-1).T)

    def test_samples_come_as_often_as_their_probability_says(self):
        drawn = self.P.sample((20_000,), torch.Generator().manual_seed(0))
        for k, p in enumerate(self.P.logits.softmax(-1).T):
            error = (p * (1 - p) / 20_000).sqrt()
            assert (((drawn == k / 2).double().mean(0) - p).abs() < 5 * error).all()

    def test_expanded_it_is_the_same_of_each_row(self):
        x = torch.tensor([0.5, 1.0]).double()
        many = self.P.expand((4, 2))
        assert many.batch_shape == (4, 2)
        assert torch.equal(many.log_prob(x), self.P.log_prob(x).expand(4, 2))

    def test_values_that_are_none_of_the_levels_are_refused(self):
        with pytest.raises(ValueError, match="within the support"):
            self.P.log_prob(torch.tensor([0.5, 0.7]).double())


@every_form
@torch.no_grad()
def test_a_code_tells_each_place_its_own_where_all_that_places_see_is_alike(form):
    decoder = built((1, 9, 9), LATENT, receptive_field=3, **FORMS[form])
    x, (one, other) = torch.zeros(1, 1, 9, 9).double(), codes(2, LATENT).split(1)
    # Inside, with a row and columns to spare, every place sees zeros alone.
    found = (decoder._outputs(x, one) - decoder._outputs(x, other))[..., 4:, 4:7].flatten(2)
    assert (found.std(-1) > 1e-3).all()
    alike = decoder.net(x, one)[..., 4:, 4:7].flatten(2)
    assert (alike - alike[..., :1]).abs().max() < 1e-9


class TestDraws:
    @every_form
    @every_latent
    def test_images_come_as_often_as_their_probability_says(self, form, latent):
        decoder = built((1, 1, 2), latent, **FORMS[form])
        z, n = codes(1, latent), 20_000
        rows = decoder(z).expand((n,)) if latent else decoder()
        draws = rows.sample(() if latent else (n,), torch.Generator().manual_seed(0))
        images = torch.cartesian_prod(values(decoder), values(decoder)).view(-1, 1, 1, 2)
        found = (draws[:, None] == images).flatten(2).all(2).double()
        assert (found.sum(1) == 1).all()
        p = decoder.log_prob(images, z).exp().detach()
        assert ((found.mean(0) - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()

    @every_form
    @every_colour
    @every_latent
    @pytest.mark.parametrize("side", [3, None], ids=str)
    def test_they_are_those_of_a_pass_for_each_place(self, form, colours, latent, side):
        decoder = built((colours, 3, 5), latent, receptive_field=side, layers=4, **FORMS[form])
        z = codes(9, latent)
        uniform = random(9, colours, 3, 5, seed=5)
        drawn = decoder.sample_rows(9, z, torch.Generator().manual_seed(5))
        assert torch.equal(drawn, one_by_one(decoder, z, uniform))
        assert len(drawn.unique()) > 1

    def test_a_generator_gives_the_same_draws_again(self):
        decoder = built((2, 3, 3), LATENT)
        z = codes(6, LATENT).view(2, 3, LATENT)
        one, same, other = (
            decoder.draw(z, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
        )
        assert one.shape == (2, 3, 2, 3, 3)
        assert torch.equal(one, same) and not torch.equal(one, other)


class TestCompletion:
    @every_form
    @every_latent
    @pytest.mark.parametrize("count", [0, 1, 7, 10, 15, 29, 30], ids=str)
    def test_the_first_places_are_kept_and_the_others_drawn_given_them(self, form, latent, count):
        """Drawn as in the draw that has the same first places, from the same numbers."""
        decoder = built((2, 3, 5), latent, **FORMS[form])
        z = codes(4, latent)
        expected = decoder.sample_rows(4, z, torch.Generator().manual_seed(5))
        known = (torch.arange(30) < count).view(3, 5, 2).permute(2, 0, 1)
        x = expected.masked_fill(~known, torch.nan)
        found = decoder.complete(x, known, z, torch.Generator().manual_seed(5))
        assert torch.equal(found, expected)

    def test_what_is_known_decides_what_is_drawn(self):
        decoder = built((1, 4, 4))
        upper = torch.tensor([True, True, False, False])[:, None].expand(4, 4)
        x = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)]).double()
        found = decoder.complete(
            x[:, None].expand(2, 500, 1, 4, 4), upper, generator=torch.Generator().manual_seed(0)
        )
        assert found.shape == (2, 500, 1, 4, 4)
        assert torch.equal(found[..., :2, :], x[:, None, ..., :2, :].expand(2, 500, 1, 2, 4))
        # The first pixel below: its probability given the upper half, from the network.
        p = torch.sigmoid(decoder.net(x))[:, 0, 2, 0]
        error = (p * (1 - p) / 500).sqrt()
        assert ((found[:, :, 0, 2, 0].mean(1) - p).abs() < 5 * error).all()

    LOWER = torch.tensor([False, True, True])[:, None].expand(3, 4)
    HOLE = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]]).bool()

    @pytest.mark.parametrize(
        "given,says",
        [
            ({"known": LOWER}, r"behind colour 0 of pixel \(0, 0\), which is not known: only the"),
            ({"known": HOLE}, r"behind colour 0 of pixel \(1, 2\), which is not known: only the"),
            (
                {"known": torch.tensor([False, True])[:, None, None].expand(2, 3, 4)},
                r"behind colour 0 of pixel \(0, 0\), which is not known: only the first ones",
            ),
            ({"known": ~LOWER.T}, r"of shape \(4, 3\); it must be torch.bool of shape \(3, 4\) or"),
            ({"known": torch.ones(3, 4)}, r"known is torch.float32 of shape \(3, 4\); it must be"),
            ({"x": torch.zeros(1, 2, 4, 3).double()}, r"x is of shape \(1, 2, 4, 3\); p\(x\|z\)"),
            ({"x": torch.zeros(1, 2, 3, 4)}, "x is of type torch.float32; this decoder computes"),
            ({"x": torch.full((1, 2, 3, 4), 0.4).double()}, r"outside the support, \{k/2\}"),
            ({"z": torch.zeros(2, LATENT).double()}, r"z is of shape \(2, 2\); it must be of"),
            ({"z": None}, r"z is left out; it must be of shape \(…, 2\)"),
        ],
        ids=[
            "the lower half",
            "a hole",
            "the second colour alone",
            "known of other sides",
            "known of another type",
            "x of other sides",
            "x of another type",
            "x of other values",
            "z of other rows",
            "no z",
        ],
    )
    def test_what_it_cannot_be_given_is_refused(self, given, says):
        decoder = built((2, 3, 4), LATENT, **FORMS["categorical"])
        right = {"x": torch.zeros(1, 2, 3, 4), "known": ~self.LOWER, "z": torch.zeros(1, LATENT)}
        right |= {"x": right["x"].double(), "z": right["z"].double()}
        decoder.complete(**right)
        with pytest.raises(ValueError, match=says):
            decoder.complete(**(right | given))


class TestInAVAE:
    @staticmethod
    def vae(**given) -> rk.VAE:
        torch.manual_seed(0)
        return rk.VAE(
            rk.nets.MLP((1, 8, 8), hidden=(8,)),
            rk.posteriors.ScaledAR1(LATENT),
            rk.priors.StandardNormal(LATENT),
            rk.decoders.PixelCNN(channels=4, layers=4, hidden=4, **given),
        )

    @pytest.mark.parametrize(
        "given",
        [{}, {"likelihood": "categorical", "levels": 17}, {"likelihood": "logistic-mixture"}],
        ids=["bernoulli", "categorical", "logistic mixture"],
    )
    def test_it_is_trained_measured_saved_and_loaded(self, given, tmp_path):
        vae = self.vae(**given)
        # The digits have 17 levels.
        x = rk.data.load("digits").images[:64]
        rk.fit(vae, x, x[:16], epochs=1, out=tmp_path / "run", quiet=True, batch_size=16)
        found = rk.evaluate(vae, x[:16], ["elbo", "nll@3"])
        assert found == rk.evaluate(tmp_path / "run", x[:16], ["elbo", "nll@3"])
        vae.eval().save_pretrained(tmp_path / "saved")
        again = rk.VAE.from_pretrained(tmp_path / "saved")
        assert parts.describe(again.decoder) == parts.describe(vae.decoder)
        draws = [
            model.sample(2, generator=torch.Generator().manual_seed(0)) for model in (vae, again)
        ]
        assert torch.equal(*draws)

    def test_values_that_are_no_levels_are_refused(self):
        with pytest.raises(ValueError, match=r"outside the support of PixelCNN, \{k/16\}"):
            self.vae(likelihood="categorical", levels=17)(torch.full((1, 1, 8, 8), 0.4))

    def test_its_description_builds_it_again(self):
        decoder = rk.decoders.PixelCNN(6, 5, 9, 8, "logistic-mixture", 16, 3)
        description = parts.describe(decoder)
        assert description == {
            "part": "decoders.PixelCNN",
            "channels": 6,
            "layers": 5,
            "receptive_field": 9,
            "hidden": 8,
            "likelihood": "logistic-mixture",
            "levels": 16,
            "mixtures": 3,
        }
        assert parts.describe(parts.build(description)) == description
        whole = parts.describe(rk.decoders.PixelCNN())
        assert whole["receptive_field"] is None and parts.describe(parts.build(whole)) == whole


class TestRefusals:
    @pytest.mark.parametrize(
        "given,says",
        [
            ({"channels": 0}, "channels is 0; positive integers are wanted"),
            ({"layers": 1.5}, "layers is 1.5; positive integers are wanted"),
            ({"hidden": -1}, "hidden is -1; positive integers are wanted"),
            ({"mixtures": 0}, "mixtures is 0; positive integers are wanted"),
            ({"levels": 1}, "levels is 1; it must be at least 2"),
            ({"receptive_field": 4}, "receptive_field is 4; it must be odd, and 3 at least, or"),
            ({"receptive_field": 1}, "receptive_field is 1; it must be odd, and 3 at least, or"),
            ({"likelihood": "poisson"}, "likelihood is 'poisson'; it must be one of bernoulli, c"),
        ],
    )
    def test_what_is_no_size_or_name(self, given, says):
        with pytest.raises(ValueError, match=says):
            rk.decoders.PixelCNN(**given)

    @pytest.mark.parametrize(
        "given,shape,says",
        [
            ({}, (8, 8), r"input_shape is \(8, 8\); PixelCNN wants \(channels, height, width\)"),
            ({}, (2,), r"input_shape is \(2,\); PixelCNN wants \(channels, height, width\)"),
            (
                {"layers": 3},
                (1, 6, 4),
                "layers is 3, which reach 4 pixels far at most; a receptive field of 11 wants 4",
            ),
            (
                {"layers": 1, "receptive_field": 5},
                (1, 6, 4),
                "layers is 1, which reach 1 pixels far at most; a receptive field of 5 wants 2",
            ),
            ({"channels": 2}, (3, 8, 8), "channels is 2; one at least for each of 3 colours"),
            ({"hidden": 2}, (3, 8, 8), "hidden is 2; one at least for each of 3 colours"),
        ],
    )
    def test_images_that_it_does_not_fit(self, given, shape, says):
        with pytest.raises(ValueError, match=says):
            rk.decoders.PixelCNN(**given).build(None, 0, shape)

    @pytest.mark.parametrize(
        "given,says",
        [
            ({"colours": 2, "outputs": [1]}, "outputs is of length 1; one for each of 2"),
            ({"colours": 1, "outputs": [0]}, r"outputs\[0\] is 0; a positive integer"),
            ({"colours": 1, "outputs": [1], "dilations": (2, 1)}, "the first must be 1"),
            ({"colours": 1, "outputs": [1], "dilations": ()}, "the first must be 1"),
            ({"colours": 1, "outputs": [1], "dilations": (1, 0, 1)}, "and layers of 0 the last"),
        ],
    )
    def test_networks_that_are_none(self, given, says):
        with pytest.raises(ValueError, match=says):
            GatedPixelCNN(**given)

    def test_data_and_codes_of_another_shape(self):
        decoder = built((1, 4, 4), LATENT)
        with pytest.raises(ValueError, match=r"x is of shape \(2, 1, 4, 5\)"):
            decoder.log_prob(random(2, 1, 4, 5), codes(2, LATENT))
        with pytest.raises(ValueError, match=r"z is of shape \(2, 3\); it must be of shape \(…, 2"):
            decoder.draw(random(2, 3))
