"""What every module promises: each network, flow and part of a VAE through the same tests."""

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

import rhovae_kernels as rk
from rhovae_kernels.metrics import traversals
from rhovae_kernels.nn.coupling import Coupling
from rhovae_kernels.papers import published
from rhovae_kernels.vae.base import Model
from rhovae_kernels.vae.decoders import Autoregressive, Decoder, Ordered
from rhovae_kernels.vae.nets import Encoder, SequenceEncoder
from rhovae_kernels.vae.objectives import Objective
from rhovae_kernels.vae.objectives.base import OnKL
from rhovae_kernels.vae.parts import Part
from rhovae_kernels.vae.posteriors import Posterior, SequencePosterior
from rhovae_kernels.vae.priors import Prior
from rhovae_kernels.vae.priors.flows import Flow
from rhovae_kernels.vae.saved import Saved

D, CONTEXT, SHAPE, STEPS = 3, 2, (1, 8, 8), (6, 2)

MASKS = (torch.tensor([[0, 1, 0], [0, 1, 1]]), torch.tensor([[1, 1], [0, 0], [1, 0]]))


def from_masks() -> rk.nn.MADE:
    """A MADE whose dimensions come in an order of their own."""
    weights, biases = [torch.randn(2, 3), torch.randn(3, 2)], [torch.randn(2), torch.randn(3)]
    made = rk.nn.MADE.from_masks(weights, biases, MASKS)
    assert made.order is not None
    return made


NETWORKS = {
    "MaskedLinear": lambda: rk.nn.MaskedLinear(D, 4, prefix=[0, 1, 1, 3]),
    "MADE": lambda: rk.nn.MADE(D, (6, 5), heads=3, reverse=True),
    "MADE.from_masks": from_masks,
}
TRANSFORMS = {
    "AffineCoupling": lambda: rk.nn.AffineCoupling([True, False, True], (6,)),
    "SplineCoupling": lambda: rk.nn.SplineCoupling([True, False, True], (6,), bins=3),
    "SplineAutoregressive": lambda: rk.nn.SplineAutoregressive(rk.nn.MADE(D, (6,), heads=8)),
    "AffineAutoregressive": lambda: rk.nn.AffineAutoregressive(rk.nn.MADE(D, (6,))),
}
FLOWS = {
    "MAF": lambda: rk.nn.MAF(D, 2, (6, 5)),
    "IAF": lambda: rk.nn.IAF(D, 2, (6,)),
    "IAF, separate": lambda: rk.nn.IAF(D, 2, (6,), separate=True),
    "NSF": lambda: rk.nn.NSF(D, 2, (6, 5), bins=3),
    "RealNVP": lambda: rk.nn.RealNVP(D, 3, (6,)),
    "RealNVP of splines": lambda: rk.nn.RealNVP(D, 3, (6,), bins=3),
}


def vae(
    encoder: type[Encoder] | None = None,
    posterior: Posterior | None = None,
    prior: Prior | None = None,
    decoder: Decoder | None = None,
    objective: Objective | None = None,
) -> rk.VAE:
    sizes = {} if encoder in (None, rk.nets.MLP) else {"channels": (4, 4)}
    return rk.VAE(
        (encoder or rk.nets.MLP)(SHAPE, hidden=(6,), **sizes),
        posterior or rk.posteriors.AR1(D),
        prior or rk.priors.StandardNormal(D),
        decoder or rk.decoders.Bernoulli(),
        objective,
    )


def of_sequences(
    encoder: Encoder | None = None,
    posterior: Posterior | None = None,
    decoder: Decoder | None = None,
    objective: Objective | None = None,
) -> rk.VAE:
    return rk.VAE(
        encoder or rk.nets.Dilated(STEPS, channels=4, layers=1),
        posterior or rk.posteriors.Markov(D),
        rk.priors.AR1Process(D),
        rk.decoders.PerStep(decoder or rk.decoders.Bernoulli()),
        objective,
    )


def of_places(decoder: Decoder, colours: int = 1) -> rk.VAE:
    """Of few places: each is a part of a graph, and in a draw a pass."""
    return rk.VAE(
        rk.nets.MLP((colours, 3, 3), (6,)),
        rk.posteriors.AR1(D),
        rk.priors.StandardNormal(D),
        decoder,
    )


VAES = {
    "MLP": lambda: vae(rk.nets.MLP),
    "Conv": lambda: vae(rk.nets.Conv),
    "DCGAN": lambda: vae(rk.nets.DCGAN),
    "Diagonal": lambda: vae(posterior=rk.posteriors.Diagonal(D)),
    "AR1": lambda: vae(posterior=rk.posteriors.AR1(D), prior=rk.priors.AR1(D)),
    "ScaledAR1": lambda: vae(posterior=rk.posteriors.ScaledAR1(D), prior=rk.priors.AR1(D)),
    "IAF": lambda: vae(posterior=rk.posteriors.IAF(D, 2, (6,), 2)),
    "IAF without a context": lambda: vae(posterior=rk.posteriors.IAF(D, 1, (6,), 0)),
    "published": lambda: vae(
        posterior=published.Posterior(D), objective=published.Objective(beta=2.0)
    ),
    "RealNVP": lambda: vae(prior=rk.priors.RealNVP(D, 2, (6,))),
    "RealNVP of splines": lambda: vae(prior=rk.priors.RealNVP(D, 2, (6,), bins=3)),
    "MAF": lambda: vae(prior=rk.priors.MAF(D, 2, (6,))),
    "NSF": lambda: vae(prior=rk.priors.NSF(D, 2, (6,), bins=3)),
    "VampPrior": lambda: vae(prior=rk.priors.VampPrior(D, 3)),
    "VampPrior of IAF": lambda: vae(
        posterior=rk.posteriors.IAF(D, 2, (6,), 2), prior=rk.priors.VampPrior(D, 3)
    ),
    "IAF and MAF": lambda: vae(
        posterior=rk.posteriors.IAF(D, 2, (6,), 2), prior=rk.priors.MAF(D, 2, (6,))
    ),
    "Gaussian": lambda: vae(decoder=rk.decoders.Gaussian()),
    "Gaussian, given": lambda: vae(decoder=rk.decoders.Gaussian(variance=0.1)),
    "DiscretizedLogistic": lambda: vae(decoder=rk.decoders.DiscretizedLogistic(levels=5)),
    "PixelCNN": lambda: of_places(rk.decoders.PixelCNN(4, 2, hidden=4)),
    "PixelCNN of two colours": lambda: of_places(
        rk.decoders.PixelCNN(4, 2, hidden=4, likelihood="logistic-mixture", mixtures=2), 2
    ),
    "NADE": lambda: vae(decoder=rk.decoders.NADE((64,))),
    "NADE of two orders, Gaussian": lambda: vae(
        decoder=rk.decoders.NADE((64,), ["spiral", "random-1"], "gaussian")
    ),
    "OrderlessNADE": lambda: of_places(rk.decoders.OrderlessNADE((8,), ["raster", "columns"])),
    "BetaH": lambda: vae(objective=rk.objectives.BetaH(2.0)),
    "BetaB": lambda: vae(objective=rk.objectives.BetaB(2.0, 1.0, 10)),
    "BetaTC": lambda: vae(objective=rk.objectives.BetaTC(2.0)),
    "Factor": lambda: vae(objective=rk.objectives.Factor(2.0, hidden=(4,))),
    "InfoMMD": lambda: vae(objective=rk.objectives.InfoMMD(0.5, 2.0)),
    "IWAE": lambda: vae(objective=rk.objectives.IWAE(2)),
    "IWAE, doubly": lambda: vae(objective=rk.objectives.IWAE(2, "doubly")),
    "WarmUp": lambda: vae(objective=rk.objectives.WarmUp(rk.objectives.ELBO(), 10)),
    "FreeBits": lambda: vae(objective=rk.objectives.FreeBits(rk.objectives.ELBO(), 1.0)),
    "GRU": lambda: of_sequences(rk.nets.GRU(STEPS, hidden=4, layers=2)),
    "GRU, forward": lambda: of_sequences(rk.nets.GRU(STEPS, hidden=4, bidirectional=False)),
    "Dilated": lambda: of_sequences(rk.nets.Dilated(STEPS, channels=4, layers=2)),
    "DiagonalSteps": lambda: of_sequences(posterior=rk.posteriors.DiagonalSteps(D)),
    "Smoothed": lambda: of_sequences(posterior=rk.posteriors.Smoothed(D)),
    "PerStep of Gaussian": lambda: of_sequences(decoder=rk.decoders.Gaussian()),
    "PerStep of DiscretizedLogistic": lambda: of_sequences(
        decoder=rk.decoders.DiscretizedLogistic(levels=5)
    ),
    "IWAE of sequences": lambda: of_sequences(objective=rk.objectives.IWAE(2)),
    "IWAE of sequences, doubly": lambda: of_sequences(objective=rk.objectives.IWAE(2, "doubly")),
}


MODULES = {
    **NETWORKS,
    **TRANSFORMS,
    **FLOWS,
    **{f"VAE: {name}": make for name, make in VAES.items()},
    "Density": lambda: rk.Density(rk.decoders.PixelCNN(channels=2, layers=2, hidden=3), (1, 3, 3)),
}
every_module = pytest.mark.parametrize("name", MODULES)


def made(name: str, seed: int = 0) -> nn.Module:
    """A module whose every parameter is off its first value, ready to be measured."""
    torch.manual_seed(seed)
    module = MODULES[name]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def data(shape: tuple[int, ...], n: int = 4) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def data_of(vae: Model, n: int = 4) -> Tensor:
    """Data that a model takes; of sequences, one is shorter, and one lacks a step."""
    x = data(vae.input_shape, n)
    if vae.sequential:
        x[1, 4:], x[2, 1] = torch.nan, torch.nan
    return x


def measures_of(vae: rk.VAE, *of_codes: str) -> list[str]:
    """Metrics of any VAE, and those of codes of one size where they are."""
    return ["elbo", "nll@2", "active-units", *(() if vae.sequential else of_codes)]


def check_traversals(vae: rk.VAE, x: Tensor, dtype: torch.dtype) -> None:
    """They are finite and of a type; of sequences there are none."""
    for mode in () if vae.sequential else traversals.MODES:
        found = traversals.traverse(vae, x, mode, 2, 3, seed=0)
        assert found.isfinite().all() and found.dtype is dtype


def outputs(module: nn.Module) -> list[Tensor]:
    """All that a module computes, its random draws the same at every call."""
    torch.manual_seed(2)
    like = next(module.parameters())
    if isinstance(module, rk.VAE):
        x = data_of(module).to(like)
        output = module(x, step=3, data_size=50)
        # What is reconstructed of the padding of a sequence is NaN.
        drawn = (module.sample(3, "draw"), module.reconstruct(x).nan_to_num(nan=-1.0))
        return [*output, module.elbo(x), module.log_weights(x, 2), *drawn]
    if isinstance(module, rk.Density):
        return [*module(data_of(module).to(like)), module.sample(3)]
    x = data((D,)).to(like)
    if isinstance(module, rk.nn.Transform | rk.nn.Flow):
        flow = isinstance(module, rk.nn.Flow)
        drawn = (module().rsample((2,)), module().log_prob(x)) if flow else ()
        return [*module.call_and_log_det(x), *module.inverse(x), *drawn]
    return [module(x)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_every_class_of_module_is_among_them():
    bases = {Part, Posterior, Prior, Decoder, Encoder, Objective, OnKL, Flow}
    bases |= {
        rk.nn.Transform,
        rk.nn.Flow,
        Coupling,
        Saved,
        Model,
        SequenceEncoder,
        SequencePosterior,
        Autoregressive,
        Ordered,
    }

    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    def is_held(kind: type) -> bool:
        """By its module: the example of a docstring, run before, leaves classes under its name."""
        return getattr(sys.modules[kind.__module__], kind.__qualname__, None) is kind

    # Those of `papers.stochastic_volatility` are made of a series, fitted and summed up: no weights
    # of theirs are ever saved, loaded or moved.
    homes = ("rhovae_kernels.nn.", "rhovae_kernels.vae.", "rhovae_kernels.papers.published")
    ours = {kind for kind in below(nn.Module) if kind.__module__.startswith(homes)}
    wanted = {kind for kind in ours if is_held(kind)}
    found = {type(module) for make in MODULES.values() for module in make().modules()}
    abstract = {kind for kind in wanted if kind.__name__ == "Derived"} | bases
    assert wanted - abstract <= found


@pytest.fixture
def poisoned():
    """Memory that is allocated holds NaN, or the greatest integer, until it is written."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@every_module
def test_in_memory_allocated_anew_its_state_dict_is_all_it_needs(name, poisoned):
    module = made(name)
    again = made(name, seed=5).to("meta").to_empty(device="cpu")
    again.load_state_dict(module.state_dict())
    assert equal(outputs(again), outputs(module))


@every_module
def test_made_on_meta_it_is_loaded_like_any_other(name, poisoned):
    module = made(name)
    with torch.device("meta"):
        again = MODULES[name]().eval()
    tensors = [*again.parameters(), *again.buffers()]
    assert tensors and all(x.is_meta for x in tensors)
    again.to_empty(device="cpu").load_state_dict(module.state_dict())
    assert equal(outputs(again), outputs(module))


@every_module
def test_on_meta_it_says_what_shapes_it_gives(name):
    module = made(name)
    shapes = [x.shape for x in outputs(module)]
    module.to("meta")
    with torch.device("meta"):
        assert [x.shape for x in outputs(module)] == shapes


@every_module
def test_on_meta_it_takes_an_assigned_state_dict(name):
    module = made(name)
    again = made(name, seed=5).to("meta")
    again.load_state_dict(module.state_dict(), assign=True)
    assert equal(outputs(again), outputs(module))


@every_module
def test_its_copy_is_cast_and_moved_as_it_is(name):
    module = made(name)
    expected = outputs(made(name).double())
    again = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    again.load_state_dict(module.state_dict())
    assert equal(outputs(again.double()), expected)
    assert all(x.dtype is torch.float64 for x in outputs(again) if x.is_floating_point())


@every_module
def test_in_inference_mode_it_computes_the_same(name):
    module = made(name)
    with torch.no_grad():
        expected = outputs(module)
    with torch.inference_mode():
        found = outputs(module)
    # The density of a sample of an IAF is taken by the other direction.
    torch.testing.assert_close(found, expected)


ALONE = {**NETWORKS, **TRANSFORMS, **FLOWS}


@pytest.mark.parametrize("name", ALONE)
def test_an_ensemble_under_vmap_computes_what_its_members_do(name):
    members = [made(name, seed) for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")
    check_ensemble(skeleton, members, parameters, buffers)


def test_members_of_an_ensemble_may_have_masks_of_their_own():
    networks = [rk.nn.MADE(D, (4,), degrees=[degrees]) for degrees in ([0, 0, 1, 1], [0, 1, 1, 1])]
    masks = ([True, False, True], [False, True, True])
    couplings = [rk.nn.AffineCoupling(mask, (6,)) for mask in masks]
    for members in (list(map(rk.nn.AffineAutoregressive, networks)), couplings):
        state = torch.func.stack_module_state(members)
        check_ensemble(copy.deepcopy(members[0]).to("meta"), members, *state)


def check_ensemble(
    skeleton: nn.Module,
    members: list[nn.Module],
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
) -> None:
    """Outputs, and gradients of every parameter, in both directions of what has two."""
    x = data((D,))
    ways = ["forward"] if type(skeleton) in (rk.nn.MaskedLinear, rk.nn.MADE) else WAYS

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor], way: str) -> Tensor:
        state = {f"module.{key}": value for key, value in {**parameters, **buffers}.items()}
        results = torch.func.functional_call(_Way(skeleton, way), state, (x,))
        return sum(y.square().sum() for y in (results if isinstance(results, tuple) else [results]))

    for way in ways:
        both = torch.func.grad_and_value(lambda *state, way=way: run(*state, way))
        gradients, losses = torch.func.vmap(both)(parameters, buffers)
        for b, member in enumerate(members):
            state = dict(member.named_parameters()), dict(member.named_buffers())
            expected, loss = both(*state)
            torch.testing.assert_close(losses[b], loss)
            for key, gradient in expected.items():
                torch.testing.assert_close(gradients[key][b], gradient, rtol=1e-4, atol=1e-4)


WAYS = ["call_and_log_det", "inverse"]


class _Way(nn.Module):
    """One method of a module, as the whole of another."""

    def __init__(self, module: nn.Module, way: str) -> None:
        super().__init__()
        self.module, self.way = module, way

    def forward(self, x: Tensor):
        return getattr(self.module, self.way)(x)


every_vae = pytest.mark.parametrize("name", VAES)
CASTS = {
    "float64": lambda vae: vae.double(),
    "float16": lambda vae: vae.half(),
    "bfloat16": lambda vae: vae.bfloat16(),
    "an encoder in bfloat16": lambda vae: vae.encoder.bfloat16(),
}


@pytest.mark.parametrize("cast", CASTS)
@every_vae
def test_a_saved_vae_comes_back_in_its_types(name, cast, tmp_path):
    module = made(f"VAE: {name}")
    CASTS[cast](module)
    module.save_pretrained(tmp_path)
    again = rk.VAE.from_pretrained(tmp_path)
    of_again = {**again.state_dict(), **dict(again.named_buffers())}
    for key, x in {**module.state_dict(), **dict(module.named_buffers())}.items():
        assert x.dtype is of_again[key].dtype and torch.equal(x, of_again[key]), key
    if cast == "float64":
        assert equal(outputs(again), outputs(module))


@every_vae
def test_it_is_evaluated_in_inference_mode(name):
    vae = made(f"VAE: {name}")
    x, metrics = data_of(vae), measures_of(vae, "skl")
    expected = rk.evaluate(vae, x, metrics)
    with torch.inference_mode():
        found = rk.evaluate(vae, x, metrics)
    for metric in metrics:
        for quantity, value in expected[metric].items():
            assert found[metric][quantity] == pytest.approx(value, rel=1e-3, abs=1e-4)


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALVES
@every_vae
def test_in_half_precision_it_computes_in_float32(name, dtype):
    vae = made(f"VAE: {name}").to(dtype)
    found, expected = outputs(vae), outputs(copy.deepcopy(vae).float())
    assert all(x.dtype is torch.float32 and x.isfinite().all() for x in found)
    assert [x.shape for x in found] == [x.shape for x in expected]
    # The rate of the same weights: draws are of float32, but layers round what they give.
    torch.testing.assert_close(found[2], expected[2], rtol=0.1, atol=0.1)
    vae(data_of(vae).to(dtype), step=3, data_size=50).loss.backward()
    for key, parameter in vae.named_parameters():
        assert parameter.grad.dtype is dtype and parameter.grad.isfinite().all(), key


@HALVES
@every_vae
def test_in_half_precision_it_is_trained_measured_and_traversed(name, dtype, tmp_path):
    torch.manual_seed(0)
    vae = VAES[name]().to(dtype)
    x = data_of(vae, 40)
    # Adam's ε of 1e-8 is 0 in float16: its steps are not finite there.
    settings = {"batch_size": 8, "lr": 1e-4, "optimizer": "sgd"}
    rk.fit(vae, x, x[:10], epochs=1, out=tmp_path / "run", quiet=True, **settings)
    assert next(vae.parameters()).dtype is dtype
    metrics = measures_of(vae, "skl", "mi", "leakage")
    assert rk.evaluate(tmp_path / "run", x, metrics) == rk.evaluate(vae, x, metrics)
    check_traversals(vae, x.to(dtype), torch.float32)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_vae
def test_where_float64_is_the_default_it_is_trained_and_measured(
    name, float64_by_default, tmp_path
):
    torch.manual_seed(0)
    vae = VAES[name]()
    x = "digits" if vae.input_shape == SHAPE else data_of(vae, 40)
    rk.fit(vae, x, epochs=1, out=tmp_path / "run", quiet=True, batch_size=1000)
    metrics = measures_of(vae, "skl")
    measured = rk.evaluate(tmp_path / "run", x, metrics, limit=20)
    assert measured == rk.evaluate(vae, x, metrics, limit=20)
    assert all(x.dtype is torch.float64 for x in vae.state_dict().values() if is_floating(x))
    check_traversals(vae, data_of(vae), torch.float64)


def is_floating(x: Tensor) -> bool:
    return x.is_floating_point()


class _Exported(nn.Module):
    """What a VAE is exported for, at once."""

    def __init__(self, vae: rk.VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        vae, q = self.vae, self.vae.posterior_for(x)
        # What is drawn comes last, as the draws of a graph are not those of eager mode.
        drawn = (q.rsample(), vae.elbo(x), vae.log_weights(x, 3), *vae(x, 3, 500))
        if vae.objective.needs_data_size:  # to the others the batch alone is no other way
            drawn = (*drawn, *vae(x, 3))
        if vae.decoder.autoregressive:  # a graph of its draws would hold every pixel by itself
            return q.mean, vae.decoder.log_prob(x, q.mean), *drawn
        return q.mean, vae.reconstruct(x), *drawn, vae.sample(x.shape[0], "draw")


# What TorchDynamo makes of a VAE is traced in the end too, and takes twice the time.
@pytest.mark.parametrize(
    "strict",
    [pytest.param(False, id="traced"), pytest.param(True, id="strict", marks=pytest.mark.gate)],
)
@every_vae
def test_exported_it_takes_batches_of_any_size(name, strict):
    module = _Exported(made(f"VAE: {name}"))
    batch = torch.export.Dim("batch", min=2, max=400)
    exported = torch.export.export(
        module, (data_of(module.vae),), dynamic_shapes=({0: batch},), strict=strict
    ).module()
    for n in (3, 4, 9):
        x = data_of(module.vae, n)
        found, expected = exported(x), module(x)
        assert [y.shape for y in found] == [y.shape for y in expected]
        torch.testing.assert_close(found[:2], expected[:2], equal_nan=True)
