"""Where networks lie in what is no module: sbi's posteriors, and distributions of transforms."""

from collections.abc import Iterator
from typing import Any

from torch import nn

# Objects of these are looked into; of others, nothing is known.
LIBRARIES = ("sbi", "pyro.distributions", "torch.distributions")


def modules_of(flow: Any) -> dict[str, nn.Module]:
    """By name, a module itself (of no name), or those in the attributes of a posterior or the like.

    One that is held under several names has the first.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in _search(flow, "", seen):
        found[name] = module
    return found


def _search(held: Any, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, nn.Module):
        yield name, held
    elif isinstance(held, list | tuple):
        for i, each in enumerate(held):
            yield from _search(each, f"{name}.{i}", seen)
    elif isinstance(held, dict):
        for key, each in held.items():
            yield from _search(each, f"{name}.{key}", seen)
    elif f"{type(held).__module__}.".startswith(tuple(f"{library}." for library in LIBRARIES)):
        for key, each in getattr(held, "__dict__", {}).items():
            yield from _search(each, f"{name}.{key}", seen)
