"""Networks for made_inverse and made_solve, and the contract of ops that take lists of tensors."""

import math
from itertools import pairwise

import torch
from contract import SPLIT_SHAPES, Contract, detached, is_floating, normal


def degrees(d, hidden, heads=2):
    """Sorted degrees of inputs, hidden units and heads: all that there can be, in turn."""
    per_layer = [torch.arange(d)]
    per_layer += [torch.arange(h).remainder(max(d - 1, 1)).sort()[0] for h in hidden]
    return [*per_layer, torch.arange(d).repeat_interleave(heads)]


def prefixes_of(per_layer):
    """How many inputs of a layer have at most a unit's degree; a head sees lower ones only."""
    *hidden, heads = per_layer
    found = [torch.searchsorted(below, here, right=True) for below, here in pairwise(hidden)]
    return [p.int() for p in (*found, torch.searchsorted(hidden[-1], heads))]


def parameters(sizes, dtype, device, seed):
    """Weights and biases of all layers, such that the numbers in the network stay near 1."""
    weights, biases = [], []
    for i, (read, rows) in enumerate(pairwise(sizes)):
        w = normal((rows,), read, torch.float64, "cpu", 100 * seed + 2 * i)
        weights.append((w / math.sqrt(max(read, 1))).to(dtype).to(device))
        b = 0.3 * normal((), rows, torch.float64, "cpu", 100 * seed + 2 * i + 1)
        biases.append(b.to(dtype).to(device))
    return weights, biases


def network(batch, d, hidden, dtype, device="cpu", seed=0, heads=2):
    """y, offset, weights, biases, prefixes."""
    weights, biases = parameters((d, *hidden, heads * d), dtype, device, seed)
    y = normal(batch, d, dtype, device, 100 * seed + 50)
    context = 0.3 * normal(batch, hidden[0], torch.float64, "cpu", 100 * seed + 51)
    offset = (context + biases[0].cpu()).to(dtype).to(device)
    prefixes = [p.to(device) for p in prefixes_of(degrees(d, hidden, heads))]
    return y, offset, weights, biases[1:], prefixes


class OverLists(Contract):
    """The contract of an op that takes lists of tensors: its inputs here are one flat list.

    Weights, biases and prefixes have no rows of the batch: what the contract says about rows is
    said of the first `rows` inputs, and of weights and biases where it holds for them too.
    """

    rows: int
    # The specification runs the network once for each dimension.
    longest_drawn = 40
    written_shapes = (((3,), 1), ((5,), 17), ((2,), 210))
    repeated_shapes = (((7,), 33), ((40,), 130))
    no_rows = (((2, 0, 3), 40), ((0,), 130))
    # A row is walked by one thread: what is split is the batch, into slices for more blocks than
    # run at once.
    split_shapes = dict.fromkeys(SPLIT_SHAPES, ((300,), 5))

    # Several blocks of units in every layer, networks wide and narrow, several slices of the batch
    # with an end in one.
    of_several_tiles = (
        ((5,), 6, (150, 131)),
        ((70,), 9, (19, 30)),
        ((67,), 24, (100, 90)),
    )

    def has_rows(self, i, x):
        return i < self.rows

    def long_rows_cost_seconds(self, backend):
        return backend.slow

    def test_rows_of_several_tiles_match_the_specification(self, backend):
        for batch, d, hidden in self.of_several_tiles[: 2 if backend.slow else None]:
            for dtype in (torch.float32, torch.bfloat16):
                for variant in self.variants:
                    inputs = self.inputs(variant, batch, d, dtype, backend.device, hidden=hidden)
                    self.check(inputs, dtype, f"{variant} {batch} {d} {hidden}")

    def test_rows_more_than_two_to_the_31_elements_apart_are_addressed(self, backend):
        # Layers of two units: their weights have two rows, as the batch has.
        inputs = self.inputs(
            self.variants[0], (2,), 37, torch.bfloat16, backend.device, hidden=(2, 2)
        )
        far = 2**31 + 8
        most = max(x.shape[-1] for x in inputs if is_floating(x))
        memory = torch.empty(far + most, dtype=torch.bfloat16, device=backend.device)
        tried = 0
        for i, x in enumerate(inputs):
            if is_floating(x) and x.shape[0] == 2 and x.dim() == 2:
                view = memory.as_strided(x.shape, (far, 1))
                apart = [view.copy_(x) if j == i else y for j, y in enumerate(inputs)]
                for y, e in zip(self.call(*apart), self.call(*inputs), strict=True):
                    assert torch.equal(y, e), f"argument {i}"
                tried += 1
        assert tried == self.rows + 2

    def batchings(self, inputs):
        # A weight or a bias has no batch in front: those of an entry are made of it.
        floating = [i for i, x in enumerate(inputs) if is_floating(x)]
        rows = range(self.rows)
        for batched in (rows, [0], [self.rows - 1], [self.rows], floating):
            args = list(inputs)
            for i in floating:
                if i < self.rows and i not in batched:
                    args[i] = inputs[i][0]
                elif i >= self.rows and i in batched:
                    entries = range(len(inputs[0]))
                    args[i] = torch.stack([inputs[i] * (1 + 0.1 * b) for b in entries])
            yield tuple(0 if i in batched else None for i in range(len(args))), args

    def test_vmap_over_prefixes_equals_a_loop(self, backend):
        """Of entries with a network each, as `torch.func.stack_module_state` makes them."""
        for variant, inputs in self.each_variant((3, 2), 4, torch.float64, backend.device):
            tensors = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
            every = [i for i in tensors if is_floating(inputs[i])]
            integers = [i for i in tensors if i not in every]
            for floating in ([], every):
                args = [x[0] if i < self.rows and not floating else x for i, x in enumerate(inputs)]
                for i in integers:
                    args[i] = torch.stack([(inputs[i] - b).clamp_min(0) for b in range(3)])
                for i in floating:
                    if i >= self.rows:
                        args[i] = torch.stack([inputs[i] * (1 + 0.1 * b) for b in range(3)])
                batched = {*integers, *floating}
                in_dims = tuple(0 if i in batched else None for i in range(len(args)))
                for i in (0, self.differentiable[-1]):
                    self.check_vmap_of_grad(in_dims, args, i, f"{variant} {in_dims}")

    def test_vmap_of_grad_equals_a_loop(self, backend):
        for variant, inputs in self.each_variant((3, 2), 4, torch.float64, backend.device):
            for in_dims, args in self.batchings(inputs):
                for i in (0, self.differentiable[-1]):
                    self.check_vmap_of_grad(in_dims, args, i, f"{variant} {in_dims}")

    def test_a_backward_pass_within_autocast_is_that_outside(self, backend):
        for variant, inputs in self.each_variant((3,), 9, torch.float32, backend.device):
            leaves = detached(inputs, self.differentiable)
            asked = [leaves[i] for i in self.differentiable]
            with torch.autocast(backend.device, torch.bfloat16):
                outputs = self.call(*leaves)
                up = self.upstream(outputs)
                within = torch.autograd.grad(outputs, asked, up, retain_graph=True)
            outside = torch.autograd.grad(outputs, asked, up)
            for g, e in zip(within, outside, strict=True):
                assert torch.equal(g, e), variant


class Solve(OverLists):
    """The contract of made_solve, of `heads` heads a dimension, of standard deviation `spread`."""

    heads: int
    spread: float
    op = "made_solve"
    variants = ("J", "Jᵀ")
    # g, a, heads, two slopes, three weights.
    differentiable = (0, 1, 2, 3, 4, 5, 6, 7)
    rows = 5
    names = ("g", "a", "heads", "s1", "s2", "w1", "w2", "w3", "p1", "p2", "p3", "transpose")

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0, hidden=None):
        hidden = hidden or (min(2 * d + 1, 13), min(d + 2, 17))
        g, _, weights, _, prefixes = network(
            batch, d, hidden, torch.float64, "cpu", seed, self.heads
        )
        a = torch.exp(0.3 * normal(batch, d, torch.float64, "cpu", 100 * seed + 60))
        heads = self.spread * normal(batch, self.heads * d, torch.float64, "cpu", 100 * seed + 61)
        slopes = [
            torch.sigmoid(normal(batch, h, torch.float64, "cpu", 100 * seed + 62 + i))
            for i, h in enumerate(hidden)
        ]
        floating = [x.to(dtype).to(device) for x in (g, a, heads, *slopes, *weights)]
        return [*floating, *(p.to(device) for p in prefixes), variant == "Jᵀ"]

    def nested(self, flat):
        g, a, heads, *rest = flat
        return g, a, heads, list(rest[:2]), list(rest[2:5]), list(rest[5:8]), rest[8]

    def test_under_autocast_it_runs_in_float32(self, backend):
        # It is called by backward passes, which autocast leaves alone.
        inputs = self.inputs("J", (3,), 9, torch.float32, backend.device)
        with torch.autocast(backend.device, torch.bfloat16):
            assert self.call(*inputs)[0].dtype == torch.float32
