"""How a model is saved and loaded: its weights, and a description of its parts."""

import functools
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn
from typing_extensions import Self

from rhovae_kernels.files import load_tensors, read_json, save_tensors, write_json
from rhovae_kernels.vae import parts

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Saved(nn.Module, ModelHubMixin):
    """A model of parts that `parts.describe` describes.

    A subclass keeps the descriptions, by the names of its arguments, in `_hub_mixin_config`.

    Attributes:
        part_names: the arguments of the constructor that are parts.

    Example:
        >>> import tempfile, rhovae_kernels as rk
        >>> model = rk.Density(rk.decoders.NADE(hidden=(16,)), (1, 4, 4)).eval()
        >>> directory, x = tempfile.mkdtemp(), model.sample(5)
        >>> model.save_pretrained(directory)
        >>> again = rk.Density.from_pretrained(directory)
        >>> torch.equal(model.log_prob(x), again.log_prob(x))
        True
    """

    part_names: ClassVar[tuple[str, ...]] = ()

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
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **given: Any) -> Self:
        """The model that `save_pretrained` saved, in the types of its stored weights, on the CPU
        and in evaluation mode.

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
        if not describes(config, cls):
            raise ValueError(
                f"{config_file}: not a {cls.__name__}'s; it must describe "
                f"{', '.join(cls.part_names)}"
            )
        tensors, _ = load_tensors(directory / WEIGHTS)
        for name in cls.part_names:
            if name not in given:
                try:
                    given[name] = parts.build(config[name])
                except ValueError as error:
                    raise ValueError(f"{config_file}: {name}: {error}") from error
        shapes = {name: config[name] for name in ("input_shape", "features") if name in config}
        model = cls(**given, **shapes)
        try:
            model._cast_like(tensors)
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{directory / WEIGHTS}: does not fit {CONFIG}: {error}") from error
        return model.eval()


def describes(config: Any, kind: type[Saved]) -> bool:
    """Whether what a config.json holds describes every part of a kind of model."""
    return isinstance(config, dict) and all(name in config for name in kind.part_names)
