"""How tests of training compare the files of two runs."""

from pathlib import Path

import torch

from rhovae_kernels.files import load_tensors


def same_checkpoint(one: Path, other: Path) -> bool:
    """Whether two files of tensors hold the same bits and the same text."""
    (tensors, text), (others, other_text) = load_tensors(one), load_tensors(other)
    return (
        text == other_text
        and tensors.keys() == others.keys()
        and all(torch.equal(tensors[name], others[name]) for name in tensors)
    )
