"""`Derived`: a module whose buffers follow from its arguments, and are in no state dict."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from rhovae_kernels.python_ref.precision import compute_dtype


class Derived(nn.Module):
    """A module with buffers of known values: they come again wherever memory is allocated anew.

    A state dict holds none of them, so that neither `to_empty` nor a state dict assigned to a
    module on the meta device would leave them their values. Of floating types they are in float32
    at least, whatever the module is cast to.
    """

    _values: Mapping[str, Tensor] = MappingProxyType({})

    def derive(self, **values: Tensor) -> None:
        """Register buffers, on the default device, of values on the CPU; floats in the default
        type.
        """
        self._values = values
        like = torch.empty(0)
        for name, value in values.items():
            self.register_buffer(name, _as_buffer(value, like), persistent=False)
        self.register_load_state_dict_post_hook(derive_from_meta)

    def derive_like(self, like: Tensor) -> None:
        """Give the buffers their values, on the device and in the type of a tensor."""
        for name, value in self._values.items():
            setattr(self, name, _as_buffer(value, like))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Derived":
        before = {name: getattr(self, name) for name in self._values}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if (now := getattr(self, name)) is not buffer:
                setattr(self, name, _as_buffer(self._values[name], now))
        return self


def derive_from_meta(module: nn.Module, _: Any = None) -> None:
    """Bring derived buffers that are still on the meta device to where the parameters are.

    A hook after a state dict was loaded: `assign=True` brings the parameters alone.
    """
    like = next(module.parameters(), None)
    if like is None or like.is_meta:
        return
    for part in module.modules():
        if isinstance(part, Derived) and any(getattr(part, name).is_meta for name in part._values):
            part.derive_like(like)


def _as_buffer(value: Tensor, like: Tensor) -> Tensor:
    dtype = compute_dtype(like.dtype) if value.is_floating_point() else value.dtype
    return value.to(like.device, dtype, copy=True)
