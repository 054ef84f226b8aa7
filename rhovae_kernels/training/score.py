"""`score`: what a model is worth on the data that a run looks at after each epoch."""

import torch

from rhovae_kernels.data.dataset import Dataset
from rhovae_kernels.data.sources import InMemory, Source
from rhovae_kernels.seeding import seeded
from rhovae_kernels.steps import trimmed
from rhovae_kernels.vae.base import Model


def score(
    vae: Model, data: Source | Dataset, batch_size: int, seed: int, step: int | None = None
) -> dict[str, float]:
    """Means over data: of the objective that the model trains on, of −ELBO and of its parts.

    Args:
        vae: the model.
        data: the data.
        batch_size: data in a batch; the published objective depends on it.
        seed: of the samples of q(z|x).
        step: optimization steps taken so far; objectives that change with them demand it.

    Returns:
        loss, negative_elbo, distortion and rate, in nats.

    Raises:
        ValueError: data do not fit the model; the objective changes with steps and none is given.
    """
    source = InMemory(data) if isinstance(data, Dataset) else data
    device = next(vae.parameters()).device
    totals, count = torch.zeros(3, dtype=torch.float64), 0
    vae.eval()
    with vae.unvalidated(), seeded(device, seed), torch.no_grad():
        for x, _, total in source.batches(batch_size, shuffle=False):
            if not source.in_memory:
                vae.check_data(x, source.name)
            x = trimmed(x) if vae.sequential else x
            loss, distortion, rate = vae(x.to(device), step, source.count)
            batch = torch.stack([loss * total, distortion.sum(), rate.sum()])
            totals += batch.double().cpu()
            count += total
    loss, distortion, rate = (totals / count).tolist()
    return {
        "loss": loss,
        "negative_elbo": distortion + rate,
        "distortion": distortion,
        "rate": rate,
    }
