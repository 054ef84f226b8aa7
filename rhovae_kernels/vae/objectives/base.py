"""What an objective is: a loss made of the terms of a batch."""

from dataclasses import dataclass, replace

from torch import Tensor
from torch.distributions import Distribution
from torch.optim import Optimizer

from rhovae_kernels.vae.decoders import Decoder
from rhovae_kernels.vae.parts import Part
from rhovae_kernels.vae.posteriors import Posterior
from rhovae_kernels.vae.priors import Prior


@dataclass(frozen=True)
class Terms:
    """What an objective may be made of, for one batch.

    Attributes:
        log_px: log p(x|z) in nats, (B,).
        kl: KL(q(z|x) ‖ p(z)) in nats, (B,), or its one-sample estimate.
        x: the data, (B, *data shape).
        z: the sample of q(z|x) that log_px was taken at, (B, latent).
        h: the encoder's features, (B, features).
        posterior: the module that makes q(z|x) of h.
        prior: the module of p(z).
        step: optimization steps taken so far; None where they were not given.
        data_size: how many data the batch is drawn of.
        kl_weight: the number that kl has been multiplied with.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> x = torch.zeros(5, 3)
        >>> vae = rk.VAE(rk.nets.MLP((3,)), rk.posteriors.AR1(2), rk.priors.StandardNormal(2),
        ...              rk.decoders.Gaussian())
        >>> terms = vae.objective.draw(x, vae.encoder(x), vae.posterior, vae.prior, vae.decoder,
        ...                            step=None, data_size=5)
        >>> terms.distortion.shape, terms.z.shape, terms.q.batch_shape
        (torch.Size([5]), torch.Size([5, 2]), torch.Size([5]))
    """

    log_px: Tensor
    kl: Tensor
    x: Tensor
    z: Tensor
    h: Tensor
    posterior: Posterior
    prior: Prior
    step: int | None
    data_size: int
    kl_weight: float = 1.0

    @property
    def distortion(self) -> Tensor:
        """−log p(x|z), (B,), in nats."""
        return -self.log_px

    @property
    def rate(self) -> Tensor:
        """KL(q(z|x) ‖ p(z)), (B,), in nats, or its estimate at what was drawn."""
        return self.kl

    @property
    def q(self) -> Distribution:
        """q(z|x), made when asked for."""
        return self.posterior(self.h)


class Objective(Part):
    """A loss to minimize, a function of `Terms`.

    Attributes:
        averages_kl: whether the KL divergence enters the loss as its mean over the batch.
        needs_data_size: whether it weighs by the number of data.
        needs_step: whether it changes with the optimization steps taken so far.
        repeats: whether a datum may be in a batch several times, with a sample of its own each.
        takes_sequences: whether codes may be sequences, as many of other lengths in a batch.

    A subclass says what `forward` is.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class RateTarget(rk.objectives.Objective):  # mean(−log p(x|z)) + 10 |mean KL − rate|
        ...     def __init__(self, rate):
        ...         super().__init__()
        ...         self.rate = rate
        ...     def forward(self, terms):
        ...         return terms.distortion.mean() + 10 * (terms.rate.mean() - self.rate).abs()
        >>> vae = rk.VAE(rk.nets.MLP((3,)), rk.posteriors.AR1(2), rk.priors.StandardNormal(2),
        ...              rk.decoders.Gaussian(), RateTarget(3.0))
        >>> out = vae(torch.zeros(5, 3))
        >>> bool(torch.isclose(out.loss, out.distortion.mean() + 10 * (out.rate.mean() - 3).abs()))
        True
    """

    averages_kl = True
    needs_data_size = False
    needs_step = False
    repeats = True
    takes_sequences = True

    def draw(
        self,
        x: Tensor,
        h: Tensor,
        posterior: Posterior,
        prior: Prior,
        decoder: Decoder,
        step: int | None,
        data_size: int,
    ) -> Terms:
        """What the loss is made of, with samples of q(z|x): one of each datum, unless overridden.

        Args:
            x: the data, (B, *data shape).
            h: the encoder's features, (B, features).
            posterior: the module that makes q(z|x) of h.
            prior: the module of p(z).
            decoder: the module of p(x|z).
            step: optimization steps taken so far; None where they were not given.
            data_size: how many data the batch is drawn of.
        """
        z, kl = posterior.rsample_and_kl(h, prior)
        return Terms(decoder.log_prob(x, z), kl, x, z, h, posterior, prior, step, data_size)

    def forward(self, terms: Terms) -> Tensor:
        """The loss, a scalar in nats: the mean over the batch."""
        raise NotImplementedError

    def build(self, latent: int) -> None:
        """Make what depends on the number of latent dimensions; a VAE calls it."""

    def check(self, posterior: Posterior) -> None:
        """Refuse a posterior that lacks what the objective asks of it; a VAE calls it.

        Raises:
            ValueError: it lacks something.
        """

    def adversary_optimizer(self) -> Optimizer | None:
        """The optimizer of those of its parameters that play against the VAE, where it has any."""
        return None


class OnKL(Objective):
    """Another objective, given another KL divergence.

    A subclass says what `kl` is.

    Args:
        objective: the objective.

    Attributes:
        scales_kl: whether it multiplies the KL divergence by a number, and
            `Terms.kl_weight` with it.

    Raises:
        ValueError: the objective does not average the KL divergence, and this does more than
            scale it.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Squared(rk.objectives.OnKL):
        ...     def kl(self, terms):
        ...         return terms.kl.square()
        >>> vae = rk.VAE(rk.nets.MLP((3,)), rk.posteriors.AR1(2), rk.priors.StandardNormal(2),
        ...              rk.decoders.Gaussian(), Squared(rk.objectives.ELBO()))
        >>> out = vae(torch.zeros(5, 3))
        >>> bool(torch.isclose(out.loss, (out.distortion + out.rate.square()).mean()))
        True
    """

    scales_kl = False

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        if not (self.scales_kl or objective.averages_kl):
            raise ValueError(
                f"objective is {type(objective).__name__}, whose loss does not hold the mean KL "
                f"divergence that {type(self).__name__} changes; an objective that averages it is "
                "wanted"
            )
        self.objective = objective
        self.averages_kl = objective.averages_kl
        self.needs_data_size = objective.needs_data_size
        self.needs_step = type(self).needs_step or objective.needs_step
        self.repeats = objective.repeats
        self.takes_sequences = objective.takes_sequences

    def draw(
        self,
        x: Tensor,
        h: Tensor,
        posterior: Posterior,
        prior: Prior,
        decoder: Decoder,
        step: int | None,
        data_size: int,
    ) -> Terms:
        return self.objective.draw(x, h, posterior, prior, decoder, step, data_size)

    def build(self, latent: int) -> None:
        self.objective.build(latent)

    def check(self, posterior: Posterior) -> None:
        self.objective.check(posterior)

    def adversary_optimizer(self) -> Optimizer | None:
        return self.objective.adversary_optimizer()

    def forward(self, terms: Terms) -> Tensor:
        return self.objective(replace(terms, kl=self.kl(terms)))

    def kl(self, terms: Terms) -> Tensor:
        """What takes the place of the KL divergence, of the shape of `terms.kl`."""
        raise NotImplementedError


def known_step(step: int | None, objective: Objective) -> int:
    """The optimization steps taken so far, of an objective that changes with them.

    Raises:
        ValueError: they were not given.
    """
    if step is None:
        raise ValueError(
            f"step is missing: {type(objective).__name__} changes with the optimization steps "
            "taken so far; give their number, vae(x, step)"
        )
    return step


def not_negative(name: str, value: float) -> float:
    """The value of an argument that takes a weight, as a float.

    Args:
        name: what the error calls the argument.
        value: what it is.

    Returns:
        The value.

    Raises:
        ValueError: it is negative or no number.

    Example:
        >>> not_negative("beta", 4)
        4.0
        >>> not_negative("beta", -1)
        Traceback (most recent call last):
        ValueError: beta is -1; it must not be negative
    """
    if not value >= 0:
        raise ValueError(f"{name} is {value}; it must not be negative")
    return float(value)
