"""The Fréchet inception distance, by torchmetrics: an extra, with weights given by path."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.metrics.aggregate import low_posterior
from rhovae_kernels.vae.model import VAE

BATCH = 64
"""Images that the network sees at a time."""


def check_weights(weights: str | Path | None) -> Path:
    """The file of the Inception network's weights.

    Raises:
        ValueError: none was named.
        FileNotFoundError: it is not there.
    """
    wanted = "torch-fidelity's weights of Inception (pt_inception-2015-12-05-6726825d.pth)"
    if weights is None:
        raise ValueError(f"fid takes fid_weights (--fid-weights): a file of {wanted}")
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; fid_weights must hold {wanted}")
    return path


def fid(
    vae: VAE, x: Tensor, weights: str | Path | None, low_posterior_samples: bool = False
) -> dict[str, Any]:
    """The distance between data and as many samples of the model, the decoder's means.

    Args:
        vae: the model.
        x: images in [0, 1], (N, C, H, W), C of 1 or 3.
        weights: file of the Inception network's weights.
        low_posterior_samples: take the samples that the aggregate posterior covers least, a tenth
            of those that are drawn, in place of any.

    Raises:
        ValueError: no weights were named; x holds no images.
        FileNotFoundError: the weights are not there.
        RuntimeError: torchmetrics or torch-fidelity is not installed.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §5.1. How many low-posterior samples it takes of how many
        is not said.
    """
    path = check_weights(weights)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"fid is of images of 1 or 3 channels; the data are {tuple(x.shape[1:])}")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        distance = FrechetInceptionDistance(
            normalize=True, feature_extractor_weights_path=str(path)
        )
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"fid: {error.name or 'torch-fidelity'} is missing; install it with: "
            f"pip install 'rhovae_kernels[fid]' torch=={torch.__version__.partition('+')[0]}"
        ) from error
    distance = distance.to(x.device)
    count = len(x)
    with torch.no_grad():
        if low_posterior_samples:
            z = low_posterior(vae, x, count, of=10 * count)
        else:
            z = vae.prior().sample((count,))
        for data, codes in zip(x.split(BATCH), z.split(BATCH), strict=True):
            for images, real in ((data, True), (vae.decode(codes), False)):
                distance.update(images.clamp(0, 1).expand(-1, 3, -1, -1), real=real)
        return {"mean": distance.compute().item(), "samples": count}
