"""Shapes that a module gives, found by a trial on the meta device: nothing is computed."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parameter import UninitializedParameter

from rhovae_kernels.steps import Steps
from rhovae_kernels.vae.decoders import Decoder

ROWS = 2
"""How many rows a trial has: more than one, for batch normalization."""


class NoTrial(Exception):
    """The module cannot run on the meta device: a trial says nothing about it."""


def trial(module: nn.Module, *shape: int) -> Any:
    """What a module gives for `ROWS` rows of this shape, on the meta device.

    The module's own weights, statistics and random streams are left alone.

    Raises:
        NoTrial: it cannot run there: it makes tensors elsewhere, or looks at values.
        RuntimeError, TypeError, ValueError: it does not take the shape.

    Example:
        >>> trial(nn.Linear(3, 5), 3).shape
        torch.Size([2, 5])
    """
    tensors: dict[str, torch.Tensor] = {**dict(module.named_parameters())}
    if any(isinstance(p, UninitializedParameter) for p in tensors.values()):
        raise NoTrial("its lazy layers have no shape yet: run it once")
    tensors |= dict(module.named_buffers())
    dtype = next((x.dtype for x in tensors.values() if x.is_floating_point()), None)
    there = {name: torch.empty_like(x, device="meta") for name, x in tensors.items()}
    rows = torch.empty(ROWS, *shape, dtype=dtype, device="meta")
    try:
        with torch.no_grad():
            return functional_call(module, there, (rows,))
    except (RuntimeError, TypeError, ValueError) as error:
        text = str(error)
        if isinstance(error, NotImplementedError) or "meta" in text or "device" in text:
            raise NoTrial(text.partition("\n")[0]) from error
        raise


def encoder_shapes(
    encoder: nn.Module,
    input_shape: tuple[int, ...] | None,
    features: int | None,
    sequential: bool = False,
) -> tuple[tuple[int, ...], int]:
    """The shape of one datum, and how many features an encoder makes of it.

    Args:
        encoder: any module from (B, *input_shape) to (B, features).
        input_shape: as the caller gave it; the encoder's own attribute where None.
        features: likewise; the encoder's attribute `out_features`, or what a trial gives.
        sequential: whether it is to give features of each step of a sequence.

    Raises:
        ValueError: one is missing, or the encoder does not agree with them.
    """
    name = type(encoder).__name__
    known = getattr(encoder, "input_shape", None)
    if input_shape is None and known is None:
        raise ValueError(
            f"encoder is a {name}, which does not say what data it takes: give input_shape=(…), "
            "the shape of one datum"
        )
    shape: tuple[int, ...] = tuple(input_shape or known)  # type: ignore[arg-type]
    if known is not None and tuple(known) != shape:
        raise ValueError(f"input_shape is {shape}; the encoder's own is {tuple(known)}")
    if sequential and len(shape) != 2:
        raise ValueError(f"input_shape is {shape}; of sequences it must be (T, features)")
    try:
        out = trial(encoder, *shape)
    except NoTrial as reason:
        width = getattr(encoder, "out_features", None) if features is None else features
        if not isinstance(width, int):
            raise ValueError(
                f"encoder is a {name}, whose number of features a trial on the meta device does "
                f"not tell ({reason}): give features=…, how many numbers come out for each datum"
            ) from reason
        return shape, width
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"encoder is a {name}, which does not take data of shape {(ROWS, *shape)}: {error}"
        ) from error
    out = out.features if isinstance(out, Steps) else out
    wanted = (ROWS, *shape[:-1]) if sequential else (ROWS,)
    if not isinstance(out, torch.Tensor) or out.shape[:-1] != wanted:
        got = f"of shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out)
        each, hint = (" of each step", "") if sequential else ("", ": end it with a Flatten")
        raise ValueError(
            f"encoder gives {got} for data of shape {(ROWS, *shape)}; it must give features{each} "
            f"of shape ({', '.join(map(str, wanted))}, features){hint}"
        )
    if features not in (None, out.shape[-1]):
        raise ValueError(f"features is {features}; the encoder gives {out.shape[-1]}")
    return shape, out.shape[-1]


def check_decoder(decoder: Decoder, latent: int, input_shape: tuple[int, ...]) -> None:
    """Refuse a decoder whose distribution is of another shape than the data.

    Raises:
        ValueError: it is, or the decoder does not take codes of `latent` dimensions.
    """
    codes = (input_shape[0], latent) if decoder.sequential else (latent,)
    try:
        p = trial(decoder, *codes)
    except NoTrial:
        return
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"decoder: its network does not take codes of shape {(ROWS, *codes)}: {error}"
        ) from error
    if p.event_shape != input_shape or p.batch_shape != (ROWS,):
        raise ValueError(
            f"decoder gives p(x|z) of shape {(*p.batch_shape, *p.event_shape)} for codes of shape "
            f"{(ROWS, *codes)}; the data are of shape {(ROWS, *input_shape)}: they must agree"
        )
