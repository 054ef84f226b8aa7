"""What the order of the dimensions is worth: NLL of each, and of their ensemble."""

from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.metrics.aggregate import BATCH
from rhovae_kernels.metrics.likelihood import standard_error
from rhovae_kernels.vae.decoders.ordered import Ordered, log_mean_exp
from rhovae_kernels.vae.density import Density


def orders(model: Density, x: Tensor) -> dict[str, Any]:
    """−log p_k(x) of each order k, their mean, and −log of the mean of p_k(x), in nats.

    Args:
        model: of a decoder with orders.
        x: data, (N, *input_shape).

    Returns:
        "orders", their names; "nll" and "nll_standard_error", a number for each; "mean", over
        orders, "ensemble", and "gain", of the ensemble over the mean, each with its standard error
        over data.

    Raises:
        ValueError: the decoder has no orders.

    Source:
        Uria, Murray and Larochelle, 2014, "A deep and tractable density estimator",
        https://arxiv.org/abs/1310.1757, for ensembles over orders.
    """
    decoder = model.p
    if not isinstance(decoder, Ordered):
        raise ValueError(
            f"orders are of NADE and OrderlessNADE; this model is of a {type(decoder).__name__}"
        )
    log_p = torch.cat([decoder.log_prob_of_orders(batch) for batch in x.split(BATCH)], 1).double()
    mean, ensemble = -log_p.mean(0), -log_mean_exp(log_p)
    result: dict[str, Any] = {
        "orders": [str(order) for order in decoder.orders],
        "nll": (-log_p.mean(1)).tolist(),
        "nll_standard_error": [standard_error(of_order) for of_order in log_p],
    }
    for name, values in (("mean", mean), ("ensemble", ensemble), ("gain", mean - ensemble)):
        result[name] = values.mean().item()
        result[f"{name}_standard_error"] = standard_error(values)
    return result


def lines(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """The result for readers: names and values."""
    shown = zip(entry["orders"], entry["nll"], entry["nll_standard_error"], strict=True)
    return [
        ("NLL by order", "± standard error over data"),
        *((f"  {name}", f"{mean:.3f} ± {error:.3f}") for name, mean, error in shown),
        *(
            (f"  {name}", f"{entry[key]:.3f} ± {entry[f'{key}_standard_error']:.3f}")
            for name, key in (
                ("mean over orders", "mean"),
                ("ensemble", "ensemble"),
                ("gain of the ensemble", "gain"),
            )
        ),
    ]
