"""Structured-posterior VAEs as cheap as plain ones: fused kernels, building blocks, models.

Importing this registers the ops on `torch.ops.rhovae.*` and needs torch and triton alone; what is
built on them is imported at first use.
"""

import importlib
from typing import Any

from rhovae_kernels import ops
from rhovae_kernels.backends import BackendError, build_info, use_backend
from rhovae_kernels.ops.philox import fresh_rng_state
from rhovae_kernels.staircase import staircase

__version__ = "0.1.0"

# Public name -> the module it is, or the module and the name in it.
_LAZY = {
    "AR1Normal": "rhovae_kernels.distributions:AR1Normal",
    "MarkovNormal": "rhovae_kernels.distributions:MarkovNormal",
    "Density": "rhovae_kernels.vae.density:Density",
    "VAE": "rhovae_kernels.vae.model:VAE",
    "fit": "rhovae_kernels.training.fit:fit",
    "evaluate": "rhovae_kernels.metrics.evaluate:evaluate",
    "fuse": "rhovae_kernels.interop.fuse:fuse",
    "data": "rhovae_kernels.data",
    "decoders": "rhovae_kernels.vae.decoders",
    "metrics": "rhovae_kernels.metrics",
    "nets": "rhovae_kernels.vae.nets",
    "nn": "rhovae_kernels.nn",
    "objectives": "rhovae_kernels.vae.objectives",
    "posteriors": "rhovae_kernels.vae.posteriors",
    "priors": "rhovae_kernels.vae.priors",
    "recipes": "rhovae_kernels.vae.recipes",
    "training": "rhovae_kernels.training",
}

__all__ = [
    "BackendError",
    "build_info",
    "fresh_rng_state",
    "ops",
    "staircase",
    "use_backend",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rhovae_kernels' has no attribute {name!r}")
    path, _, attribute = _LAZY[name].partition(":")
    module = importlib.import_module(path)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
