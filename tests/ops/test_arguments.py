"""What the compiled kernels refuse by themselves: just what the front doors' checks refuse.

The front doors look, to name the argument, when a kernel has refused; a kernel that took what it
should not would read memory that is not its own. So each argument of a call that is right is
changed in every way below, and both are asked. (The CUDA sources include the same header and are
asked the same where there is a GPU.)
"""

import itertools

import pytest
import torch
from valid_calls import calls

from rhovae_kernels import backends
from rhovae_kernels.ops.op import REGISTRY


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
