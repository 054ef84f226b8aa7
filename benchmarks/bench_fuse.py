"""fuse on the CPU: the estimators of sbi, made of flows of nflows and zuko, before and after.

Five transforms, 50 hidden units, as sbi makes them. Samples are drawn of one seed, so that those of
the fused estimator are verified against sbi's own, number by number.
"""

import copy
import math

import pytest
import torch
from harness import verify

import rhovae_kernels as rk

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve")
ROUNDS = 7
SAMPLES, BATCH = 5000, 200


def made(name, d):
    """An estimator of d parameters given d data, and a fused copy; parameters and data."""
    posterior_nn = pytest.importorskip("sbi.neural_nets").posterior_nn
    torch.manual_seed(0)
    theta, x = torch.randn(500, d), torch.randn(500, d)
    kind, _, residual = name.partition(" of ")
    given = {"use_residual_blocks": True} if residual else {}
    estimator = posterior_nn(kind, hidden_features=50, num_transforms=5, **given)(theta, x)
    fused = rk.fuse(copy.deepcopy(estimator))
    assert not fused.left
    return {"sbi": estimator, "rhovae": fused}, theta[:BATCH], x[:BATCH]


# At 32 dimensions a call of those that run the network 32 times takes minutes: timed once.
@pytest.mark.parametrize(
    "name,d,times,budget",
    [
        ("maf", 8, 8, math.inf),
        ("zuko_maf", 8, 8, math.inf),
        ("nsf", 8, 1, math.inf),
        ("maf_rqs", 8, 8, math.inf),
        ("maf_rqs of residual blocks", 8, 8, math.inf),
        ("zuko_nsf", 8, 6, math.inf),
        ("maf_rqs", 32, 20, 3.0),
        ("zuko_nsf", 32, 20, 3.0),
    ],
)
@torch.no_grad()
def test_sampling(compare, name, d, times, budget):
    estimators, _, x = made(name, d)

    def sample(estimator):
        torch.manual_seed(1)
        return estimator.sample((SAMPLES,), x[:1])

    variants = {way: lambda e=e: sample(e) for way, e in estimators.items()}
    verify([variants["rhovae"]()], [variants["sbi"]()])
    compare(
        f"fuse: samples of {name}",
        (SAMPLES, d),
        "sample",
        "float32",
        variants,
        "rhovae",
        {"sbi": 1 / times},
        rounds=ROUNDS,
        budget=budget,
    )


@pytest.mark.parametrize("name,times", [("maf", 1), ("zuko_maf", 1), ("nsf", 1.3), ("maf_rqs", 1.3),
                                        ("zuko_nsf", 1.3)])  # fmt: skip
def test_a_training_step(compare, name, times):
    d = 8
    estimators, theta, x = made(name, d)

    def step(estimator, optimizer):
        optimizer.zero_grad()
        loss = estimator.loss(theta, x).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(estimator.parameters(), 5.0)
        optimizer.step()
        return loss.detach(), norm

    def adam(estimator):
        return torch.optim.Adam(estimator.parameters(), lr=5e-4)

    # The parameters of one are those of the other in another order: their norms are the same.
    copies = copy.deepcopy(estimators)
    verify(*(step(copies[way], adam(copies[way])) for way in ("rhovae", "sbi")))
    optimizers = {way: adam(e) for way, e in estimators.items()}
    variants = {way: lambda w=way: step(estimators[w], optimizers[w]) for way in estimators}
    compare(
        f"fuse: training step of {name}",
        (BATCH, d),
        "forward + backward + Adam",
        "float32",
        variants,
        "rhovae",
        {"sbi": 1 / times},
        rounds=ROUNDS,
        budget=math.inf,
    )
