"""`Flow`: a stack of invertible transforms, and the density that it gives; `Transform`: one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rhovae_kernels import legacy
from rhovae_kernels.distributions.flow import NormalizingFlow, mean_noise
from rhovae_kernels.nn.masked_linear import positive_integer


class Transform(nn.Module, ABC):
    """One invertible map x → y of a flow, that may depend on a context, in both directions.

    Shapes: x, y (…,d); context (…,context), whose leading dimensions broadcast with those of x;
    log_det (…), in nats.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Scale(rk.nn.Transform):  # y_i = e^(a_i) x_i
        ...     def __init__(self, features):
        ...         super().__init__()
        ...         self.a = torch.nn.Parameter(torch.zeros(features))
        ...     def call_and_log_det(self, x, context=None):
        ...         return x * self.a.exp(), self.a.sum().expand(x.shape[:-1])
        ...     def inverse(self, y, context=None):
        ...         return y * (-self.a).exp(), -self.a.sum().expand(y.shape[:-1])
        >>> flow = rk.nn.Flow(2, [Scale(2), rk.nn.AffineCoupling([True, False])])
        >>> flow().log_prob(torch.zeros(3, 2)).detach()
        tensor([-1.8379, -1.8379, -1.8379])
    """

    @abstractmethod
    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and log|det ∂y/∂x|."""

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log|det ∂x/∂y|."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `call_and_log_det` gives."""
        return self.call_and_log_det(x, context)


class Flow(nn.Module):
    """Transforms one after another: y = f_T(… f_1(x)); log|det ∂y/∂x| = Σ_t log|det ∂f_t|.

    Called, it gives the distribution of the data that it makes of noise. x → y is from data to
    noise, or, where `samples_in_parallel`, from noise to data: `to_noise` and `to_data` go by that.

    Args:
        features: dimensions d.
        transforms: f_1 … f_T, one at least.
        context: width of the context; 0 for none.

    Attributes:
        samples_in_parallel: of the class: whether x → y, the direction in which autoregressive
            transforms take all dimensions at once, makes samples, in place of densities.

    Shapes: x, y (…,d); context (…,context), whose leading dimensions broadcast with those of x;
    log_det (…), in nats.

    Raises:
        ValueError: features is no positive integer, or there is no transform; in use, x is of
            another width, or a transform refuses x or context.

    Source:
        Rezende and Mohamed, 2015, "Variational inference with normalizing flows",
        https://arxiv.org/abs/1505.05770, eqs. 5 to 7.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> masks = [True, False], [False, True]
        >>> flow = rk.nn.Flow(2, [rk.nn.AffineCoupling(mask) for mask in masks])
        >>> flow().sample((5,)).shape, flow().log_prob(torch.zeros(2)).detach()
        (torch.Size([5, 2]), tensor(-1.8379))
    """

    samples_in_parallel: ClassVar[bool] = False

    def __init__(self, features: int, transforms: Iterable[Transform], context: int = 0) -> None:
        super().__init__()
        self.features, self.context = positive_integer("features", features), context
        self.mean_noise = mean_noise(features)
        self.transforms: Any = nn.ModuleList(transforms)
        if not self.transforms:
            raise ValueError("transforms is empty; one transform at least is wanted")
        self.register_load_state_dict_pre_hook(legacy.rename_flow_keys)

    def forward(self, context: Tensor | None = None) -> NormalizingFlow:
        """The distribution of data that stand for N(0, I), one for each row of context (…,c)."""
        return NormalizingFlow(self, context)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and log|det ∂y/∂x|."""
        return self._run(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and log|det ∂x/∂y|."""
        return self._run(y, context, inverse=True)

    def to_data(self, noise: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The data that noise stands for, and log|det ∂data/∂noise|."""
        if self.samples_in_parallel:
            return self.call_and_log_det(noise, context)
        return self.inverse(noise, context)

    def to_noise(self, data: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noise that data stand for, and log|det ∂noise/∂data|."""
        if self.samples_in_parallel:
            return self.inverse(data, context)
        return self.call_and_log_det(data, context)

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.shape[-1:] != (self.features,):
            raise ValueError(f"x is of shape {tuple(x.shape)}; this flow wants (…,{self.features})")
        state, log_dets = self._enter(x), []
        steps = range(len(self.transforms))
        for k in reversed(steps) if inverse else steps:
            state, log_det = self._step(k, state, context, inverse)
            log_dets.append(log_det)
        total = self._total(log_dets)
        return self._leave(state, total.shape), total

    def _total(self, log_dets: list[Tensor]) -> Tensor:
        """Their sum, one after another."""
        total: Any = sum(log_dets)
        return total

    # How the columns are held between transforms, where a flow has a better way than one tensor.

    def _enter(self, x: Tensor) -> Any:
        """What the first transform takes."""
        return x

    def _step(
        self, k: int, state: Any, context: Tensor | None, inverse: bool
    ) -> tuple[Any, Tensor]:
        """What the next transform takes, and the log-determinant of transform k."""
        transform = self.transforms[k]
        return (transform.inverse if inverse else transform.call_and_log_det)(state, context)

    def _leave(self, state: Any, rows: torch.Size) -> Tensor:
        """What the last transform gave, with these leading dimensions."""
        return state
