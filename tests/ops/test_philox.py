"""The random words: the same bits on every backend."""

import pytest
import torch

from rhovae_kernels import python_ref


def words(rng_state, rows, columns, device="cpu"):
    return torch.ops.rhovae.philox(rng_state.to(device), rows, columns).cpu()


def test_words_match_the_published_test_vectors(backend):
    # Known answers of Philox4x32-10 for counters and keys of zeros and of ones.
    zero = words(torch.tensor([0, 0]), 1, 4, backend.device)[0].tolist()
    assert [w & 0xFFFFFFFF for w in zero] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("shape", [(0, 4), (0, 4099), (3, 0), (1, 1), (5, 3), (7, 13), (2, 4099)])
def test_words_are_the_same_bits_as_the_specification(backend, shape):
    for state in ([0, 0], [-1, -1], [2**63 - 1, -(2**63)], [2**32 + 7, 2**40 + 3]):
        state = torch.tensor(state)
        actual = words(state, *shape, backend.device)
        assert actual.dtype == torch.int32
        assert torch.equal(actual, python_ref.philox(state, *shape))


def test_a_strided_state_is_read_right(backend):
    state = torch.tensor([5, 99, 6])[::2].to(backend.device)
    assert torch.equal(words(state, 2, 5, backend.device), python_ref.philox(state.cpu(), 2, 5))


@pytest.mark.parametrize(
    "state,rows,columns,argument",
    [
        (torch.zeros(2), 1, 1, "rng_state"),
        (torch.zeros(3, dtype=torch.int64), 1, 1, "rng_state"),
        (torch.zeros(2, dtype=torch.int64), -1, 1, "rows"),
        (torch.zeros(2, dtype=torch.int64), 2**32, 1, "rows"),
        (torch.zeros(2, dtype=torch.int64), 1, -1, "columns"),
    ],
)
def test_a_wrong_argument_is_named(backend, state, rows, columns, argument):
    with pytest.raises(ValueError, match=f"philox: {argument} is .*must be"):
        words(state, rows, columns, backend.device)


def test_it_compiles_and_passes_opcheck(backend):
    state = torch.tensor([1, 2], device=backend.device)
    torch.library.opcheck(torch.ops.rhovae.philox.default, (state, 3, 5))
    compiled = torch.compile(torch.ops.rhovae.philox, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(state, 3, 5).cpu(), words(state, 3, 5, backend.device))
