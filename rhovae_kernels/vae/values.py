"""The values of data: which a likelihood takes."""

from torch import Tensor, stack
from torch.distributions import constraints

from rhovae_kernels.steps import observed, selected
from rhovae_kernels.vae.decoders import Decoder, PerStep


def check_values(x: Tensor, decoder: Decoder, name: str = "x") -> None:
    """Refuse data that hold a NaN or an infinity, or lie outside the likelihood's support.

    Args:
        x: data, (B, *data shape).
        decoder: the likelihood.
        name: what the error calls the data.

    Raises:
        ValueError: names the first row that does not fit. Of sequences a step may be missing, NaN
            in all of its features, but not in some of them; and one step at least must not.
    """
    support = decoder.support
    if not x.numel():
        return
    if decoder.sequential:
        x = _without_missing(x, name)
    if support is constraints.real or isinstance(support, constraints.interval):
        # One pass where all is well: a NaN comes out at both ends.
        ends = stack(x.aminmax())
        if bool((ends.isfinite() & support.check(ends)).all()):
            return
    if not bool(x.isfinite().all()):
        row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"{name} holds a NaN or an infinity, first at {row}; none is wanted")
    outside = ~support.check(x)
    if bool(outside.any()):
        row = int(outside.flatten(1).any(1).nonzero()[0])
        value = x[row][outside[row]].flatten()[0].item()
        raise ValueError(
            f"{name} holds {value:g} at {row}, outside the support of "
            f"{_likelihood(decoder)}, {support}"
        )


def _likelihood(decoder: Decoder) -> str:
    return type(decoder.decoder if isinstance(decoder, PerStep) else decoder).__name__


def _without_missing(x: Tensor, name: str) -> Tensor:
    """Sequences (B, T, features) with 0, which every likelihood takes, where steps are missing."""
    nan, missing = x.isnan(), ~observed(x)
    partly = nan.any(-1) & ~missing
    if bool(partly.any()):
        row, step = partly.nonzero()[0].tolist()
        raise ValueError(
            f"{name} holds a NaN in some of the {x.shape[-1]} features of step {step} of {row}; a "
            "step that is missing is NaN in all of them"
        )
    empty = missing.all(-1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise ValueError(f"{name} holds no observed step at {row}; one at least is wanted")
    return selected(~missing, x)
