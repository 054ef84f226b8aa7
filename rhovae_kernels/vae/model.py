"""The VAE: an encoder, a posterior, a prior, a decoder and an objective put together."""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from rhovae_kernels.files import load_tensors, read_json, save_tensors, write_json
from rhovae_kernels.nn.derived import derive_from_meta
from rhovae_kernels.ops import eager
from rhovae_kernels.vae import parts
from rhovae_kernels.vae.decoders import Decoder
from rhovae_kernels.vae.objectives import ELBO, Objective, Terms
from rhovae_kernels.vae.objectives.base import known_step
from rhovae_kernels.vae.posteriors import Posterior
from rhovae_kernels.vae.priors import Prior
from rhovae_kernels.vae.trial import check_decoder, encoder_shapes
from rhovae_kernels.vae.values import check_values

WEIGHTS, CONFIG = "model.safetensors", "config.json"

_LIVING: weakref.WeakSet["VAE"] = weakref.WeakSet()
"""The VAEs that there are: the parts of one that is gone are free to be another's."""


class Output(NamedTuple):
    """What one pass gives.

    Attributes:
        loss: the objective, a scalar in nats.
        distortion: −log p(x|z), (B,), in nats.
        rate: KL(q(z|x) ‖ p(z)), (B,), in nats, or its estimate.

    Where the objective draws more than one sample of each datum, the last two are means over them.
    """

    loss: Tensor
    distortion: Tensor
    rate: Tensor


class VAE(nn.Module, ModelHubMixin, library_name="rhovae-kernels", tags=["vae"]):
    """A variational autoencoder: log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).

    Args:
        encoder: from data (B, *input_shape) to features (B, features): one of `nets`, or any
            module.
        posterior: from features to q(z|x) (`posteriors`).
        prior: p(z) (`priors`), of as many latent dimensions as the posterior.
        decoder: p(x|z) (`decoders`), around any module from a code to data; mirrors the encoder
            where it holds no network and the encoder is one of `nets`.
        objective: what `forward` gives as the loss (`objectives`); the ELBO where left out.
        input_shape: shape of one datum, where the encoder does not say it itself.
        features: width of the encoder's output, where neither the encoder nor a trial on the meta
            device says it.
        validate_args: whether data are looked at in every call, see `check_data`, as far as no
            graph is being made; on a GPU it has to be waited for. `fit` and `evaluate` look once.

    Raises:
        ValueError: posterior and prior differ in their latent dimensions; the objective refuses
            the posterior, or the prior the encoder; a network does not take or give what its
            neighbours do; a part, or the network of one, is that of another VAE. It is free again
            when that is gone.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.VAE(rk.nets.MLP((1, 8, 8)), rk.posteriors.AR1(4), rk.priors.StandardNormal(4),
        ...              rk.decoders.Bernoulli())
        >>> vae(torch.zeros(2, 1, 8, 8)).rate.shape, vae.sample(3).shape
        (torch.Size([2]), torch.Size([3, 1, 8, 8]))
    """

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
        super().__init__()
        self.validate_args = validate_args
        objective = objective if objective is not None else ELBO()
        given = {
            "encoder": encoder,
            "posterior": posterior,
            "prior": prior,
            "decoder": decoder,
            "objective": objective,
        }
        parts.refuse_taken(given, _LIVING)
        if posterior.latent != prior.latent:
            raise ValueError(
                f"posterior has latent={posterior.latent}, prior has latent={prior.latent}: "
                "they must agree"
            )
        objective.check(posterior)
        self._input_shape, self._features = encoder_shapes(encoder, input_shape, features)
        posterior.build(self._features)
        decoder.build(encoder, posterior.latent)
        check_decoder(decoder, posterior.latent, self._input_shape)
        objective.build(posterior.latent)
        prior.bind(encoder, posterior, self._input_shape)
        self.encoder = encoder
        self.posterior = posterior
        self.prior = prior
        self.decoder = decoder
        self.objective = objective
        self._hub_mixin_config = {name: parts.describe(p) for name, p in self.named_children()}
        if "given" in self._hub_mixin_config["encoder"]:
            shapes = {"input_shape": list(self._input_shape), "features": self._features}
            self._hub_mixin_config |= shapes
        # The buffer of a prior without parameters goes where the others' are.
        self.register_load_state_dict_post_hook(derive_from_meta)
        _LIVING.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _LIVING.add(self)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self._input_shape

    @property
    def latent(self) -> int:
        """Dimensions of the latent code."""
        return self.posterior.latent

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
        """Refuse data that the model cannot be trained or measured on. Looks at every value.

        Args:
            x: data, (B, *input_shape).
            name: what the error calls them.

        Raises:
            ValueError: they have another shape, hold a NaN or an infinity, or lie outside the
                likelihood's support.
        """
        self._check_shape(x, name)
        check_values(x, self.decoder, name)

    def _check_shape(self, x: Tensor, name: str = "x") -> None:
        if x.shape[1:] != self._input_shape:
            raise ValueError(
                f"{name} is of shape {tuple(x.shape)}; this model wants (B, "
                f"{', '.join(map(str, self._input_shape))})"
            )

    def elbo(self, x: Tensor) -> Tensor:
        """log p(x|z) − KL(q(z|x) ‖ p(z)) at one sample z of q(z|x): (B,), in nats."""
        z, kl = self.posterior.rsample_and_kl(self.encode(x), self.prior)
        return self.decoder.log_prob(x, z) - kl

    def posterior_for(self, x: Tensor) -> Distribution:
        """q(z|x), of batch shape (B,) and event shape (latent,)."""
        return self.posterior(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """The encoder's features, (B, features).

        Raises:
            ValueError: x is of another shape or, where `validate_args`, see `check_data`.
        """
        self._check_shape(x)
        if self.validate_args and eager.holds_values(x):
            self.check_data(x)
        return self.encoder(x)

    @contextlib.contextmanager
    def unvalidated(self) -> Iterator[None]:
        """A block within which data are not looked at, as they were before."""
        before, self.validate_args = self.validate_args, False
        try:
            yield
        finally:
            self.validate_args = before

    def log_weights(self, x: Tensor, k: int) -> Tensor:
        """log p(x|z) + log p(z) − log q(z|x) at k samples z of q(z|x): (k, B), in nats.

        The mean of the weights estimates p(x) without bias; the mean of these, the ELBO.
        """
        q = self.posterior_for(x)
        z = q.rsample((k,))
        return self.decoder.log_prob(x, z) + self.prior.log_prob(z) - q.log_prob(z)

    @torch.no_grad()
    def sample(self, n: int, mode: str = "mean", generator: Generator | None = None) -> Tensor:
        """n data from the prior, (n, *input_shape).

        Args:
            n: how many.
            mode: "mean" for the decoder's mean, "draw" for a draw from p(x|z).
            generator: of the model's device; PyTorch's own where left out.

        Raises:
            ValueError: mode is neither.
        """
        if mode not in ("mean", "draw"):
            raise ValueError(f"mode is {mode!r}; it must be 'mean' or 'draw'")
        z = self.prior.sample(n, generator)
        return self.decoder.mean(z) if mode == "mean" else self.decoder.draw(z, generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoder's mean at the posterior's mean, (B, *input_shape)."""
        return self.decoder.mean(self.posterior_for(x).mean)

    def _terms(
        self, x: Tensor, step: int | None, data_size: int | None = None, samples: int = 1
    ) -> Terms:
        # Of a graph with a dynamic batch, len would be the number of its example.
        h, size = self.encode(x), x.shape[0] if data_size is None else data_size
        if samples > 1:
            self.check_samples(samples)
            x, h = (t.repeat_interleave(samples, 0) for t in (x, h))
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

    def _cast_like(self, tensors: dict[str, Tensor]) -> None:
        """Take the types of a state dict, the widest of them where it holds no tensor."""
        floating = [x.dtype for x in tensors.values() if x.is_floating_point()]
        if floating:
            self.to(functools.reduce(torch.promote_types, floating))
        for name, x in self.state_dict(keep_vars=True).items():
            if name in tensors and x.is_floating_point():
                x.data = x.data.to(tensors[name].dtype)

    def save_pretrained(self, save_directory: str | Path, **hub: Any) -> str | None:
        """Write model.safetensors, and config.json that says how to build the parts, atomically.

        Args:
            save_directory: where; made if it is not there.
            hub: push_to_hub=True and its settings, as `huggingface_hub.ModelHubMixin` takes them;
                with any of them a model card is written too.
        """
        if hub:
            return super().save_pretrained(save_directory, **hub)
        self._save_pretrained(Path(save_directory))
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        save_tensors(save_directory / WEIGHTS, self.state_dict())
        write_json(save_directory / CONFIG, self._hub_mixin_config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **given: Any) -> "VAE":
        """The VAE that `save_pretrained` saved, in the types that its weights are stored in, on the
        CPU and in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory, or a repository's name on the Hub.
            given: parts that were made by other code than this package's, and could not be
                described: `encoder=...`, `decoder=...`. Their weights are loaded too.

        Raises:
            FileNotFoundError: there is no such directory, repository or file.
            ValueError: a file is truncated or corrupted, or does not fit the others.
        """
        directory = Path(pretrained_model_name_or_path)
        if not directory.is_dir():
            try:
                files = [WEIGHTS, CONFIG]
                directory = Path(snapshot_download(str(directory), allow_patterns=files))
            except (OSError, HFValidationError, HfHubHTTPError) as error:
                raise FileNotFoundError(
                    f"{directory}: neither a directory nor a repository that can be downloaded"
                ) from error
        config_file = directory / CONFIG
        config = read_json(config_file)
        wanted = ("encoder", "posterior", "prior", "decoder", "objective")
        if not isinstance(config, dict) or any(name not in config for name in wanted):
            raise ValueError(f"{config_file}: not a VAE's; it must describe {', '.join(wanted)}")
        tensors, _ = load_tensors(directory / WEIGHTS)
        for name in wanted:
            if name not in given:
                try:
                    given[name] = parts.build(config[name])
                except ValueError as error:
                    raise ValueError(f"{config_file}: {name}: {error}") from error
        shapes = {name: config[name] for name in ("input_shape", "features") if name in config}
        vae = cls(**given, **shapes)
        try:
            vae._cast_like(tensors)
            vae.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{directory / WEIGHTS}: does not fit {CONFIG}: {error}") from error
        return vae.eval()
