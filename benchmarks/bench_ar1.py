"""ar1_reparam on the CPU, against what a VAE does today.

The baselines are given the same noise, so that only sampling, KL and their gradients are timed.
Ours is timed for both covariances; the diagonal code, as everyone writes it, has (B, d) log
variances.
"""

import pytest
import torch
from competitors import diagonal, growing_cat, libraries, loop
from harness import CLONE, WrongResult, forward_backward, verify

from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost

OPS = torch.ops.rhovae


def leaves(rows, d, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    mu, log_var, row_log_var, logit = randn(rows, d), randn(rows, d), randn(rows, 1), randn(rows, 1)
    parameters = [x.mul_(0.5).requires_grad_() for x in (mu, log_var, row_log_var, logit)]
    return *parameters, randn(rows, d), (randn(rows, d), randn(rows))


@pytest.mark.parametrize(
    "rows,d,limits",
    [
        (128, 32, {"eager diagonal": 0.75, "compiled diagonal": 1.0, "loop": 1 / 6}),
        (512, 64, {"eager diagonal": 0.5, "compiled diagonal": 1.0, "loop": 1 / 12}),
        (4096, 1024, {"eager diagonal": 0.25, "compiled diagonal": 1.0, "loop": 1 / 20}),
    ],
)
def test_forward_and_backward(compare, rows, d, limits):
    mu, log_var, row_log_var, logit, eps, up = leaves(rows, d)
    ar1 = [mu, row_log_var, logit]
    ours = forward_backward(lambda: OPS.ar1_reparam(*ar1, eps), ar1, up)
    full = [mu, log_var, logit]
    exact = [x.detach().double().requires_grad_() for x in ar1]
    expected = python_ref.ar1_reparam_backward(
        up[0].double(), up[1].double(), *exact, eps.double()
    )[:3]
    verify(ours(), expected)

    forward = cost("ar1_reparam", *ar1, eps)
    backward = cost("ar1_reparam_backward", *up, *ar1, eps, (True, True, True, False))

    compiled = torch.compile(diagonal, dynamic=False)
    state = torch.tensor([1, 2])
    variants = {
        "rhovae s·R": ours,
        "rhovae D·R·D": forward_backward(lambda: OPS.ar1_reparam(*full, eps), full, up),
        "rhovae, noise drawn inside": forward_backward(
            lambda: OPS.ar1_reparam_rng(*ar1, state)[:2], ar1, up
        ),
        "eager diagonal": forward_backward(lambda: diagonal(mu, log_var, eps), [mu, log_var], up),
        "eager diagonal, noise drawn": forward_backward(
            lambda: diagonal(mu, log_var, torch.randn_like(mu)), [mu, log_var], up
        ),
        "compiled diagonal": forward_backward(
            lambda: compiled(mu, log_var, eps), [mu, log_var], up
        ),
    }
    others = {"loop": loop, "sources' loop": growing_cat, **libraries()}
    if d <= 64:  # unrolled by the compiler: a thousand steps take it many minutes
        others["compiled reference"] = torch.compile(python_ref.ar1_reparam, dynamic=False)
    wrong = {}
    for name, function in others.items():
        call = forward_backward(lambda function=function: function(*ar1, eps), ar1, up)
        try:
            verify(call(), expected, 1e-3)
            variants[name] = call
        except WrongResult as error:
            wrong[name] = str(error)
    compare(
        "ar1_reparam",
        (rows, d),
        "forward+backward",
        "float32",
        variants,
        "rhovae s·R",
        limits,
        wrong=wrong,
        cost=Cost.total(forward, backward),
    )


@pytest.mark.parametrize(
    "rows,d,limits",
    [
        (128, 32, {"rhovae D·R·D": 1.3, "eager diagonal": 1.0}),
        (512, 64, {"eager diagonal": 1.0}),
        (4096, 1024, {"rhovae D·R·D": 1.6, "eager diagonal": 1.0}),
    ],
)
def test_a_correlation_for_each_step(compare, rows, d, limits):
    mu, log_var, _, logit, eps, up = leaves(rows, d)
    logits = leaves(rows, d, seed=1)[1]
    steps, full = [mu, log_var, logits], [mu, log_var, logit]
    ours = forward_backward(lambda: OPS.ar1_reparam(*steps, eps), steps, up)
    exact = [x.detach().double() for x in (*steps, eps)]
    expected = python_ref.ar1_reparam_backward(up[0].double(), up[1].double(), *exact)[:3]
    verify(ours(), expected)
    needs = (True, True, True, False)
    compare(
        "ar1_reparam",
        (rows, d),
        "forward+backward",
        "float32",
        {
            "rhovae, ρ a step": ours,
            "rhovae D·R·D": forward_backward(lambda: OPS.ar1_reparam(*full, eps), full, up),
            "eager diagonal": forward_backward(
                lambda: diagonal(mu, log_var, eps), [mu, log_var], up
            ),
        },
        "rhovae, ρ a step",
        limits,
        note="a correlation for each step",
        cost=Cost.total(
            cost("ar1_reparam", *steps, eps),
            cost("ar1_reparam_backward", *up, *steps, eps, needs),
        ),
    )


def test_forward_bandwidth(compare):
    # At least 60% of the bandwidth of a clone.
    rows, d = 16384, 1024
    mu, _, row_log_var, logit, eps, _ = (
        x.detach() if torch.is_tensor(x) else x for x in leaves(rows, d)
    )
    z, kl = OPS.ar1_reparam(mu, row_log_var, logit, eps)
    some = slice(0, 64)
    exact = python_ref.ar1_reparam(*(x[some].double() for x in (mu, row_log_var, logit, eps)))
    verify((z[some], kl[some]), exact)
    compare(
        "ar1_reparam",
        (rows, d),
        "forward",
        "float32",
        {"rhovae s·R": lambda: OPS.ar1_reparam(mu, row_log_var, logit, eps)},
        "rhovae s·R",
        {CLONE: 1 / 0.6},
        note="bandwidth",
        cost=cost("ar1_reparam", mu, row_log_var, logit, eps),
    )


def test_few_long_rows_use_all_cores(compare):
    rows, d = 4, 1_000_000
    mu, _, row_log_var, logit, eps, _ = (
        x.detach() if torch.is_tensor(x) else x for x in leaves(rows, d)
    )
    threads = torch.get_num_threads()

    def with_threads(n):
        def call():
            torch.set_num_threads(n)
            try:
                return OPS.ar1_reparam(mu, row_log_var, logit, eps)
            finally:
                torch.set_num_threads(threads)

        return call

    one, all_threads = with_threads(1)(), with_threads(threads)()
    assert all(torch.equal(a, b) for a, b in zip(one, all_threads, strict=True))
    variants = {
        f"rhovae, {threads} threads": with_threads(threads),
        "rhovae, 1 thread": with_threads(1),
    }
    compare(
        "ar1_reparam",
        (rows, d),
        "forward",
        "float32",
        variants,
        f"rhovae, {threads} threads",
        {"rhovae, 1 thread": 1.0},
    )
