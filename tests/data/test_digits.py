"""The handwritten digits, which are scikit-learn's, and how they are split."""

import subprocess
import sys

import torch

from rhovae_kernels.data import named


def test_the_splits_of_the_digits_are_disjoint_and_hold_all_of_them():
    splits = [named.load("digits", split=split) for split in named.SPLITS]
    assert [len(split) for split in splits] == [1257, 180, 360]
    from sklearn.datasets import load_digits

    together = torch.cat([split.values for split in splits]).flatten(1) * 16
    everything = torch.from_numpy(load_digits().data).float()
    assert torch.equal(torch.unique(together, dim=0), torch.unique(everything, dim=0))
    assert len(together) == len(everything)
    # The labels went with their images.
    pairs = zip(everything, load_digits().target, strict=True)
    label_of = {x.numpy().tobytes(): y for x, y in pairs}
    labels = torch.cat([split.labels for split in splits])
    for x, y in zip(together, labels, strict=True):
        assert label_of[x.numpy().tobytes()] == y


def test_the_split_of_the_digits_depends_on_nothing():
    first, second = named.load("digits", seed=0), named.load("digits", seed=1)
    assert torch.equal(first.images, second.images)


def test_digits_are_grey_values_from_0_to_1():
    digits = named.load("digits")
    assert digits.input_shape == (1, 8, 8) and digits.label == "grey"
    assert digits.images.min() == 0 and digits.images.max() == 1
    assert len(digits.images.unique()) == 17


def test_the_digits_do_not_wait_for_scikit_learn():
    code = (
        "import sys, rhovae_kernels as rk; rk.data.load('digits'); print('sklearn' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "False\n", ended.stderr
