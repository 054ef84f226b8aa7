"""The parts of a VAE, and how each is written down in JSON and built again."""

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from rhovae_kernels import legacy

_HOMES = {
    "nets": "rhovae_kernels.vae.nets",
    "posteriors": "rhovae_kernels.vae.posteriors",
    "priors": "rhovae_kernels.vae.priors",
    "decoders": "rhovae_kernels.vae.decoders",
    "objectives": "rhovae_kernels.vae.objectives",
    "published": "rhovae_kernels.papers.published",
}
"""What a description calls the modules that define parts, and where these are."""


class Part(nn.Module):
    """A module that keeps its constructor's arguments under their own names."""

    def __init__(self) -> None:
        super().__init__()

    def arguments(self) -> dict[str, Any]:
        """What the constructor is to be called with to build an equal part."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}


def positive_integers(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """The values of an argument that takes sizes, one at least.

    Raises:
        ValueError: there is none, or one is no positive integer.
    """
    if not isinstance(values, Iterable):
        raise ValueError(
            f"{name} is {values!r}; a tuple of positive integers is wanted, ({values!r},)"
        )
    values = tuple(values)
    if not values or not all(isinstance(value, int) and value > 0 for value in values):
        found = ", ".join(map(repr, values)) or "empty"
        raise ValueError(f"{name} is {found}; positive integers are wanted")
    return values


def check_kinds(given: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Refuse parts in the place of others, and classes in the place of parts.

    Args:
        given: the parts of a model that is being made, by name.
        kinds: the class of each.

    Raises:
        ValueError: a part is of another kind than its name asks for.
    """
    for name, kind in kinds.items():
        part = given[name]
        if isinstance(part, type):
            raise ValueError(
                f"{name} is the class {part.__name__}; make one of it, {part.__name__}(…)"
            )
        if not isinstance(part, kind):
            raise ValueError(f"{name} is a {type(part).__name__}; it must be a {kind.__name__}")


def refuse_taken(given: Mapping[str, nn.Module], models: Iterable[nn.Module]) -> None:
    """Refuse parts that are those of another model: trained in one, they would change in both.

    Args:
        given: the parts of a model that is being made, by name.
        models: those that there are.

    Raises:
        ValueError: a part, or a module that a `Part` was made of, is in one of them.
    """
    taken = {
        id(held): type(model).__name__
        for model in models
        for part in model.children()
        for held in _held(part)
    }
    for name, part in given.items():
        for held in _held(part):
            if (kind := taken.get(id(held))) is not None:
                raise ValueError(
                    f"{name} {'is' if held is part else 'holds'} a {type(held).__name__} that is "
                    f"part of another {kind}; a part of one {kind} alone is wanted: make another, "
                    "or hand in its copy.deepcopy"
                )


def _held(part: nn.Module) -> Iterator[nn.Module]:
    """A part and what it was made of; somebody else's module is looked at as a whole."""
    yield part
    if isinstance(part, Part):
        for child in part.children():
            yield from _held(child)


def describe(part: nn.Module) -> dict[str, Any]:
    """A JSON-ready description of a part, from which `build` makes it again.

    A module that is not a `Part` of this package is described by its class alone, which `build`
    refuses: only the code that made it can make it again.

    Example:
        >>> from rhovae_kernels.vae import nets
        >>> describe(nets.MLP((2,), hidden=(16,)))
        {'part': 'nets.MLP', 'input_shape': [2], 'hidden': [16]}
    """
    kind = type(part)
    homes = [name for name, home in _HOMES.items() if f"{kind.__module__}.".startswith(f"{home}.")]
    if not isinstance(part, Part) or not homes:
        return {"given": f"{kind.__module__}.{kind.__qualname__}"}
    description: dict[str, Any] = {"part": f"{homes[0]}.{kind.__name__}"}
    for name, value in part.arguments().items():
        if isinstance(value, nn.Module):
            value = describe(value)
        elif isinstance(value, tuple):
            value = list(value)
        description[name] = value
    return description


def build(description: dict[str, Any]) -> Part:
    """The part that `describe` described, here or in 0.1.0, freshly initialized.

    Raises:
        ValueError: the description names no part of this package.

    Example:
        >>> build({"part": "priors.StandardNormal", "latent": 3}).latent
        3
    """
    if not isinstance(description, dict):
        raise ValueError(f"{description!r} describes no part")
    if "given" in description:
        raise ValueError(
            f"{description['given']} was defined outside rhovae_kernels, so its description does "
            "not say how to build it: hand in the part that holds it"
        )
    description = legacy.description(description)
    arguments = {
        name: build(value)
        if isinstance(value, dict)
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in description.items()
        if name != "part"
    }
    name = description.get("part")
    home, _, kind = str(name).rpartition(".")
    try:
        if home not in _HOMES:
            raise ImportError(f"there is no {home!r}; there are {', '.join(_HOMES)}")
        found = getattr(importlib.import_module(_HOMES[home]), kind)
        if not issubclass(found, Part):
            raise TypeError(f"{kind} is no Part")
        return found(**arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"the description of part {name!r} does not fit: {error}") from error
