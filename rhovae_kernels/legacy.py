"""The names of 0.1.0 and what took their place: keywords, descriptions, states."""

import functools
import re
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn

Self = TypeVar("Self")
P = ParamSpec("P")

_LAYERED = {"hidden": "hidden_features"}
_STEPPED = {"steps": "transforms", **_LAYERED}
_COUPLED = {"layers": "transforms", **_LAYERED}

KEYWORDS: dict[str, dict[str, str]] = {
    "nn.AffineCoupling": _LAYERED,
    "nn.IAF": _STEPPED,
    "nn.MADE": _LAYERED,
    "nn.MAF": _STEPPED,
    "nn.RealNVP": _COUPLED,
    "posteriors.IAF": _STEPPED,
    "priors.MAF": _STEPPED,
    "priors.RealNVP": _COUPLED,
}
"""By class, as descriptions name it: keyword of 0.1.0 -> keyword."""

FLOW_KEYS: tuple[tuple[re.Pattern[str], str], ...] = (
    # MAF: its steps were the MADEs themselves.
    (re.compile(r"steps\.(\d+)\.(?=layers\.|context_layer\.|order$)"), r"transforms.\1.made."),
    # IAF: its steps held them.
    (re.compile(r"steps\.(\d+)\.(?=(made|m|s)\.)"), r"transforms.\1."),
    # RealNVP.
    (re.compile(r"couplings\."), "transforms."),
)
"""Beginning of a key in the state dict of a flow, as a pattern -> what stands there now."""


STATES = {"adam": "optimizer"}
"""Beginning of the names of an optimizer's states in a checkpoint -> what stands there now."""


def takes_old_keywords(
    name: str,
) -> Callable[[Callable[Concatenate[Self, P], None]], Callable[Concatenate[Self, P], None]]:
    """Let a constructor take its keywords of 0.1.0 too, its signature unchanged.

    Args:
        name: the class, as `KEYWORDS` has it.

    Raises:
        TypeError: in use, a keyword came under both of its names.

    Example:
        >>> import inspect, rhovae_kernels as rk
        >>> list(inspect.signature(rk.nn.MAF).parameters)[:3]
        ['features', 'transforms', 'hidden_features']
        >>> len(rk.nn.MAF(3, steps=2, hidden=(8,)).transforms)
        2
    """
    renamed = KEYWORDS[name]

    def decorate(
        init: Callable[Concatenate[Self, P], None],
    ) -> Callable[Concatenate[Self, P], None]:
        @functools.wraps(init)
        def with_old_keywords(self: Self, *args: P.args, **keywords: P.kwargs) -> None:
            for old, new in renamed.items():
                if old in keywords:
                    if new in keywords:
                        raise TypeError(
                            f"{new} came as {old} too, its name in 0.1.0; give one of them"
                        )
                    keywords[new] = keywords.pop(old)
            init(self, *args, **keywords)

        return with_old_keywords

    return decorate


def description(described: dict[str, Any]) -> dict[str, Any]:
    """A description of a part, or a dict that holds some, with the keywords of 0.1.0 renamed.

    Example:
        >>> description({"prior": {"part": "priors.MAF", "latent": 2, "steps": 3, "hidden": [8]}})
        {'prior': {'part': 'priors.MAF', 'latent': 2, 'transforms': 3, 'hidden_features': [8]}}
    """
    renamed = KEYWORDS.get(str(described.get("part")), {})
    return {
        renamed.get(name, name): description(value) if isinstance(value, dict) else value
        for name, value in described.items()
    }


def rename_flow_keys(flow: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename, in place, what 0.1.0 called the tensors of a flow: a hook before they are loaded.

    Args:
        flow: the flow.
        state: the state dict that is being loaded.
        prefix: what its keys of this flow begin with.
    """
    for key in [key for key in state if key.startswith(prefix)]:
        name = key[len(prefix) :]
        for pattern, now in FLOW_KEYS:
            if found := pattern.match(name):
                state[prefix + found.expand(now) + name[found.end() :]] = state.pop(key)
                break
