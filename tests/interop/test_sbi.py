"""fuse: the estimators of sbi, and the posteriors that hold them, give what they gave."""

import copy

import pytest
import torch

import rhovae_kernels as rk

D, OBSERVED = 3, 2
ONE_PASS = "one pass in either direction"
ONE_OP = "one op after its network, in either direction"
ESTIMATORS = {
    "maf": ONE_PASS,
    "zuko_maf": ONE_PASS,
    "maf_rqs": ONE_PASS,
    "zuko_nsf": ONE_PASS,
    "nsf": ONE_OP,
    "zuko_nice": ONE_OP,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.triangular_solve"),
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
]


@pytest.fixture
def sbi():
    return pytest.importorskip("sbi", reason="sbi, a peer, is not installed")


@pytest.fixture
def data(draw):
    theta = draw(60, D).clamp(-1.9, 1.9)
    return theta, theta[:, :OBSERVED] + 0.3 * draw(60, OBSERVED, seed=2)


@pytest.fixture
def make(sbi, data):
    """An estimator with random weights, large enough to matter."""
    from sbi.neural_nets import posterior_nn

    def estimator(name):
        torch.manual_seed(0)
        made = posterior_nn(name, hidden_features=12, num_transforms=2)(*data)
        with torch.no_grad():
            for p in made.parameters():
                p += 0.1 * torch.randn(p.shape)
        return made

    return estimator


def prior():
    from sbi.utils import BoxUniform

    return BoxUniform(-2 * torch.ones(D), 2 * torch.ones(D))


def sampled(estimator, x):
    torch.manual_seed(5)
    return estimator.sample((200,), x)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_keeps_its_samples_densities_and_state(make, data, name, assert_same_state):
    estimator, (theta, x) = make(name), data
    before = copy.deepcopy(estimator)
    fused = rk.fuse(estimator)
    assert set(fused.fused.values()) == {ESTIMATORS[name]} and len(fused.fused) == 2
    assert not fused.left
    with torch.no_grad():
        close(fused.loss(theta, x), before.loss(theta, x))
        close(sampled(fused, x[:2]), sampled(before, x[:2]))
    fused.loss(theta, x).mean().backward()
    assert all(p.grad is not None for p in fused.parameters() if p.requires_grad)
    fused.undo()
    assert_same_state(estimator.state_dict(), before.state_dict())
    assert torch.equal(estimator.loss(theta, x), before.loss(theta, x))


@pytest.mark.parametrize("name", ["maf", "zuko_nsf"])
def test_a_posterior_is_fused_in_all_of_its_places(make, data, name):
    from sbi.inference.posteriors import DirectPosterior

    x, theta = data[1][:1], data[0]
    posterior = DirectPosterior(make(name), prior())
    before = copy.deepcopy(posterior)
    fusion = rk.fuse(posterior)
    assert len(fusion.fused) == 2 and isinstance(fusion, DirectPosterior)
    estimator = posterior.posterior_estimator
    assert estimator is posterior.potential_fn.posterior_estimator
    with torch.no_grad():
        close(estimator.loss(theta, x.expand(60, -1)), before.posterior_estimator.loss(
            theta, x.expand(60, -1)))  # fmt: skip
        close(posterior.potential(theta, x=x), before.potential(theta, x=x))
    samples = []
    for each in (fusion, before):
        torch.manual_seed(5)
        samples.append(each.sample((50,), x=x, show_progress_bars=False))
    close(*samples)
    fusion.undo()
    for p, expected in zip(estimator.parameters(), before.posterior_estimator.parameters(),
                           strict=True):  # fmt: skip
        assert torch.equal(p, expected)


def test_an_ensemble_is_fused_in_each_of_its_posteriors(make, data):
    from sbi.inference.posteriors import DirectPosterior, EnsemblePosterior

    names = ("maf", "nsf")
    ensemble = EnsemblePosterior([DirectPosterior(make(name), prior()) for name in names])
    fusion = rk.fuse(ensemble)
    assert set(fusion.fused.values()) == {ONE_PASS, ONE_OP} and len(fusion.fused) == 4


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_inference_goes_on_with_a_fused_estimator(make, data, tmp_path, monkeypatch):
    from sbi.inference import NPE

    # Where sbi writes its logs.
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    inference = NPE(prior(), density_estimator=lambda *_: rk.fuse(make("maf")),
                    show_progress_bars=False)  # fmt: skip
    estimator = inference.append_simulations(*data).train(max_num_epochs=2)
    posterior = inference.build_posterior(estimator)
    assert posterior.sample((5,), x=data[1][:1], show_progress_bars=False).shape == (5, D)


def test_a_posterior_without_such_networks_is_refused(sbi):
    from sbi.inference.posteriors import MCMCPosterior

    posterior = MCMCPosterior(lambda *_: torch.zeros(1), prior(), device="cpu")
    with pytest.raises(ValueError, match="MCMCPosterior holds no masked autoregressive"):
        rk.fuse(posterior)
