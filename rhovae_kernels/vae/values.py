"""The values of data: which a likelihood takes."""

from torch import Tensor, stack
from torch.distributions import constraints

from rhovae_kernels.vae.decoders import Decoder


def check_values(x: Tensor, decoder: Decoder, name: str = "x") -> None:
    """Refuse data that hold a NaN or an infinity, or lie outside the likelihood's support.

    Args:
        x: data, (B, *data shape).
        decoder: the likelihood.
        name: what the error calls the data.

    Raises:
        ValueError: names the first row that does not fit.
    """
    support = decoder.support
    if not x.numel():
        return
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
            f"{type(decoder).__name__}, {support}"
        )
