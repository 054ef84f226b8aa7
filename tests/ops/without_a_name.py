"""What the ops compute where torch lacks a private name: a program, `without_a_name.py NAME…`.

Of each name, a line of JSON. It is taken away before the package is imported; where it is empty,
nothing is.
"""

import json
import math
import os
import pkgutil
import sys

import torch
from torch.autograd import forward_ad, grad

# Each name has a process of its own. What takes long is done once, before: torch is imported, and
# what it imports and compiles at the first transform and the first dual number.
torch.func.grad(torch.sin)(torch.ones(()))
with forward_ad.dual_level():
    forward_ad.make_dual(torch.ones(1), torch.ones(1))
for NAME in sys.argv[1:]:  # noqa: B007 (below it is read)
    if os.fork() == 0:
        break
    os.wait()
else:
    sys.exit()

resolve_name = pkgutil.resolve_name


def without(name):
    if name == NAME:
        raise AttributeError(name)
    return resolve_name(name)


pkgutil.resolve_name = without

import rhovae_kernels as rk  # noqa: E402
from rhovae_kernels.distributions import DiagonalNormal, NormalizingFlow  # noqa: E402
from rhovae_kernels.ops import eager  # noqa: E402
from rhovae_kernels.ops.op import REGISTRY  # noqa: E402

generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=generator)


def integers(*values):
    return torch.tensor(values, dtype=torch.int32)


gates, tokens = draw(2, 3).tanh(), draw(2, 3).requires_grad_()


def scan(x):
    return rk.ops.linear_scan(gates, x)


def energy(x):
    return scan(x).square().sum()


def recorded():
    (first,) = grad(energy(tokens), tokens, create_graph=True)
    return scan(tokens), first, *grad(first.square().sum(), tokens)


def without_gradients():
    with torch.no_grad():
        states = scan(tokens)
    assert not states.requires_grad
    with torch.inference_mode():
        return states, scan(tokens)


def of_lists():
    weights, bias = [draw(4, 3), draw(6, 4).requires_grad_()], draw(6)
    prefixes = [integers(0, 1, 1, 2), integers(0, 0, 3, 3, 4, 4)]
    x, log_det = rk.ops.made_inverse(tokens, draw(2, 4), weights, [bias], prefixes)
    return x, log_det, *grad(x.sum() + log_det.sum(), (tokens, weights[1]))


def autocast():
    weight, prefix = draw(3, 3), integers(0, 1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = rk.ops.masked_linear(tokens, weight, None, prefix), scan(tokens.bfloat16())
    assert (y.dtype, z.dtype) == (torch.bfloat16, torch.float32)
    return y, z, *grad(y.float().sum() + z.sum(), tokens)


def batched():
    per_row = torch.func.grad(lambda g, x: rk.ops.linear_scan(g, x).square().sum())
    return torch.vmap(rk.ops.linear_scan)(gates, tokens), torch.vmap(per_row)(gates, tokens)


def left_by_a_closed_transform():
    kept = []
    torch.func.vjp(lambda x: kept.append(x) or x.sum(), tokens)
    of_gates = torch.func.grad(lambda g: rk.ops.linear_scan(g, kept[0]).sum())(gates)
    return scan(kept[0]), of_gates, *grad(energy(kept[0]), tokens)


def forward_mode():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tokens.detach(), gates)
        return (forward_ad.unpack_dual(scan(dual)).tangent,)


def forward_mode_of_a_transform():
    return (torch.func.jacfwd(energy)(tokens.detach()),)


def forward_mode_twice():
    return (torch.func.jacfwd(torch.func.jacfwd(energy))(tokens.detach()),)


class Doubling(rk.nn.Transform):
    def call_and_log_det(self, x, context=None):
        return 2 * x, x.new_full(x.shape[:-1], x.shape[-1] * math.log(2))

    def inverse(self, y, context=None):
        return y / 2, y.new_full(y.shape[:-1], -y.shape[-1] * math.log(2))


class Doubled(rk.nn.Flow):
    samples_in_parallel = True


def density_of_a_sample():
    base = DiagonalNormal(torch.zeros(3), torch.zeros(3))
    q = NormalizingFlow(Doubled(3, [Doubling()]), base=base)
    torch.manual_seed(0)
    with torch.no_grad():
        z = q.rsample()
        before = q.log_prob(z)
        return before, q.log_prob(z.mul_(2))


RESULTS = (
    recorded,
    without_gradients,
    of_lists,
    autocast,
    batched,
    left_by_a_closed_transform,
    forward_mode,
    forward_mode_of_a_transform,
    forward_mode_twice,
    density_of_a_sample,
)


def outcome(result):
    try:
        return [x.tolist() for x in result()]
    except RuntimeError as error:
        return str(error)


absent = [name for name in (*eager.SHORT_WAY, *eager.OTHERS) if eager.find(name) is None]
scan_op = REGISTRY["linear_scan"]
through_the_dispatcher = scan_op.call is scan_op.overload
results = {result.__name__: outcome(result) for result in RESULTS}
print(json.dumps([NAME, absent, through_the_dispatcher, results]), flush=True)
# Taking torch down again, module by module, would take each process a second.
os._exit(0)
