"""A neural spline flow on the CPU, against zuko's of the same weights: samples, a training step.

Its settings are zuko's own: two hidden layers with ReLUs, eight bins on [−5, 5].
"""

import pytest
import torch
from competitors import zuko_splines
from harness import forward_backward, verify

ROWS = 5000


@torch.no_grad()
@pytest.mark.parametrize("d,times", [(8, 6), (32, 20)])
def test_sampling(compare, d, times):
    pytest.importorskip("zuko")
    theirs, ours = zuko_splines(d)
    noise = torch.randn(ROWS, d, generator=torch.Generator().manual_seed(1))
    verify([ours.to_data(noise)[0]], [theirs().transform.inv(noise)], 1e-3)
    compare(
        "NSF",
        (ROWS, d),
        "sampling",
        "float32",
        {"rhovae": lambda: ours.to_data(noise)[0], "zuko": lambda: theirs().transform.inv(noise)},
        "rhovae",
        {"zuko": 1 / times},
    )


@pytest.mark.parametrize("rows,d", [(200, 8), (5000, 8)])
def test_training(compare, rows, d):
    pytest.importorskip("zuko")
    theirs, ours = zuko_splines(d)
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(1))
    verify([ours().log_prob(x)], [theirs().log_prob(x)])
    variants = {
        name: forward_backward(
            lambda flow=flow: flow().log_prob(x).mean(), list(flow.parameters()), None
        )
        for name, flow in (("rhovae", ours), ("zuko", theirs))
    }
    limits = {"zuko": 1 / 1.3}
    compare("NSF", (rows, d), "forward+backward", "float32", variants, "rhovae", limits)
