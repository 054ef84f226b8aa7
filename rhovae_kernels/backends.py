"""Which implementation of an op runs, and why.

An op has up to four implementations: `cpu` (C++) and `cuda` (CUDA C++) from the compiled extension,
`triton`, and `reference` (plain PyTorch, `python_ref`). The default for a tensor is the fastest one
for its device; `use_backend` or the environment variable `RHOVAE_BACKEND` forces one. Nothing falls
back to the reference by itself: where no kernel is built, the op raises with the command that
builds it.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import NamedTuple

import torch

BACKENDS = ("cpu", "cuda", "triton", "reference")

# Per device, what runs by default, in order of preference, and the reason that `report` gives.
DEFAULTS: dict[str, tuple[tuple[str, str], ...]] = {
    "cpu": (("cpu", "compiled C++ is the fastest on this device"),),
    "cuda": (
        ("cuda", "compiled CUDA C++ is preferred on this device"),
        ("triton", "the extension holds no CUDA kernels; Triton compiles its own at first use"),
    ),
}

BUILD_COMMAND = "pip install --no-build-isolation --no-deps --force-reinstall -e ."

try:
    # Importing the module registers its kernels in the namespaces rhovae_cpu and rhovae_cuda.
    from rhovae_kernels import _C as extension

    extension_error = None
except ImportError as error:
    extension = None
    extension_error = str(error)

try:
    import triton  # noqa: F401

    triton_error = None
except ImportError as error:
    triton_error = str(error)


class BackendError(RuntimeError):
    """The implementation that was asked for is unknown or is not there."""


def build_info() -> dict[str, object]:
    """How the extension was built: compiler, flags, CUDA version, architectures, torch; or {}."""
    return dict(extension.build_info()) if extension is not None else {}


def missing(backend: str, device_type: str) -> str | None:
    """Why `backend` cannot run on tensors of this device, or None where it can."""
    if backend == "cpu" and device_type != "cpu":
        return f"its kernels take cpu tensors, not {device_type}"
    if backend == "cuda" and device_type != "cuda":
        return f"its kernels take cuda tensors, not {device_type}"
    if backend in ("cpu", "cuda") and extension is None:
        return (
            "the compiled extension rhovae_kernels._C is missing or does not load "
            f"({extension_error}). In the source directory, build it with `{BUILD_COMMAND}`"
        )
    if backend == "cuda" and not build_info()["cuda"]:
        return (
            "the extension was built without CUDA. With nvcc and a CUDA build of torch installed, "
            f"in the source directory, build it again with `{BUILD_COMMAND}`"
        )
    if backend == "triton" and triton_error is not None:
        return (
            f"triton does not import ({triton_error}). Install it with: pip install 'triton>=3.6'"
        )
    return None


def unwritten(backend: str, device_type: str, room: str, name: str) -> str | None:
    """Why `backend`, which runs on this device, holds no kernel of op `name`, or None."""
    if backend in ("cpu", "cuda"):
        kernel = (f"rhovae_{backend}::{name}", device_type.upper())
        there = torch._C._dispatch_has_kernel_for_dispatch_key(*kernel)
    elif backend == "triton":
        module = f"rhovae_kernels.triton.{room}"
        there = importlib.util.find_spec(module) is not None and hasattr(
            importlib.import_module(module), name
        )
    else:
        there = True
    return None if there else f"it has no kernel of rhovae::{name}"


def choose(device_type: str, room: str | None = None, name: str | None = None) -> tuple[str, str]:
    """The backend that runs for tensors of this device, and why; of op `name` where it is given."""

    def reason_against(backend: str) -> str | None:
        reason = missing(backend, device_type)
        if reason is None and room is not None and name is not None:
            reason = unwritten(backend, device_type, room, name)
        return reason

    if _forced is not None:
        backend, source = _forced
        if backend not in BACKENDS:
            raise BackendError(
                f"{source} names {backend!r}; it must be one of {', '.join(BACKENDS)}"
            )
        reason = reason_against(backend)
        if reason is not None:
            raise BackendError(f"{source} asks for {backend!r}: {reason}")
        return backend, f"forced by {source}"
    reasons = []
    for backend, why in DEFAULTS.get(device_type, ()):
        reason = reason_against(backend)
        if reason is None:
            return backend, why
        reasons.append(f"{backend}: {reason}")
    detail = "; ".join(reasons) or "only cpu and cuda tensors have kernels"
    raise BackendError(
        f"no kernel for {device_type} tensors. {detail}. "
        "The slow plain-PyTorch reference runs anywhere: rhovae_kernels.use_backend('reference')"
    )


def _reference(room: str, name: str, *args):
    implementation = getattr(importlib.import_module(f"python_ref.{room}"), name)
    if not name.endswith("_backward"):
        return implementation(*args)
    # The specification gives every gradient; the op those asked for, and empty ones for the rest.
    *given, needs = args
    gradients = implementation(*given)
    return tuple(g if need else g.new_empty(0) for g, need in zip(gradients, needs, strict=True))


def implementation(room: str, name: str, backend: str) -> Callable:
    """The callable that implements op `name`, which lives in `room`, in `backend`.

    It refuses arguments that do not fit: in Python with an error that names the argument; compiled,
    in C++ (csrc/arguments.h), with a RuntimeError.
    """
    if backend in ("cpu", "cuda"):
        # The dispatcher's own entry, without the Python call that an overload is around it.
        return getattr(getattr(torch.ops, f"rhovae_{backend}"), name).default._op
    if backend == "reference":
        kernel: Callable = partial(_reference, room, name)
    else:
        kernel = getattr(importlib.import_module(f"rhovae_kernels.triton.{room}"), name)

    def checked(*args):
        CHECKS[name](*args)
        return kernel(*args)

    return checked


_forced: tuple[str, str] | None = None
if os.environ.get("RHOVAE_BACKEND"):
    _forced = (os.environ["RHOVAE_BACKEND"], "the environment variable RHOVAE_BACKEND")

# By name and type of device, what `select` has chosen.
selected: dict[tuple[str, str], Callable] = {}

# Of each op, what refuses arguments that do not fit. Compiled kernels look for themselves.
CHECKS: dict[str, Callable[..., None]] = {}


def select(room: str, name: str, device_type: str) -> Callable:
    """The implementation of op `name` that runs for tensors of this device."""
    # A switch in another thread replaces the dictionary: what is chosen here stays with this one.
    chosen = selected
    found = chosen.get((name, device_type))
    if found is None:
        found = implementation(room, name, choose(device_type, room, name)[0])
        chosen[name, device_type] = found
    return found


def _force(forced: tuple[str, str] | None) -> None:
    global _forced, selected
    _forced = forced
    selected = {}


class use_backend:
    """Force one implementation, for the whole process: as a function, or for a `with` block.

    Args:
        name: "cpu", "cuda", "triton", "reference", or None for the default of each device.

    Raises:
        BackendError: the name is none of these. A backend that cannot run on a tensor's device
            raises when an op is called on that tensor.

    The choice is the process's, not the thread's: backward passes run on threads of their own.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> with rk.use_backend("reference"):
        ...     rk.ops.linear_scan(torch.tensor([0.5]), torch.ones(3))
        tensor([1.0000, 1.5000, 1.7500])
    """

    def __init__(self, name: str | None):
        if name is not None and name not in BACKENDS:
            raise BackendError(
                f"use_backend: name is {name!r}; it must be one of {', '.join(BACKENDS)}"
            )
        self._wanted = None if name is None else (name, f"use_backend({name!r})")
        # What was in force before each block that is open; the first entry is this call's own.
        self._before = [_forced]
        self._entered = False
        _force(self._wanted)

    def __enter__(self) -> "use_backend":
        if self._entered:
            self._before.append(_forced)
            _force(self._wanted)
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _force(self._before.pop())


class Row(NamedTuple):
    """One line of `report`: what runs op `op` for tensors of `device`, and why."""

    op: str
    device: str
    backend: str
    why: str


def report() -> list[Row]:
    """For each op and each device of this machine: the implementation that runs, and why."""
    from rhovae_kernels.ops.registration import PUBLIC_OPS, ROOMS

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for op in PUBLIC_OPS:
        for device in devices:
            try:
                rows.append(Row(op, device, *choose(device, ROOMS[op], op)))
            except BackendError as error:
                rows.append(Row(op, device, "none", str(error)))
    return rows
