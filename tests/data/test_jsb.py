"""The chorales: how a file of them is read, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch

from rhovae_kernels.data import named

SMALL = {
    "train": [[[60, 64, 67], [], [21]], [[108]]],
    "valid": [[[60], [62]]],
    "test": [[[60], [62], [64], [65]]],
}
REAL_ROOT = Path(
    os.environ.get("RHOVAE_TEST_DATA_ROOT")
    or Path(__file__).resolve().parents[3] / "shared" / "data"
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "jsb").mkdir()
    (tmp_path / "jsb" / "jsb-chorales-quarter.json").write_text(json.dumps(SMALL))
    return tmp_path


def test_a_step_has_a_feature_for_each_key_of_a_piano(root):
    x = named.load("jsb", root).values
    assert x.shape == (2, 4, 88) and x.dtype is torch.float32
    assert x[0, 0].nonzero().flatten().tolist() == [39, 43, 46]
    assert (x[0, 1] == 0).all() and x[0, 2].nonzero().item() == 0
    assert x[1, 0].nonzero().item() == 87


def test_all_splits_are_as_long_as_the_longest_chorale_with_nan_beyond_the_end(root):
    for split, ends in (("train", [3, 1]), ("valid", [2]), ("test", [4])):
        dataset = named.load("jsb", root, split=split)
        assert dataset.input_shape == (4, 88) and dataset.label == "binary"
        assert (~dataset.values.isnan()).all(-1).sum(1).tolist() == ends


def test_the_file_may_lie_in_the_root_itself(root):
    file = root / "jsb" / "jsb-chorales-quarter.json"
    expected = named.load("jsb", root).values
    file.rename(root / file.name)
    assert torch.equal(named.load("jsb", root).values.nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "truncated or corrupted, no JSON"),
        ("[1, 2]", "not the chorales, which are lists under train, valid, test"),
        ('{"train": [], "valid": []}', "not the chorales"),
        (json.dumps({**SMALL, "valid": [[[20]]]}), "holds the pitch 20; pitches are from 21 to"),
        (json.dumps({**SMALL, "test": [[[109]]]}), "holds the pitch 109; pitches are from 21 to"),
        (json.dumps({**SMALL, "test": [[]]}), "holds a chorale of no step"),
        (json.dumps({**SMALL, "test": [[60]]}), "no list of lists of pitches"),
        (json.dumps({**SMALL, "test": [[["C"]]]}), "no list of lists of pitches"),
    ],
)
def test_a_file_that_is_damaged_is_named(root, text, says):
    file = root / "jsb" / "jsb-chorales-quarter.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        named.load("jsb", root)
    assert str(file) in str(caught.value)


@pytest.mark.skipif(
    not (REAL_ROOT / "jsb").is_dir(),
    reason=f"no chorales in {REAL_ROOT}; RHOVAE_TEST_DATA_ROOT names another place",
)
def test_the_published_file_holds_382_chorales():
    counts = {"train": (229, 13807), "valid": (76, 4602), "test": (77, 4725)}
    for split, (count, steps) in counts.items():
        x = named.load("jsb", REAL_ROOT, split=split).values
        assert x.shape == (count, 160, 88) and (~x.isnan()).all(-1).sum() == steps
