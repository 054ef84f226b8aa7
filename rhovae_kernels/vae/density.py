"""`Density`: a model of data without a latent code."""

import torch
from torch import Generator, Tensor

from rhovae_kernels.distributions.draws import sample_of
from rhovae_kernels.vae import parts
from rhovae_kernels.vae.base import LIVING, Model, Output
from rhovae_kernels.vae.decoders import Autoregressive
from rhovae_kernels.vae.values import check_values


class Density(Model, library_name="rhovae-kernels", tags=["density"]):
    """A model of data whose density is exact: p(x), trained by −log p(x).

    It is trained by `fit`, measured by `evaluate` ("nll"), saved, loaded and sampled as a VAE is.

    Args:
        p: p(x): an autoregressive decoder (`decoders`), which is built without a code.
        input_shape: shape of one datum.
        validate_args: whether data are looked at in every call, see `check_data`, as far as no
            graph is being made. `fit` and `evaluate` look once.

    Raises:
        ValueError: p is no autoregressive decoder, or belongs to another model, or does not take
            data of this shape.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> model = rk.Density(rk.decoders.PixelCNN(channels=4, layers=4), (1, 8, 8))
        >>> x = model.sample(3)
        >>> model.log_prob(x).shape, model(x).rate
        (torch.Size([3]), tensor([0., 0., 0.]))
    """

    part_names = ("p",)

    def __init__(
        self, p: Autoregressive, input_shape: tuple[int, ...], *, validate_args: bool = True
    ) -> None:
        super().__init__(validate_args)
        if not isinstance(p, Autoregressive):
            raise ValueError(
                f"p is a {type(p).__name__}, whose distribution is one given a code; an "
                "autoregressive decoder is wanted"
            )
        parts.refuse_taken({"p": p}, LIVING)
        self._input_shape = parts.positive_integers("input_shape", input_shape)
        p.build(None, 0, self._input_shape)
        self.p = p
        shape = list(self._input_shape)
        self._hub_mixin_config = {"p": parts.describe(p), "input_shape": shape}

    def forward(
        self, x: Tensor, step: int | None = None, data_size: int | None = None, samples: int = 1
    ) -> Output:
        """The loss of a batch, the mean of −log p(x), and −log p(x) of each datum.

        Args:
            x: data, (B, *input_shape).
            step: of no use here.
            data_size: of no use here.
            samples: 1; there is no code that could be drawn more often.

        Raises:
            ValueError: see `log_prob`; samples is not 1.
        """
        self._check_samples(samples)
        surprise = -self.log_prob(x)
        return Output(surprise.mean(), surprise, torch.zeros_like(surprise))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,), of data x (B, *input_shape).

        Raises:
            ValueError: x is of another shape or, where `validate_args`, see `check_data`.
        """
        self._check(x)
        return self.p().log_prob(x)

    @torch.no_grad()
    def sample(self, n: int, mode: str | None = None, generator: Generator | None = None) -> Tensor:
        """n draws from p(x), (n, *input_shape).

        Args:
            n: how many.
            mode: "draw", or left out.
            generator: of the model's device; PyTorch's own where left out.

        Raises:
            ValueError: another mode.
        """
        if mode not in (None, "draw"):
            raise ValueError(f"mode is {mode!r}; without a code there are draws alone, 'draw'")
        return sample_of(self.p(), (n,), generator)

    def check_data(self, x: Tensor, name: str = "x") -> None:
        self._check_shape(x, name)
        check_values(x, self.p, name)

    def check_training(self, samples: int, count: int | None, name: str) -> None:
        self._check_samples(samples)

    def _check_samples(self, samples: int) -> None:
        if samples != 1:
            raise ValueError(f"samples is {samples}; a Density has no code to draw: 1 is wanted")
