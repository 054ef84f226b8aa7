"""The VAE: an encoder, a posterior, a prior, a decoder and an objective put together."""

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer

from rhovae_kernels.steps import Steps
from rhovae_kernels.vae import parts, sequential
from rhovae_kernels.vae.base import LIVING, Model, Output
from rhovae_kernels.vae.decoders import Decoder
from rhovae_kernels.vae.objectives import ELBO, Objective, Terms
from rhovae_kernels.vae.objectives.base import known_step
from rhovae_kernels.vae.posteriors import Posterior
from rhovae_kernels.vae.priors import Prior
from rhovae_kernels.vae.trial import check_decoder, encoder_shapes
from rhovae_kernels.vae.values import check_values

KINDS = {
    "encoder": nn.Module,
    "posterior": Posterior,
    "prior": Prior,
    "decoder": Decoder,
    "objective": Objective,
}


class VAE(Model, library_name="rhovae-kernels", tags=["vae"]):
    """A variational autoencoder: log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).

    Posterior, prior and decoder are all of single codes, or all of sequences. A datum is then a
    sequence (T, features), whose missing steps, and the padding that gives those of a batch one
    length, are NaN, see `data.pad`; T may differ from batch to batch. A sequence ends with its last
    step that is not NaN, so that missing steps behind it are padding. Every sum is over a
    sequence's own steps.

    Args:
        encoder: from data (B, *input_shape) to features (B, features): one of `nets`, or any
            module. Of sequences to those of each step, (B, T, features), or to `nets.Steps`.
        posterior: from features to q(z|x) (`posteriors`).
        prior: p(z) (`priors`), of as many latent dimensions as the posterior.
        decoder: p(x|z) (`decoders`), around any module from a code to data; mirrors the encoder
            where it holds no network and the encoder is one of `nets`.
        objective: what `forward` gives as the loss (`objectives`); the ELBO where left out.
        input_shape: shape of one datum, where the encoder does not say it itself; of sequences
            (T, features), T being how many steps a sample has.
        features: width of the encoder's output, where neither the encoder nor a trial on the meta
            device says it.
        validate_args: whether data are looked at in every call, see `check_data`, as far as no
            graph is being made; on a GPU it has to be waited for. `fit` and `evaluate` look once.

    Raises:
        ValueError: a part is of another kind than its name says; posterior and prior differ in
            their latent dimensions, or some parts are of sequences and others are not; the
            objective refuses the posterior, or the prior the encoder; a network does not take or
            give what its neighbours do; a part, or the network of one, is that of another VAE. It
            is free again when that is gone.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.VAE(rk.nets.MLP((1, 8, 8)), rk.posteriors.AR1(4), rk.priors.StandardNormal(4),
        ...              rk.decoders.Bernoulli())
        >>> vae(torch.zeros(2, 1, 8, 8)).rate.shape, vae.sample(3).shape
        (torch.Size([2]), torch.Size([3, 1, 8, 8]))
    """

    part_names = ("encoder", "posterior", "prior", "decoder", "objective")

    def __init__(
        self,
        encoder: nn.Module,
        posterior: Posterior,
        prior: Prior,
        decoder: Decoder,
        objective: Objective | None = None,
        *,
        input_shape: tuple[int, ...] | None = None,
        features: int | None = None,
        validate_args: bool = True,
    ) -> None:
        super().__init__(validate_args)
        objective = objective if objective is not None else ELBO()
        given = {
            "encoder": encoder,
            "posterior": posterior,
            "prior": prior,
            "decoder": decoder,
            "objective": objective,
        }
        parts.check_kinds(given, KINDS)
        parts.refuse_taken(given, LIVING)
        if posterior.latent != prior.latent:
            raise ValueError(
                f"posterior has latent={posterior.latent}, prior has latent={prior.latent}: "
                "they must agree"
            )
        sequential.check_parts(posterior, prior, decoder, objective)
        objective.check(posterior)
        self._input_shape, self._features = encoder_shapes(
            encoder, input_shape, features, posterior.sequential
        )
        posterior.build(self._features)
        decoder.build(encoder, posterior.latent, self._input_shape)
        check_decoder(decoder, posterior.latent, self._input_shape)
        objective.build(posterior.latent)
        prior.bind(encoder, posterior, self._input_shape)
        posterior.bind(prior)
        self.encoder = encoder
        self.posterior = posterior
        self.prior = prior
        self.decoder = decoder
        self.objective = objective
        self._hub_mixin_config = {name: parts.describe(p) for name, p in self.named_children()}
        if "given" in self._hub_mixin_config["encoder"]:
            shapes = {"input_shape": list(self._input_shape), "features": self._features}
            self._hub_mixin_config |= shapes

    @property
    def latent(self) -> int:
        """Dimensions of the latent code; of sequences, of that of a step."""
        return self.posterior.latent

    @property
    def sequential(self) -> bool:
        """Whether data are sequences, and codes too, of as many steps."""
        return self.posterior.sequential

    @property
    def mode(self) -> str:
        return "draw" if self.decoder.autoregressive else "mean"

    def forward(
        self, x: Tensor, step: int | None = None, data_size: int | None = None, samples: int = 1
    ) -> Output:
        """The loss of a batch and what it is made of.

        Args:
            x: data, (B, *input_shape).
            step: optimization steps taken so far; objectives that change with them (`WarmUp`,
                `BetaB`) demand it.
            data_size: how many data the batch is drawn of, for objectives that estimate the
                aggregate posterior; the batch alone where left out.
            samples: draws of z for each datum; distortion and rate are means over them.

        Raises:
            ValueError: x is of another shape; the objective takes one draw alone, or changes with
                steps and none is given.
        """
        if self.objective.needs_step:
            known_step(step, self.objective)
        terms = self._terms(x, step, data_size, samples)
        loss = self.objective(terms)
        if samples == 1:
            return Output(loss, terms.distortion, terms.rate)
        distortion, rate = (
            t.unflatten(0, (x.shape[0], samples)).mean(1) for t in (terms.distortion, terms.rate)
        )
        return Output(loss, distortion, rate)

    def check_data(self, x: Tensor, name: str = "x") -> None:
        self._check_shape(x, name)
        check_values(x, self.decoder, name)

    def elbo(self, x: Tensor) -> Tensor:
        """log p(x|z) − KL(q(z|x) ‖ p(z)) at one sample z of q(z|x): (B,), in nats."""
        z, kl = self.posterior.rsample_and_kl(self.encode(x), self.prior)
        return self.decoder.log_prob(x, z) - kl

    def posterior_for(self, x: Tensor) -> Distribution:
        """q(z|x), of batch shape (B,) and event shape (latent,), or (T, latent) of sequences."""
        return self.posterior(self.encode(x))

    def encode(self, x: Tensor) -> Any:
        """The encoder's features, (B, features); of sequences `nets.Steps`, those of each step.

        Raises:
            TypeError: x is no tensor.
            ValueError: x is of another shape or, where `validate_args`, see `check_data`.
        """
        self._check(x)
        h = self.encoder(x)
        return sequential.steps_of(h, x) if self.sequential else h

    def log_weights(self, x: Tensor, k: int) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x) at k samples z of q(z|x): (k, B), in nats.

        The mean of the weights estimates p(x) without bias; the mean of these, the ELBO.
        """
        q = self.posterior_for(x)
        z = q.rsample((k,))
        log_prior = self.posterior.log_prior(z, q, self.prior)
        return self.decoder.log_prob(x, z) + log_prior - q.log_prob(z)

    @torch.no_grad()
    def sample(self, n: int, mode: str | None = None, generator: Generator | None = None) -> Tensor:
        """n data from the prior, (n, *input_shape).

        Args:
            n: how many.
            mode: "mean" for the decoder's mean, "draw" for a draw from p(x|z); where left out the
                mean, of a decoder that has one.
            generator: of the model's device; PyTorch's own where left out.

        Raises:
            ValueError: mode is neither, or "mean" and the decoder has none.
        """
        return self.decode(self.prior.sample(n, generator), mode, generator)

    @torch.no_grad()
    def decode(
        self, z: Tensor, mode: str | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Data of codes z (…, latent), (…, *input_shape); mode and generator as of `sample`."""
        mode = self.mode if mode is None else mode
        sequential.check_mode(mode)
        return self.decoder.mean(z) if mode == "mean" else self.decoder.draw(z, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoder's mean at the posterior's mean, (B, *input_shape); a draw from p(x|z) there,
        of a decoder that has no mean.

        Of sequences, missing steps are filled in; the padding that follows the last stays NaN.
        """
        h = self.encode(x)
        again = self.decode(self.posterior(h).mean)
        return sequential.without_padding(again, h) if isinstance(h, Steps) else again

    def impute(
        self, x: Tensor, samples: int = 100, mode: str = "mean", generator: Generator | None = None
    ) -> Tensor:
        """Sequences with their missing steps filled in, given all that were observed.

        Samples z of q(z|x) stand for p(z|x). What was observed stays as it is, and the padding that
        follows the last observed step stays NaN: `forecast` goes on from there.

        Args:
            x: sequences, (B, T, features), missing steps NaN.
            samples: how many samples of q(z|x).
            mode: "mean" for the mean over them of the decoder's means; "draw" for a draw from
                p(x|z) at each.
            generator: of the model's device; PyTorch's own where left out.

        Returns:
            "mean": (B, T, features). "draw": (samples, B, T, features).

        Raises:
            ValueError: the model is not one of sequences; see `encode`; an unknown mode.
        """
        return sequential.impute(self, x, samples, mode, generator)

    def forecast(
        self,
        x: Tensor,
        steps: int,
        samples: int = 100,
        mode: str = "mean",
        generator: Generator | None = None,
    ) -> Tensor:
        """The steps that follow the last observed one of each sequence.

        From the last step of samples z of q(z|x) on, z goes on by the prior.

        Args:
            x: sequences, (B, T, features), missing steps NaN.
            steps: how many are to follow.
            samples: as of `impute`.
            mode: as of `impute`.
            generator: as of `impute`.

        Returns:
            "mean": (B, steps, features). "draw": (samples, B, steps, features).

        Raises:
            ValueError: the model is not one of sequences; see `encode`; an unknown mode; steps is
                no positive integer.
        """
        return sequential.forecast(self, x, steps, samples, mode, generator)

    def _terms(
        self, x: Tensor, step: int | None, data_size: int | None = None, samples: int = 1
    ) -> Terms:
        # Of a graph with a dynamic batch, len would be the number of its example.
        h, size = self.encode(x), x.shape[0] if data_size is None else data_size
        if samples > 1:
            self.check_samples(samples)
            x, h = x.repeat_interleave(samples, 0), sequential.repeated(h, samples)
        return self.objective.draw(x, h, self.posterior, self.prior, self.decoder, step, size)

    def check_samples(self, samples: int) -> None:
        """Refuse more draws of z for each datum than the objective can do with.

        Raises:
            ValueError: the objective takes one draw alone.
        """
        if samples > 1 and not self.objective.repeats:
            raise ValueError(
                f"samples is {samples}; {type(self.objective).__name__} takes each datum of a "
                "batch once (IWAE has samples of its own)"
            )

    def check_training(self, samples: int, count: int | None, name: str) -> None:
        self.check_samples(samples)
        if count is None and self.objective.needs_data_size:
            raise ValueError(
                f"{type(self.objective).__name__} weighs by the number of data, which the {name} "
                "does not tell: give its data set a length"
            )

    def adversary_optimizer(self) -> Optimizer | None:
        return self.objective.adversary_optimizer()


def vae_of(model: Model, what: str) -> VAE:
    """The model as the VAE that it is, where something is asked of its codes.

    Args:
        model: any model.
        what: what is asked, as the subject of a sentence.

    Raises:
        ValueError: it has no latent code.
    """
    if not isinstance(model, VAE):
        raise ValueError(
            f"{what} is of a latent code; this model is a {type(model).__name__}, which has none"
        )
    return model
