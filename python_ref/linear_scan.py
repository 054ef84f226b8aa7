"""First-order linear recurrence: x_t = a_t x_{t-1} + b_t."""

import torch
from torch import Tensor

from python_ref.precision import upcast


def linear_scan(gates: Tensor, tokens: Tensor, reverse: bool = False) -> Tensor:
    """x_t = a_t x_{t-1} + b_t with x_{-1} = 0 (reversed: x_t = a_t x_{t+1} + b_t with x_T = 0).

    gates (…,T) or (…,1), tokens (…,T); returns states (…,T).
    """
    a, b = upcast(gates, tokens)
    steps = list(zip(a.expand(b.shape).unbind(-1), b.unbind(-1), strict=True))
    state = b.new_zeros(b.shape[:-1])
    states = []
    for a_t, b_t in reversed(steps) if reverse else steps:
        state = a_t * state + b_t
        states.append(state)
    if not states:
        return tokens.clone()
    return torch.stack(states[::-1] if reverse else states, -1).to(tokens.dtype)


def shift(x: Tensor, reverse: bool = False) -> Tensor:
    """The value one step earlier in the direction of the scan; zero before the first."""
    if x.shape[-1] == 0:
        return x
    zero = torch.zeros_like(x[..., :1])
    return torch.cat([x[..., 1:], zero] if reverse else [zero, x[..., :-1]], -1)


def linear_scan_backward(
    grad: Tensor, gates: Tensor, states: Tensor, reverse: bool = False, scan=linear_scan
) -> tuple[Tensor, Tensor]:
    """λ_t = g_t + a_{t+1} λ_{t+1} (the same scan, the other way); ∂b = λ; ∂a_t = λ_t x_{t-1}.

    ∂a is summed over t where gates is (…,1). `scan` is the recurrence to use: another
    implementation of `linear_scan` makes this formula fast and keeps it differentiable.
    """
    g, a, x = upcast(grad, gates, states)
    # One gate per row is the same for every step; else the gate of step t+1 leads back to step t.
    a_next = a if a.shape[-1] == 1 else shift(a, not reverse)
    adjoint = scan(a_next, g, not reverse)
    d_gates = adjoint * shift(x, reverse)
    if gates.shape[-1] == 1:
        d_gates = d_gates.sum(-1, keepdim=True)
    return d_gates.to(gates.dtype), adjoint.to(grad.dtype)
