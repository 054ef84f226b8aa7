"""Which implementation of an op runs, and why.

An op has up to four implementations: `cpu` (C++) and `cuda` (CUDA C++) from the compiled extension,
`triton`, and `reference` (plain PyTorch, `python_ref`). The default for a tensor is the fastest one
for its device; `use_backend` or the environment variable `RHOVAE_BACKEND` forces one. Nothing falls
back to the reference by itself: where no kernel is built, the op raises with the command that
builds it.
"""

import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NamedTuple, Protocol

import torch

# Calls from this many elements on may have another default on CUDA tensors: there the kernel's own
# time counts, below it the host's, of which compiled C++ needs the least. On an H100, launched one
# by one in float32, CUDA C++ is the faster at 2²⁴ elements, Triton in rows of 1024 at 2²⁶
# (benchmarks/results/gpu-h100.json).
MANY_ELEMENTS = 2**26
OF_MANY = f"{MANY_ELEMENTS} elements or more"

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
    """The implementation that was asked for is unknown or is not there.

    Example:
        >>> use_backend("gpu")
        Traceback (most recent call last):
        rhovae_kernels.backends.BackendError: use_backend: name is 'gpu'; it must be one of cpu, ...
    """


def build_info() -> dict[str, object]:
    """How the compiled extension was built.

    Returns:
        By name: "compiler" and "flags"; "torch", the version it was built with, and "torch_target",
        the oldest it runs with; "cuda", the version of CUDA, and "architectures", both empty where
        it was built without; "targets", the instruction sets of its CPU kernels, and
        "instructions", the one that runs on this machine. Nothing where there is no extension.

    Example:
        >>> build_info()["torch_target"]
        '2.11'
    """
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


class Implemented(Protocol):
    """What is asked of an op here."""

    @property
    def name(self) -> str: ...

    @property
    def cuda_form(self) -> str | None:
        """What the calls have that its kernel in CUDA C++ does not take, where there are some."""

    @property
    def triton_first(self) -> str | None:
        """Why Triton is the default on CUDA tensors of `MANY_ELEMENTS` or more, where it is."""

    def is_written(self, backend: str, form: str | None = None) -> bool:
        """Whether the op has an implementation in this backend; of calls of a form, if named."""

    def implementation(self, backend: str) -> Callable:
        """What implements the op in this backend, which it is written in."""


def unwritten(backend: str, op: Implemented, form: str | None = None) -> str | None:
    """Why `backend` cannot run the op on the tensors that it takes, or None where it can."""
    if op.is_written(backend, form):
        return None
    return f"it has no kernel of rhovae::{op.name}" + (f" with {form}" if form else "")


def nearer_a_copy(triton: int, cuda: int, shape: str) -> str:
    """Why Triton comes first where a GPU has timed both: the shares of a copy's speed, in percent.

    In float32 and a CUDA graph, which has no launches of the host.
    """
    return (
        f"measured: {triton}% of a copy's speed in Triton, {cuda}% in CUDA C++ "
        f"(H100, float32, {shape}, CUDA graph)"
    )


def preferred(
    device_type: str, op: Implemented | None, form: str | None
) -> tuple[tuple[str, str], ...]:
    """What runs by default for tensors of this device, in order of preference, and why."""
    defaults = DEFAULTS.get(device_type, ())
    if device_type != "cuda" or op is None or op.triton_first is None or form != OF_MANY:
        return defaults
    cuda, _ = defaults[0]
    return ("triton", op.triton_first), (cuda, "Triton, which comes first for this op, is missing")


def choose(
    device_type: str, op: Implemented | None = None, form: str | None = None
) -> tuple[str, str]:
    """The backend that runs for tensors of this device, and why.

    Args:
        device_type: of the tensors, "cpu" or "cuda".
        op: the op, where the answer is to be of one.
        form: what its calls have, where they are of `op.cuda_form` or `OF_MANY`.
    """

    def reason_against(backend: str) -> str | None:
        reason = missing(backend, device_type)
        return unwritten(backend, op, form) if reason is None and op is not None else reason

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
    for backend, why in preferred(device_type, op, form):
        reason = reason_against(backend)
        if reason is None:
            return backend, why
        reasons.append(f"{backend}: {reason}")
    detail = "; ".join(reasons) or "only cpu and cuda tensors have kernels"
    raise BackendError(
        f"no kernel for {device_type} tensors. {detail}. "
        "The slow plain-PyTorch reference runs anywhere: rhovae_kernels.use_backend('reference')"
    )


_forced: tuple[str, str] | None = None
if os.environ.get("RHOVAE_BACKEND"):
    _forced = (os.environ["RHOVAE_BACKEND"], "the environment variable RHOVAE_BACKEND")

# By name, type of device and form, what `select` has chosen.
selected: dict[tuple[str, str, str | None], Callable] = {}


def select(op: Implemented, device_type: str, form: str | None = None) -> Callable:
    """The implementation of the op that runs for tensors of this device; arguments as `choose`."""
    # A switch in another thread replaces the dictionary: what is chosen here stays with this one.
    chosen = selected
    found = chosen.get((op.name, device_type, form))
    if found is None:
        found = op.implementation(choose(device_type, op, form)[0])
        chosen[op.name, device_type, form] = found
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
    """One line of `report`: what runs op `op` for tensors of `device`, and why.

    Calls of a form that another backend runs have a line of their own, `op` being "name with form".
    """

    op: str
    device: str
    backend: str
    why: str


def report(ops: Iterable[Implemented]) -> list[Row]:
    """For each of these ops and each device of this machine: what runs, and why."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

    def row(op: Implemented, device: str, form: str | None) -> Row:
        name = f"{op.name} with {form}" if form else op.name
        try:
            return Row(name, device, *choose(device, op, form))
        except BackendError as error:
            return Row(name, device, "none", str(error))

    rows = []
    for op in ops:
        for device in devices:
            rows.append(row(op, device, None))
            if device == "cuda":
                every = rows[-1].backend
                forms = (op.cuda_form, OF_MANY if op.triton_first else None)
                of_forms = (row(op, device, form) for form in forms if form)
                rows += [of_form for of_form in of_forms if of_form.backend != every]
    return rows
