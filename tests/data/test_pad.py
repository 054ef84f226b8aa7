"""Sequences of several lengths: how they become one tensor, and what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import rhovae_kernels as rk
from rhovae_kernels.data.splits import as_source

NAN = torch.nan


class Ragged(Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.full((i + 1, 2), float(i))


def test_beyond_the_end_of_a_sequence_there_is_nan():
    one, other = torch.rand(3, 2), torch.rand(5, 2)
    x = rk.data.pad([one, other])
    assert x.shape == (2, 5, 2) and x.dtype is torch.float32
    assert torch.equal(x[0, :3], one) and x[0, 3:].isnan().all() and torch.equal(x[1], other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_keep_their_type_and_one_feature_needs_no_dimension(dtype):
    x = rk.data.pad([np.zeros(3, dtype), np.ones(1, dtype)])
    assert x.shape == (2, 3, 1) and x.dtype is torch.from_numpy(np.zeros(1, dtype)).dtype


@pytest.mark.parametrize("lengths", [[3, 1], np.array([3, 1]), torch.tensor([3, 1])], ids=type)
def test_of_values_and_lengths_what_was_there_before_does_not_matter(lengths):
    values = torch.rand(2, 4, 2)
    x = rk.data.pad(values, lengths)
    assert x.shape == (2, 3, 2) and torch.equal(x[0], values[0, :3])
    assert torch.equal(x[1, 0], values[1, 0]) and x[1, 1:].isnan().all()
    assert torch.equal(rk.data.pad(values[..., 0], lengths).nan_to_num(), x[..., :1].nan_to_num())


def test_a_missing_step_stays_missing():
    x = torch.rand(4, 2)
    x[1] = NAN
    assert torch.equal(rk.data.pad([x])[0].isnan(), x.isnan())


step = torch.rand(4, 2)
partly = step.clone()
partly[2, 1] = NAN
ends = step.clone()
ends[3] = NAN


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([],), "sequences is empty"),
        ((torch.rand(3, 4, 2),), r"one tensor or array of shape \(3, 4, 2\): give lengths"),
        (([step, torch.rand(4, 3)],), r"sequences\[1\] has 3 features, sequences\[0\] 2"),
        (([step, torch.rand(0, 2)],), r"sequences\[1\] is of shape \(0, 2\)"),
        (([torch.rand(2, 3, 4)],), r"sequences\[0\] is of shape \(2, 3, 4\)"),
        (([step, step.double()],), "sequences are of types"),
        (([np.ma.masked_greater(np.ones((3, 1)), 0.5)],), r"sequences\[0\] is masked"),
        (([step.int()],), r"sequences\[0\] is of type torch.int32, which holds no NaN"),
        (([partly],), r"sequences\[0\] holds a NaN in some of the 2 features of step 2"),
        (([step, ends],), r"sequences\[1\] has 4 steps, the last of them missing"),
        (([step + NAN],), r"sequences\[0\] has 4 steps, the last of them missing"),
        ((torch.rand(2, 4, 2), [5, 1]), r"lengths\[0\] is 5; it must be from 1 to 4"),
        ((torch.rand(2, 4, 2), [4, -1]), r"lengths\[1\] is -1; it must be from 1 to 4"),
        ((torch.rand(2, 4, 2), [0, 1]), r"lengths\[0\] is 0; it must be from 1 to 4"),
        ((torch.rand(2, 4, 2), [4]), r"lengths is of shape \(1,\).*each of the 2 sequences"),
        ((torch.rand(2, 4, 2), [1.0, 2.0]), "lengths is of shape .* must hold an integer"),
        ((torch.rand(4), [1, 2, 1, 1]), r"values is of shape \(4,\)"),
    ],
)
def test_what_are_no_sequences_is_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        rk.data.pad(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([[1.0, 2.0]],), r"sequences\[0\] is a list; it must be a tensor or an array"),
        (([(step, 1)],), r"sequences\[0\] is a tuple"),
        (([step, step], [1, 2]), "values is a list; with lengths it must be one tensor"),
    ],
)
def test_other_kinds_of_things_are_named(arguments, says):
    with pytest.raises(TypeError, match=says):
        rk.data.pad(*arguments)


class TestSources:
    PAD = r"rhovae_kernels\.data\.pad"

    def test_a_ragged_list_handed_in_names_what_makes_a_tensor_of_it(self, tmp_path):
        sequences = [torch.rand(3, 1), torch.rand(5, 1)]
        vae = rk.recipes.recipe("sequence-vae-gaussian").build((5, 1), latent=2)
        with pytest.raises(TypeError, match=self.PAD):
            rk.fit(vae, sequences, epochs=1, out=tmp_path / "run")
        with pytest.raises(TypeError, match=self.PAD):
            rk.evaluate(vae, sequences)
        assert not (tmp_path / "run").exists()

    def test_a_ragged_array_and_a_ragged_dataset_do_too(self):
        array = np.empty(2, dtype=object)
        array[:] = [np.zeros((2, 1)), np.zeros((3, 1))]
        for data in (array, Ragged()):
            with pytest.raises(ValueError, match=self.PAD):
                as_source(data)

    def test_a_loader_pads_each_batch_and_what_is_read_whole_is_padded_together(self):
        source = as_source(DataLoader(Ragged(), batch_size=3, collate_fn=rk.data.pad))
        assert [tuple(b.x.shape) for b in source.batches(3)] == [(3, 3, 2), (3, 6, 2), (1, 7, 2)]
        whole = source.take()
        assert whole.shape == (7, 7, 2)
        assert torch.equal((~whole.isnan()).all(-1).sum(1), torch.arange(1, 8))

    def test_zeros_and_ones_with_missing_steps_are_labelled_binary(self):
        x = torch.bernoulli(torch.full((4, 5, 2), 0.5))
        x[1, 3:] = NAN
        assert as_source(x).label == "binary" and as_source(x + 0.5).label == "continuous"

    def test_a_file_may_hold_missing_steps_but_no_half_of_one(self, tmp_path):
        x = np.random.RandomState(0).rand(4, 5, 2).astype(np.float32)
        x[1, 3:] = np.nan
        np.save(tmp_path / "x.npy", x)
        assert rk.data.open_file(tmp_path / "x.npy")["train"].values.isnan().sum() == 4
        for value, says in ((np.nan, "sample 2 .* holds nan"), (np.inf, "sample 2 .* holds inf")):
            y = x.copy()
            y[2, 1, 0] = value
            np.save(tmp_path / "y.npy", y)
            with pytest.raises(ValueError, match=says):
                rk.data.open_file(tmp_path / "y.npy")
