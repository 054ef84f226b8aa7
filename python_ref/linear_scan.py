"""First-order linear recurrence: x_t = a_t x_{t-1} + b_t."""

import torch
from torch import Tensor

from .precision import upcast


def linear_scan(
    gates: Tensor, tokens: Tensor, reverse: bool = False, initial: Tensor | None = None
) -> Tensor:
    """x_t = a_t x_{t-1} + b_t for t = 1…T (reversed: x_t = a_t x_{t+1} + b_t for t = T…1).

    What comes before the first step in that direction is `initial` (…,1), or 0. gates (…,T) or
    (…,1), tokens (…,T); returns states (…,T).
    """
    a, b = upcast(gates, tokens)
    steps = list(zip(a.expand(b.shape).unbind(-1), b.unbind(-1), strict=True))
    state = b.new_zeros(b.shape[:-1]) if initial is None else initial[..., 0].to(b.dtype)
    states = []
    for a_t, b_t in reversed(steps) if reverse else steps:
        state = a_t * state + b_t
        states.append(state)
    if not states:
        return tokens.clone()
    return torch.stack(states[::-1] if reverse else states, -1).to(tokens.dtype)


def shift(x: Tensor, reverse: bool = False, initial: Tensor | None = None) -> Tensor:
    """The value one step earlier in the direction of the scan; before the first `initial`, or 0."""
    if x.shape[-1] == 0:
        return x
    before = torch.zeros_like(x[..., :1]) if initial is None else initial
    return torch.cat([x[..., 1:], before] if reverse else [before, x[..., :-1]], -1)


def first(x: Tensor, reverse: bool = False) -> Tensor:
    """The value of the first step in the scan's direction, (…,1); (…,0) where there is no step."""
    return x[..., -1:] if reverse else x[..., :1]


def linear_scan_backward(
    grad: Tensor,
    gates: Tensor,
    kept: Tensor,
    initial: Tensor | None = None,
    reverse: bool = False,
    recompute: bool = False,
    scan=linear_scan,
) -> tuple[Tensor, Tensor, Tensor]:
    """λ_t = g_t + a_{t+1} λ_{t+1} (the same scan, the other way); ∂b = λ; ∂a_t = λ_t x_{t-1}.

    x_0 is `initial`, whose gradient is a_1 λ_1. ∂a is summed over t where gates is (…,1). `kept`
    holds the states x, or, to `recompute` them without their rounding, the tokens b. `scan` is the
    recurrence to use: another implementation of `linear_scan` makes this formula fast and keeps it
    differentiable.
    """
    g, a, x = upcast(grad, gates, kept)
    x_0 = None if initial is None else initial.to(x.dtype)
    if recompute:
        x = scan(a, x, reverse, x_0)
    # One gate per row is the same for every step; else the gate of step t+1 leads back to step t.
    a_next = a if a.shape[-1] == 1 else shift(a, not reverse)
    adjoint = scan(a_next, g, not reverse)
    d_gates = adjoint * shift(x, reverse, x_0)
    if gates.shape[-1] == 1:
        d_gates = d_gates.sum(-1, keepdim=True)
    # A sum of one term, or of none where there are no steps.
    d_initial = (first(a, reverse) * first(adjoint, reverse)).sum(-1, keepdim=True)
    return d_gates.to(gates.dtype), adjoint.to(grad.dtype), d_initial.to(grad.dtype)
