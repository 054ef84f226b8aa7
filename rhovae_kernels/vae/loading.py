"""`load`: a saved model, whatever kind it is of."""

from pathlib import Path

from torch import nn

from rhovae_kernels.files import read_json
from rhovae_kernels.vae.base import Model
from rhovae_kernels.vae.density import Density
from rhovae_kernels.vae.model import VAE
from rhovae_kernels.vae.saved import CONFIG, describes


def load(directory: str | Path, **parts: nn.Module) -> Model:
    """The model that `save_pretrained` wrote: a `Density` where that is described, else a `VAE`.

    Args:
        directory: where it lies.
        parts: those that were made by other code than this package's, see `VAE.from_pretrained`.

    Raises:
        FileNotFoundError: there is no such directory or file.
        ValueError: a file is truncated or corrupted, or does not fit the others.
    """
    config = Path(directory) / CONFIG
    kind: type[Model] = VAE
    if config.is_file() and describes(read_json(config), Density):
        kind = Density
    return kind.from_pretrained(directory, **parts)
