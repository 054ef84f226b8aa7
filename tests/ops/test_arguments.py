"""What the compiled kernels refuse by themselves: just what the front doors' checks refuse.

The front doors look, to name the argument, when a kernel has refused; a kernel that took what it
should not would read memory that is not its own. So each argument of a call that is right is
changed in every way below, and both are asked. (The CUDA sources include the same header and are
asked the same where there is a GPU.)
"""

import itertools

import pytest
import torch

from rhovae_kernels import backends
from rhovae_kernels.ops.op import REGISTRY

d, H = 3, 4


def calls(device):
    """A right call of every op, by name, and of a form of its own, after a slash; sizes differ from
    one another, so that none can pass."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    def prefix(*values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    x, per_row, column = draw(5, 2, d), draw(5, 2), draw(5, 2, 1)
    state = torch.tensor([1, 2], device=device)
    mask = torch.tensor([True, False, True], device=device)
    weights = [draw(H, d), draw(2 * d, H)]
    prefixes = [prefix(0, 1, 1, 2), prefix(0, 0, 3, 3, 4, 4)]
    row, needs = draw(H), [True, True, True]
    coupling = (x, x, x, mask, False, "tanh")
    bins, settings = draw(5, 2, d, H), (5.0, "linear", 0.1, 0.1, 0.1, 1.0, 0.0, "unit")
    spline = (x, bins, bins, bins[..., 1:], False, *settings)
    of_splines = [weights[0], draw(8 * d, H)]
    prefixes_of_splines = [prefixes[0], prefixes[1][::2].repeat_interleave(8)]
    return {
        "linear_scan": (column, x, False, column),
        "linear_scan_backward": (x, x, x, column, True, False, needs),
        "linear_scan_backward/recompute": (x, x, x, column, True, True, needs),
        "ar1_reparam": (x, column, column, x),
        "ar1_reparam_backward": (x, per_row, x, x, column, x, [*needs, True]),
        "ar1_reparam_rng": (x, x, column, state),
        "ar1_reparam_rng_backward": (x, per_row, x, column, column, state, needs),
        "ar1_log_prob": (x, x, column, column),
        "ar1_log_prob_backward": (per_row, x, x, x, column, [*needs, False]),
        "ar1_reparam/steps": (x, column, x, x),
        "ar1_reparam_backward/steps": (x, per_row, x, x, x, x, [*needs, True]),
        "ar1_reparam_rng/steps": (x, x, x, state),
        "ar1_reparam_rng_backward/steps": (x, per_row, x, column, x, state, needs),
        "ar1_log_prob/steps": (x, x, column, x),
        "ar1_log_prob_backward/steps": (per_row, x, x, x, x, [*needs, False]),
        "markov_reparam": (x, column, x, column, x, True),
        "markov_reparam_backward": (x, x, x, x, column, x, x, True, [*needs, True, False]),
        "philox": (state, 3, 5),
        "markov_smooth": (x, x, x, column, x),
        "markov_smooth_backward": (
            *(x, x, x, per_row),
            *(x, column, x, x, column),
            [*needs, *needs[1:]],
        ),
        "iaf_gate": (x, x, x),
        "iaf_gate_backward": (x, per_row, x, x, x, needs),
        "affine_coupling": coupling,
        "affine_coupling_backward": (x, per_row, *coupling, needs),
        "rq_spline": spline,
        "rq_spline_backward": (x, per_row, *spline, [*needs, True]),
        "masked_linear": (x, weights[0], row, prefixes[0]),
        "masked_linear_backward": (draw(5, 2, H), x, weights[0], prefixes[0], needs),
        "made_inverse": (
            *(x, draw(5, 2, H), weights, [draw(2 * d)], prefixes),
            *("elu", "softplus", 0.5),
        ),
        "made_inverse/bernoulli": (
            *(x, draw(5, 2, H), [weights[0], draw(d, H)], [draw(d)]),
            *([prefixes[0], prefixes[1][::2]], "elu", "bernoulli", 0.0),
        ),
        "made_inverse/spline": (
            *(x, draw(5, 2, H), of_splines, [draw(8 * d)], prefixes_of_splines),
            *("elu", "spline", *settings),
        ),
        "made_solve/spline": (
            *(x, x, draw(5, 2, 8 * d), [draw(5, 2, H)], of_splines, prefixes_of_splines, True),
        ),
        "made_solve": (x, x, draw(5, 2, 2 * d), [draw(5, 2, H)], weights, prefixes, True),
    }


def changed(x):
    """What could be in the place of an argument."""
    if isinstance(x, torch.Tensor):
        yield x[..., :-1]
        yield x[..., :1]
        yield x[:1]
        yield x[:0]
        yield x[None]
        yield x.flatten()
        yield x.sum()
        yield torch.cat([x, x])
        yield x.repeat_interleave(2, -1)
        yield x.mT if x.dim() > 1 else x[:, None]
        yield x.double()
        yield x.half()
        yield x.int()
        yield x.bool()
        yield torch.zeros(0, device=x.device, dtype=x.dtype)
        if x.dtype == torch.int32:
            yield x - 1
            yield x + 1
            yield x.flip(0)
            yield torch.full_like(x, 2**31 - 1)
    elif isinstance(x, list) and isinstance(x[0], bool):
        yield from (x[:-1], [*x, True], [])
    elif isinstance(x, list):
        yield from (x[:-1], [*x, x[-1]], [])
        for i, element in enumerate(x):
            yield from ([*x[:i], other, *x[i + 1 :]] for other in changed(element))
    elif isinstance(x, str):
        yield from ("", "Tanh", "none", "exp", "softclip", "bounded")
    elif isinstance(x, float):
        yield from (0.0, -0.5, float("nan"))
    elif isinstance(x, int) and not isinstance(x, bool):
        yield from (0, -1, 2**35)


# (namespace of the kernels, device), as in conftest.
COMPILED = [("rhovae_cpu", "cpu"), ("rhovae_cuda", "cpu")]
if torch.cuda.is_available() and backends.missing("cuda", "cuda") is None:
    COMPILED.append(("rhovae_cuda", "cuda"))


@pytest.fixture(params=COMPILED, ids=lambda p: f"{p[0]}-{p[1]}")
def compiled(request):
    if request.param == ("rhovae_cuda", "cpu"):
        request.getfixturevalue("cuda_host_library")
    return request.param


def refusal(name, args):
    try:
        REGISTRY[name].check_all(*args)
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize("name", calls("cpu"))
def test_a_compiled_kernel_refuses_just_what_the_check_does(name, compiled):
    namespace, device = compiled
    args = calls(device)[name]
    name = name.partition("/")[0]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", device.upper()):
        pytest.skip(f"{namespace} has no kernel of {name}")
    kernel, form = getattr(getattr(torch.ops, namespace), name), REGISTRY[name].not_in_cuda
    assert refusal(name, args) is None
    if namespace == "rhovae_cuda" and form is not None and form.of(*args):
        with pytest.raises(RuntimeError, match="do not go together"):
            kernel(*args)
        return
    kernel(*args)
    refused = 0
    for i, x in enumerate(args):
        for other in changed(x):
            if namespace == "rhovae_cuda" and same_but_for_values(x, other):
                continue  # values of a prefix are clamped: to look at them would be to wait
            these = (*args[:i], other, *args[i + 1 :])
            if refusal(name, these) is None:
                kernel(*these)
            else:
                refused += 1
                with pytest.raises(RuntimeError, match="do not go together"):
                    kernel(*these)
    assert refused > 3


def same_but_for_values(x, other):
    if isinstance(x, list) and isinstance(other, list) and len(x) == len(other):
        return all(map(same_but_for_values, x, other))
    return (
        isinstance(x, torch.Tensor)
        and isinstance(other, torch.Tensor)
        and (x.shape, x.dtype) == (other.shape, other.dtype) == (x.shape, torch.int32)
    ) or x is other


@pytest.mark.parametrize("name", calls("cpu"))
def test_two_arguments_that_fit_each_other_alone_are_refused(name):
    args, name = calls("cpu")[name], name.partition("/")[0]
    kernel = getattr(torch.ops.rhovae_cpu, name)
    places = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor)]
    for i, j in itertools.combinations(places, 2):
        for one, two in zip(changed(args[i]), changed(args[j]), strict=False):
            these = list(args)
            these[i], these[j] = one, two
            if refusal(name, these) is None:
                kernel(*these)
            else:
                with pytest.raises(RuntimeError, match="do not go together"):
                    kernel(*these)
