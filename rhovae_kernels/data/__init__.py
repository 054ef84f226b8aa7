"""Data: the named sets, and the files that they come from."""

from rhovae_kernels.data.dataset import BINARIZATIONS, SPLITS, WHOLE, Dataset
from rhovae_kernels.data.named import load

__all__ = ["BINARIZATIONS", "SPLITS", "WHOLE", "Dataset", "load"]
