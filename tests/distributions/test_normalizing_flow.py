"""NormalizingFlow: any base, the batch of base and context, the estimate of the mean, memory."""

import math

import pytest
import torch
from torch.distributions import (
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Poisson,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform

from rhovae_kernels.distributions import AR1Normal, DiagonalNormal, NormalizingFlow, StandardNormal
from rhovae_kernels.nn import IAF, MAF, NSF, RealNVP

D = 3


def stirred(flow):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return flow.double()


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FLOWS = {
    "IAF": lambda context=0: stirred(IAF(D, 2, (8, 8), context)),
    "MAF": lambda context=0: stirred(MAF(D, 2, (8, 8), context)),
    "NSF": lambda context=0: stirred(NSF(D, 2, (8, 8), context, bins=3)),
    "RealNVP": lambda context=0: stirred(RealNVP(D, 2, (8, 8), context)),
}
flows = pytest.mark.parametrize("make", FLOWS.values(), ids=list(FLOWS))

BASES = {
    "StandardNormal": lambda batch: StandardNormal((*batch, D), torch.float64),
    "DiagonalNormal": lambda batch: DiagonalNormal(draw(*batch, D), draw(*batch, D, seed=2)),
    "AR1Normal": lambda batch: AR1Normal(
        draw(*batch, D), log_var=draw(*batch, 1), rho_logit=draw(*batch, 1)
    ),
    "independent Laplace": lambda batch: Independent(Laplace(draw(*batch, D), 0.5), 1),
    "MultivariateNormal": lambda batch: MultivariateNormal(
        draw(*batch, D), torch.eye(D, dtype=torch.float64)
    ),
    "TransformedDistribution": lambda batch: TransformedDistribution(
        Independent(Normal(draw(*batch, D), 1.0), 1), AffineTransform(1.0, 2.0, event_dim=1)
    ),
    "NormalizingFlow": lambda batch: NormalizingFlow(
        FLOWS["MAF"](), base=StandardNormal((*batch, D), torch.float64)
    ),
}
bases = pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))


@flows
@bases
def test_its_density_is_that_of_the_base_and_the_log_det(make, base):
    flow, noise = make(), base((5,))
    p = NormalizingFlow(flow, base=noise)
    x, log_p = p.rsample_and_log_prob((4,))
    u, log_det = flow.to_noise(x)
    torch.testing.assert_close(log_p, noise.log_prob(u) + log_det)
    torch.testing.assert_close(p.log_prob(x), log_p)
    torch.testing.assert_close(p.log_prob(x.clone()), log_p)


@flows
@bases
@pytest.mark.parametrize(
    "of_base,of_context,batch",
    [
        ((), (), ()),
        ((), (5,), (5,)),
        ((5,), (), (5,)),
        ((5,), (2, 5), (2, 5)),
        ((2, 1), (5,), (2, 5)),
    ],
    ids=str,
)
def test_the_batch_is_that_of_base_and_context_broadcast(make, base, of_base, of_context, batch):
    flow, c = make(2), draw(*of_context, 2, seed=3)
    p = NormalizingFlow(flow, c, base(of_base))
    assert (p.batch_shape, p.event_shape) == (batch, (D,))
    x = p.sample((4,))
    assert x.shape == (4, *batch, D) and p.log_prob(x).shape == (4, *batch)
    assert p.log_prob(draw(D)).shape == batch
    wide = p.expand((3, *batch))
    assert wide.sample((4,)).shape == (4, 3, *batch, D)
    torch.testing.assert_close(wide.log_prob(x[:3]), p.log_prob(x[:3]))


@flows
def test_without_a_base_it_is_that_of_standard_normal_noise(make):
    flow = make()
    drawn = []
    for base in (None, StandardNormal((D,), torch.float64)):
        torch.manual_seed(0)
        drawn.append(NormalizingFlow(flow, base=base).rsample((5,)))
    assert torch.equal(*drawn)
    assert drawn[0].dtype == torch.float64


@flows
def test_a_base_without_rsample_gives_samples_and_densities_alone(make):
    p = NormalizingFlow(make(), base=Independent(Poisson(torch.ones(D).double()), 1))
    assert p.has_rsample is False
    x = p.sample((4,))
    assert x.shape == (4, D) and not x.requires_grad
    u = p.flow.to_noise(x)[0].round()
    torch.testing.assert_close(p.flow.to_data(u)[0], x)
    with pytest.raises(NotImplementedError):
        p.rsample()


@flows
@pytest.mark.parametrize("name", ["StandardNormal", "DiagonalNormal"])
@torch.no_grad()
def test_the_mean_is_near_that_of_many_samples(make, name):
    p = NormalizingFlow(make(), base=BASES[name]((2,)))
    torch.manual_seed(0)
    x = p.sample((50_000,))
    # 128 samples, some of whose noise the pairs take out.
    error = x.std(0) * math.sqrt(1 / 128 + 1 / len(x))
    assert p.mean.shape == (2, D) and ((p.mean - x.mean(0)).abs() < 5 * error).all()
    assert torch.equal(p.mean, p.mean)


def test_the_mean_over_another_base_is_refused_by_name():
    p = NormalizingFlow(FLOWS["MAF"](), base=BASES["independent Laplace"](()))
    with pytest.raises(NotImplementedError, match="is a DiagonalNormal, not for Independent"):
        _ = p.mean


@pytest.mark.parametrize("name", FLOWS)
def test_the_noise_of_the_last_sample_is_remembered_where_taking_it_is_sequential(
    name, monkeypatch
):
    flow = FLOWS[name]()
    p, taken, to_noise = flow(), [], flow.to_noise
    monkeypatch.setattr(flow, "to_noise", lambda *given: taken.append(1) or to_noise(*given))
    x = p.rsample((4,))
    own = p.log_prob(x)
    assert len(taken) == (0 if flow.samples_in_parallel else 1)
    torch.testing.assert_close(own, p.log_prob(x.clone()))
    assert len(taken) == (1 if flow.samples_in_parallel else 2)
    # What was expanded has drawn nothing yet.
    p.expand((4,)).log_prob(x)
    assert len(taken) == (2 if flow.samples_in_parallel else 3)


def test_a_density_compiles_whole():
    flow = FLOWS["MAF"]()
    x = draw(4, D)
    compiled = torch.compile(lambda x: flow().log_prob(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), flow().log_prob(x))


@pytest.mark.parametrize(
    "context,base,says",
    [
        (None, None, r"context is missing; it must be of shape \(…,2\)"),
        (draw(4, 3), None, r"context is of shape \(4, 3\); it must be of shape \(…,2\)"),
        (draw(), None, r"context is of shape \(\); it must be"),
        (draw(4, 2), StandardNormal((4,)), r"base is of event shape \(4,\).* event shape \(3,\)"),
        (draw(4, 2), Normal(draw(4, 3), 1.0), r"base is of event shape \(\)"),
        (draw(4, 2), StandardNormal((5, 3)), r"base is of batch shape \(5,\), context.* \(4,\)"),
    ],
)
def test_what_does_not_go_with_the_flow_is_refused(context, base, says):
    with pytest.raises(ValueError, match=says):
        NormalizingFlow(FLOWS["MAF"](2), context, base)


@flows
@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_value_of_another_width_is_refused(make, width):
    p = NormalizingFlow(make(), base=StandardNormal((5, D), torch.float64))
    with pytest.raises(ValueError, match=rf"x is of shape .*{width}\); this flow wants \(…,3\)"):
        p.log_prob(draw(5, width))


def test_a_context_that_no_flow_wants_is_refused():
    with pytest.raises(ValueError, match=r"context is of shape \(4, 2\); it must be None"):
        NormalizingFlow(FLOWS["MAF"](), draw(4, 2))
