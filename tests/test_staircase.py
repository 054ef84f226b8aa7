"""staircase: the orders that make a mask a staircase, and the masks that have none."""

import pytest
import torch

import rhovae_kernels as rk

hypothesis = pytest.importorskip("hypothesis", reason="it draws the staircases")
given, st = hypothesis.given, hypothesis.strategies


def stepped(prefix, columns):
    return torch.arange(columns) < torch.tensor(prefix, dtype=torch.int64)[:, None]


@given(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=12), st.randoms())
def test_a_shuffled_staircase_is_put_in_order_again(columns, steps, random):
    mask = stepped(sorted(min(s, columns) for s in steps), columns)
    rows, inputs = (random.sample(range(n), n) for n in mask.shape)
    shuffled = mask[rows][:, inputs]
    prefix, row_perm, col_perm = rk.staircase(shuffled)
    assert prefix.dtype == torch.int32
    assert torch.equal(shuffled[row_perm][:, col_perm], mask)
    assert torch.equal(stepped(prefix.tolist(), columns), mask)


@given(st.integers(1, 12), st.lists(st.integers(0, 12), min_size=1, max_size=12))
def test_a_staircase_keeps_its_order(columns, steps):
    steps = sorted(min(s, columns) for s in steps)
    prefix, row_perm, col_perm = rk.staircase(stepped(steps, columns))
    assert prefix.tolist() == steps
    assert row_perm.tolist() == list(range(len(steps)))
    assert col_perm.tolist() == list(range(columns))


def test_a_layer_of_a_made_becomes_masked_linear_under_the_orders_found():
    generator = torch.Generator().manual_seed(0)
    inputs, hidden = (torch.randint(0, 9, (n,), generator=generator) for n in (30, 40))
    mask = hidden[:, None] >= inputs
    x, weight = torch.randn(5, 30, generator=generator), torch.randn(40, 30, generator=generator)
    prefix, row_perm, col_perm = rk.staircase(mask)
    y = rk.ops.masked_linear(x[:, col_perm], weight[row_perm][:, col_perm], None, prefix)
    torch.testing.assert_close(y, (x @ (mask * weight).T)[:, row_perm])


@pytest.mark.parametrize(
    "mask,rows",
    [
        ([[1, 0], [0, 1]], "rows 0 and 1"),
        ([[1, 1, 1], [0, 1, 1], [1, 0, 0]], "rows 2 and 1"),
        ([[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]], "rows 1 and 2"),
    ],
)
def test_a_mask_that_no_order_makes_a_staircase_is_refused_with_two_rows(mask, rows):
    with pytest.raises(ValueError, match=f"{rows} of mask are not nested"):
        rk.staircase(torch.tensor(mask, dtype=torch.bool))


@pytest.mark.parametrize("mask", [torch.ones(2, 2), torch.ones(3, dtype=torch.bool)])
def test_what_is_not_a_boolean_matrix_is_refused(mask):
    with pytest.raises(ValueError, match=r"mask is torch.* it must be bool of shape \(out, in\)"):
        rk.staircase(mask)
