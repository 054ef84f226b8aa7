"""`fresh_rng_state`: noise that PyTorch's own generator decides, recomputation included."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import rhovae_kernels as rk


def draw(mu, log_var, rho_logit):
    return rk.ops.ar1_reparam_rng(mu, log_var, rho_logit, rk.fresh_rng_state())[:2]


def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 7), (5, 7), (5, 1))
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def gradients(function, seed=3):
    args = inputs()
    torch.manual_seed(seed)
    z, kl = function(*args)
    (z.square().sum() + kl.sum()).backward()
    return z, [x.grad for x in args]


def of_its_own_noise(function):
    """∂Σz/∂log s_j is ½(z_j − μ_j): of the noise that made z, and of no other."""
    mu, log_var, rho_logit = inputs()
    torch.manual_seed(3)
    z, _ = function(mu, log_var, rho_logit)
    (gradient,) = torch.autograd.grad(z.sum(), log_var)
    torch.testing.assert_close(gradient, (z - mu).detach() / 2)


def test_the_seed_decides_it_and_each_draw_is_another():
    torch.manual_seed(0)
    first, second = rk.fresh_rng_state(), rk.fresh_rng_state()
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, rk.fresh_rng_state())
    assert first.dtype == torch.int64 and first.shape == (2,)
    many = torch.stack([rk.fresh_rng_state() for _ in range(200)])
    # Every bit is drawn.
    bits = (many[..., None] >> torch.arange(64)) & 1
    assert bits.amin((0, 1)).eq(0).all() and bits.amax((0, 1)).eq(1).all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_by_checkpointing_it_draws_the_same_noise(reentrant):
    z, wanted = gradients(draw)
    again, found = gradients(lambda *x: checkpoint(draw, *x, use_reentrant=reentrant))
    assert torch.equal(z, again)
    for g, e in zip(found, wanted, strict=True):
        assert torch.equal(g, e)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_its_gradients_are_those_of_its_own_noise(backend):
    torch._dynamo.reset()
    of_its_own_noise(torch.compile(draw, fullgraph=True, backend=backend))


def test_compiled_and_checkpointed_its_gradients_are_those_of_its_own_noise():
    torch._dynamo.reset()

    def recomputed(*x):
        return checkpoint(draw, *x, use_reentrant=False)

    of_its_own_noise(torch.compile(recomputed, fullgraph=True, backend="aot_eager"))


def test_a_state_advanced_inside_a_checkpointed_function_is_the_callers_own():
    """What the docstring warns of: computed again, it draws other noise."""
    state = torch.tensor([0, 0])

    def advance(mu, log_var, rho_logit):
        z, kl, _ = rk.ops.ar1_reparam_rng(mu, log_var, rho_logit, state)
        state[1] += 1
        return z, kl

    _, wanted = gradients(lambda *x: (state.zero_(), advance(*x))[1])
    _, found = gradients(
        lambda *x: (state.zero_(), checkpoint(advance, *x, use_reentrant=False))[1]
    )
    assert not torch.equal(found[1], wanted[1])
