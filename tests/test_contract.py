"""The contract keeps what it computed of the specification, and still holds every result to it."""

import pytest
import torch
from contract import Contract, digest_of, normal, scan

from rhovae_kernels import python_ref


class OfGates(Contract):
    op = "linear_scan"
    variants = ("per_row",)
    differentiable = (0, 1)

    def inputs(self, variant, batch, d, dtype, device="cpu", seed=0):
        gates = torch.sigmoid(normal(batch, 1, dtype, device, seed))
        return [gates, normal(batch, d, dtype, device, seed + 1)]


class Counted(OfGates):
    specified_by = ("doubled",)
    doubled = False

    def __init__(self):
        self.count = 0

    def expected(self, *inputs, **settings):
        self.count += 1
        return tuple(y * (2 if self.doubled else 1) for y in super().expected(*inputs, **settings))


def of(contract, seed):
    return contract.inputs("per_row", (3,), 7, torch.float32, seed=seed)


def test_the_specification_is_computed_once_for_the_same_values():
    contract = Counted()
    contract.check(of(contract, 401), torch.float32)
    assert contract.count == 1
    for _, same in contract.layouts(of(contract, 401)):
        contract.check(same, torch.float32)
    assert contract.count == 1
    contract.check(of(contract, 402), torch.float32)
    assert contract.count == 2


def test_the_specification_is_computed_again_for_what_else_it_depends_on():
    contract = Counted()
    contract.check(of(contract, 403), torch.float32)
    contract.doubled = True
    with pytest.raises(AssertionError, match="exceeds the bound"):
        contract.check(of(contract, 403), torch.float32)


@pytest.mark.parametrize("of_what", ["call", "gradients_of"])
def test_a_wrong_result_is_caught_where_a_right_one_came_before(monkeypatch, of_what):
    contract = Counted()
    contract.check(of(contract, 404), torch.float32)
    computed = contract.count
    right = getattr(contract, of_what)
    monkeypatch.setattr(
        contract, of_what, lambda *args: tuple(x * (1 + 1e-3) for x in right(*args))
    )
    with pytest.raises(AssertionError, match=r"(output|gradient) 0.* exceeds the bound"):
        contract.check(of(contract, 404), torch.float32)
    assert contract.count == computed


def test_a_row_whose_gradient_is_one_number_is_held_to_the_scale_of_its_terms():
    contract = OfGates()
    inputs = contract.inputs("per_row", (1,), 5, torch.float64, seed=405)
    up = contract.upstream(contract.expected(*inputs))
    _, gradients, scales = contract.specified(inputs, up)
    assert gradients[0].numel() == 1
    # Each of other values in other orders.
    assert scales[0] > 0 and scales[0] != gradients[0].abs().item()


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([1.0, 2.0 + 2.0**-22]),
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([1.0, -2.0]),
        [torch.tensor([1.0, 2.0])],
    ],
    ids=["a bit", "a type", "a shape", "a sign", "a list"],
)
def test_values_that_differ_have_different_digests(other):
    x = torch.tensor([1.0, 2.0])
    assert digest_of(x) == digest_of(x.repeat_interleave(2)[::2])
    assert digest_of(x) != digest_of(other)


@pytest.mark.parametrize("steps", [0, 1, 300])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("per_row", [False, True], ids=["per step", "per row"])
@pytest.mark.parametrize("from_initial", [False, True], ids=["from 0", "from a state"])
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)], ids=str)
def test_a_scan_as_one_node_has_the_bits_and_the_gradients_of_one_for_each_step(
    batch, steps, reverse, per_row, from_initial
):
    sizes = (1 if per_row else steps, steps, 1)
    drawn = [normal(batch, n, torch.float64, "cpu", i) for i, n in enumerate(sizes)]
    leaves = [x.requires_grad_() for x in (drawn[0].tanh(), *drawn[1 : 2 + from_initial])]
    gates, tokens, *initial = leaves
    states = scan(gates, tokens, reverse, *initial)
    expected = python_ref.linear_scan(gates, tokens, reverse, *initial)
    assert torch.equal(states, expected)
    if steps:
        up = normal(batch, steps, torch.float64, "cpu", 3)
        wanted = torch.autograd.grad(expected, leaves, up)
        for g, e in zip(torch.autograd.grad(states, leaves, up), wanted, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-13, atol=1e-13)
