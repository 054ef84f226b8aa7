"""The contract keeps what it computed of the specification, and still holds every result to it."""

import pytest
import torch
from contract import Contract, digest_of, normal


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

    def expected(self, *inputs):
        self.count += 1
        return tuple(y * (2 if self.doubled else 1) for y in super().expected(*inputs))


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


@pytest.mark.parametrize("of_what", ["call", "gradients"])
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
