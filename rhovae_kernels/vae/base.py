"""`Model`: what `fit` trains, `evaluate` measures, and a run's directory holds."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Generator, Tensor
from torch.optim import Optimizer

from rhovae_kernels.nn.derived import derive_from_meta
from rhovae_kernels.ops import eager
from rhovae_kernels.vae.saved import Saved

LIVING: weakref.WeakSet["Model"] = weakref.WeakSet()
"""The models that there are: the parts of one that is gone are free to be another's."""


class Output(NamedTuple):
    """What one pass gives.

    Attributes:
        loss: the objective, a scalar in nats.
        distortion: −log p(x|z), (B,), in nats; −log p(x) of a model without a code.
        rate: KL(q(z|x) ‖ p(z)), (B,), in nats, or its estimate; 0 of a model without a code.

    Where the objective draws more than one sample of each datum, the last two are means over them.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> out = rk.recipes.recipe("vae").build((3,), latent=2)(torch.zeros(5, 3))
        >>> out.distortion.shape, bool(out.loss.isclose((out.distortion + out.rate).mean()))
        (torch.Size([5]), True)
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


class Model(Saved):
    """A model of data, with a latent code or without one.

    What `VAE` and `Density` have in common. A subclass sets `_input_shape`, and says what
    `forward`, `check_data` and `sample` are.

    Args:
        validate_args: whether data are looked at in every call, see `check_data`.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("vae").build((1, 4, 4), latent=2)
        >>> density = rk.Density(rk.decoders.NADE(hidden=(16,)), (1, 4, 4))
        >>> for model in (vae, density):
        ...     isinstance(model, Model), model(model.sample(5)).loss.shape, model.mode
        (True, torch.Size([]), 'mean')
        (True, torch.Size([]), 'draw')
    """

    _input_shape: tuple[int, ...]

    def __init__(self, validate_args: bool = True) -> None:
        super().__init__()
        self.validate_args = validate_args
        # Buffers of a part without parameters go where the others' are.
        self.register_load_state_dict_post_hook(derive_from_meta)
        LIVING.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        LIVING.add(self)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self._input_shape

    @property
    def latent(self) -> int:
        """Dimensions of the latent code; 0 where there is none."""
        return 0

    @property
    def sequential(self) -> bool:
        """Whether data are sequences (T, features), of any T."""
        return False

    @property
    def mode(self) -> str:
        """How data are drawn where nothing is asked: "mean", or "draw" where there is no mean."""
        return "draw"

    def forward(
        self, x: Tensor, step: int | None = None, data_size: int | None = None, samples: int = 1
    ) -> Output:
        """The loss of a batch and what it is made of.

        Args:
            x: data, (B, *input_shape).
            step: optimization steps taken so far.
            data_size: how many data the batch is drawn of; the batch alone where left out.
            samples: draws of z for each datum.
        """
        raise NotImplementedError

    def sample(self, n: int, mode: str | None = None, generator: Generator | None = None) -> Tensor:
        """n data, (n, *input_shape), in a mode, from `generator`, of the model's device."""
        raise NotImplementedError

    def check_data(self, x: Tensor, name: str = "x") -> None:
        """Refuse data that the model cannot be trained or measured on. Looks at every value.

        Args:
            x: data, (B, *input_shape).
            name: what the error calls them.

        Raises:
            ValueError: they have another shape, hold a NaN or an infinity, or lie outside the
                likelihood's support.
        """
        raise NotImplementedError

    def check_training(self, samples: int, count: int | None, name: str) -> None:
        """Refuse what the loss cannot do with.

        Args:
            samples: draws of z for each datum and step.
            count: how many training data there are; None where that is not known.
            name: what the error calls the data.

        Raises:
            ValueError: it cannot do with them.
        """

    def adversary_optimizer(self) -> Optimizer | None:
        """The optimizer of those of the parameters that play against the others, if there are."""
        return None

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a datum may be of this shape: the model's own; of sequences, of any T."""
        if self.sequential:
            return len(shape) == 2 and shape[0] > 0 and shape[1] == self._input_shape[1]
        return tuple(shape) == self._input_shape

    @property
    def wanted_shape(self) -> str:
        """What `takes` takes, for errors."""
        first, *rest = self._input_shape
        shape = ["T" if self.sequential else first, *rest]
        return f"({', '.join(map(str, shape))}{'' if rest else ','})"

    @contextlib.contextmanager
    def unvalidated(self) -> Iterator[None]:
        """A block within which data are not looked at, as they were before."""
        before, self.validate_args = self.validate_args, False
        try:
            yield
        finally:
            self.validate_args = before

    def _check(self, x: Tensor) -> None:
        """Refuse data of another shape or, where `validate_args`, that `check_data` refuses."""
        self._check_shape(x)
        if self.validate_args and eager.holds_values(x):
            self.check_data(x)

    def _check_shape(self, x: Tensor, name: str = "x") -> None:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} is a {type(x).__name__}; it must be a tensor, of an array "
                "torch.from_numpy(x)"
            )
        if not self.takes(x.shape[1:]):
            raise ValueError(
                f"{name} is of shape {tuple(x.shape)}; this model wants (B, {self.wanted_shape[1:]}"
            )
