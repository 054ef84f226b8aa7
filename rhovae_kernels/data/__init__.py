"""Data: the named sets, files of one's own, and what a set in memory is."""

from rhovae_kernels.data.dataset import BINARIZATIONS, SPLITS, WHOLE, Dataset
from rhovae_kernels.data.files import open_file
from rhovae_kernels.data.named import load
from rhovae_kernels.data.sequences import pad

__all__ = ["BINARIZATIONS", "SPLITS", "WHOLE", "Dataset", "load", "open_file", "pad"]
