"""Where weights are stored in half precision, and distributions are computed in float32."""

import functools
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from rhovae_kernels.nn.flow import Flow
from rhovae_kernels.python_ref.precision import compute_dtype


def as_stored(x: Tensor, module: nn.Module) -> Tensor:
    """x in the type of a module's weights, if x is of the type that these are computed in.

    Of any other type x is left alone, for the module to refuse.
    """
    weight = next((p for p in module.parameters() if p.is_floating_point()), x)
    return x.to(weight.dtype) if x.dtype == compute_dtype(weight.dtype) else x


class _Between:
    """A flow stored in half precision, between noise and data in float32."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.features, self.context = flow, flow.features, flow.context
        self.mean_noise = flow.mean_noise

    @property
    def samples_in_parallel(self) -> bool:
        return self.flow.samples_in_parallel

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.flow.parameters()

    def to_data(self, noise: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.flow.to_data, noise, context)

    def to_noise(self, data: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(self.flow.to_noise, data, context)

    def _run(
        self,
        direction: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
        x: Tensor,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        stored = functools.partial(as_stored, module=self.flow)
        y, log_det = direction(stored(x), None if context is None else stored(context))
        return y.to(x.dtype), log_det


def computed(flow: Flow) -> Flow | _Between:
    """A flow that takes and gives the type that its weights are computed in; itself, mostly."""
    dtype = next(flow.parameters()).dtype
    return flow if compute_dtype(dtype) == dtype else _Between(flow)
