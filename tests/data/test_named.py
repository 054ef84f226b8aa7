"""The named data sets: what `load` takes and refuses."""

import pytest
import torch

from rhovae_kernels.data import named


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"name": "mnits"}, "name is 'mnits'; it must be one of digits, two-moons, mnist"),
        ({"binarize": "sometimes"}, "binarize is 'sometimes'; it must be one of none, round"),
        ({"split": "validation"}, "split is 'validation'; it must be one of train, valid"),
        ({"name": "two-moons", "binarize": "round"}, "two-moons are points"),
    ],
)
def test_unknown_choices_are_refused_with_those_there_are(keywords, says):
    with pytest.raises(ValueError, match=says):
        named.load(**keywords)


@pytest.mark.parametrize("name", named.LOADERS)
def test_each_loader_refuses_an_unknown_split_before_it_looks_for_files(name, tmp_path):
    request = named.Request("validation", tmp_path, seed=0, mirror=None)
    with pytest.raises(ValueError, match="split is 'validation'; it must be one of train, valid,"):
        named.LOADERS[name](request)


@pytest.mark.parametrize("name", ["digits", "two-moons"])
def test_train_and_valid_together_are_all_training_data(name):
    whole, train, valid = (
        named.load(name, split=split) for split in ("train+valid", "train", "valid")
    )
    assert torch.equal(whole.values, torch.cat([train.values, valid.values]))
    assert torch.equal(whole.labels, torch.cat([train.labels, valid.labels]))
