"""Chains in float32 on which a formula of Kalman's smoother loses its digits, or all of them."""

import math

import torch
from torch import Tensor

D = 64


def case(
    offset: float = 0.0,
    log_var: float | Tensor = 0.0,
    log_r: float | Tensor = 0.0,
    logit: float | Tensor = 1.0,
) -> list[Tensor]:
    """The op's arguments, (3, D) each: y is the chain's own kind of draw around mu, near offset."""
    generator = torch.Generator().manual_seed(0)

    def full(x) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float64).expand(3, D)

    def randn() -> Tensor:
        return torch.randn(3, D, generator=generator, dtype=torch.float64)

    log_s, log_r, logit = full(log_var), full(log_r), full(logit)
    mu = offset + randn() * torch.exp(0.5 * log_s)
    state, drawn = torch.zeros(3, dtype=torch.float64), []
    for j, e in enumerate(randn().unbind(-1)):
        rho = torch.tanh(logit[:, j]) if j else torch.zeros(3, dtype=torch.float64)
        sech = 1 / torch.cosh(logit[:, j]) if j else torch.ones(3, dtype=torch.float64)
        state = rho * state + sech * e
        drawn.append(state)
    noise = torch.where(log_r < math.inf, torch.exp(0.5 * log_r), 0) * randn()
    y = mu + torch.exp(0.5 * log_s) * torch.stack(drawn, -1) + noise
    y = torch.where(log_r < math.inf, y, math.nan)
    return [x.float() for x in (y, log_r, mu, log_s, logit)]


def alternating(missing: int, value: float = 0.0) -> Tensor:
    """Every `missing`-th step is observed, with this log variance of its noise."""
    return torch.where(torch.arange(D) % missing == 0, value, math.inf)


def ramp(start: float, end: float) -> Tensor:
    return torch.linspace(start, end, D)


HARD = {
    "an offset of 100": case(offset=100.0),
    "an offset of 1000 and small scales": case(offset=1000.0, log_var=-2.0, log_r=-3.0),
    "|a| of 50": case(logit=torch.where(torch.arange(D) % 2 == 0, 50.0, -50.0)),
    "|a| up to 100": case(logit=ramp(-100.0, 100.0)),
    "correlations near one": case(logit=6.0, log_r=2.0),
    "noise of variance e^-80": case(log_r=-80.0),
    "noise of variance e^40": case(log_r=40.0),
    "noise from e^-70 to e^40": case(log_r=ramp(-70.0, 40.0)),
    "scales e^40 over noise e^-40": case(log_var=40.0, log_r=-40.0, logit=0.5),
    "every other step missing": case(log_r=alternating(2)),
    "long gaps of a chain near one": case(log_r=alternating(31, -2.0), logit=5.0),
    "no correlation": case(logit=0.0),
    "scales from e^-20 to e^20": case(log_var=ramp(-20.0, 20.0), log_r=ramp(-20.0, 20.0)),
    "all missing": case(log_r=math.inf, logit=5.0, offset=100.0),
}
