"""The short way past PyTorch's dispatcher; the one file that touches private names of torch.

In plain eager mode the dispatcher comes straight to autograd and from there to the kernel. Within a
training step, where its code is not in the caches, that costs as much as a small kernel: a front
door therefore asks whether anything intercepts and, if nothing does, calls the kernel itself,
recorded by autograd or not.

Where a torch lacks one of the names below, the package imports and gives the same results, more
slowly: through the dispatcher at every call where one of `SHORT_WAY` is missing, and by what stands
beside each of `OTHERS`.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

# The times below are of torch 2.13 on one core, of a scan of one element called in a loop.

# What each tells of a call. To ask takes up to 0.07 µs; the way that they open together saves
# 1.8 µs of a forward call and 4.0 µs of a backward one.
SHORT_WAY = {
    "torch._C._len_torch_function_stack": "whether a function mode intercepts",
    "torch._C._len_torch_dispatch_stack": "whether a dispatch mode intercepts",
    "torch._C._functorch.peek_interpreter_stack": "whether torch.func transforms",
    "torch._C._functorch.is_functorch_wrapped_tensor": "whether a closed transform left a wrapper",
    "torch.autograd.forward_ad._current_level": "whether forward mode is on",
    "torch._C._is_any_autocast_enabled": "whether autocast is on",
    "torch._C._get_tracing_state": "whether torch.jit.trace records",
    "torch._C._autograd._profiler_enabled": "whether a profiler records",
    "torch._C._dispatch_tls_is_dispatch_key_excluded": "whether the caller is below autograd",
    "torch._C.DispatchKey.AutogradOther": "the key that tells it: the devices' share their bits",
    "torch.Tensor._is_zerotensor": "whether a tensor's zeros are in no memory",
}
# What each is for; what stands in for it; what it saves.
OTHERS = {
    "torch._C._AutoDispatchBelowAutograd": (
        "calls an op below autograd",
        "inference mode, whose results are copied",
        "2.5 µs a call",
    ),
    "torch._C._FunctionBase.apply": (
        "records a call",
        "`Function.apply`, which reads the signature of `forward` first",
        "13 µs a call",
    ),
    "torch.ops.aten.alias.default._op": (
        "is the dispatcher's entry of an op",
        "the overload, a Python call around it",
        "0.15 µs a call",
    ),
    "torch._C._ExcludeDispatchKeyGuard": (
        "calls an op below autocast",
        "a block in which autocast is disabled",
        "1.9 µs a call",
    ),
    "torch._C.DispatchKeySet": ("is what that guard takes", "the same", "the same"),
    "torch._C.DispatchKey.AutocastCPU": ("is in that set", "the same", "the same"),
    "torch._C.DispatchKey.AutocastCUDA": ("is in that set", "the same", "the same"),
    "torch._functorch.utils.unwrap_dead_wrappers": (
        "takes off what a closed transform left around a tensor",
        "a view of the tensor",
        "0.4 µs a tensor",
    ),
    "torch._C._functorch.get_interpreter_stack": (
        "tells forward mode over forward mode, of which PyTorch would make zeros",
        "an error in all forward mode under torch.func",
        "no time",
    ),
    "torch._C._functorch.TransformType": ("names the levels of that stack", "the same", "no time"),
    "torch._C._dispatch_has_kernel_for_dispatch_key": (
        "tells whether an op is compiled",
        "yes: calling one that is not is PyTorch's error, which names it",
        "no time",
    ),
    "torch.Tensor._version": (
        "tells whether a tensor was changed in place",
        "None: what would be known of it is computed again",
        "that computation",
    ),
}


def find(name: str) -> Any:
    """The private name, or None where this torch lacks it."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None


_found = {name: find(name) for name in (*SHORT_WAY, *OTHERS)}
_short_way = all(_found[name] is not None for name in SHORT_WAY)

_len_torch_function_stack = _found["torch._C._len_torch_function_stack"]
_len_torch_dispatch_stack = _found["torch._C._len_torch_dispatch_stack"]
_peek_interpreter_stack = _found["torch._C._functorch.peek_interpreter_stack"]
_is_functorch_wrapped_tensor = _found["torch._C._functorch.is_functorch_wrapped_tensor"]
_is_any_autocast_enabled = _found["torch._C._is_any_autocast_enabled"]
_get_tracing_state = _found["torch._C._get_tracing_state"]
_profiler_enabled = _found["torch._C._autograd._profiler_enabled"]
_dispatch_tls_is_dispatch_key_excluded = _found["torch._C._dispatch_tls_is_dispatch_key_excluded"]
_AUTOGRAD = _found["torch._C.DispatchKey.AutogradOther"]
_is_zerotensor = _found["torch.Tensor._is_zerotensor"]

_AutoDispatchBelowAutograd = _found["torch._C._AutoDispatchBelowAutograd"]
_ExcludeDispatchKeyGuard = _found["torch._C._ExcludeDispatchKeyGuard"]
_DispatchKeySet = _found["torch._C.DispatchKeySet"]
_unwrap_dead_wrappers = _found["torch._functorch.utils.unwrap_dead_wrappers"]
_get_interpreter_stack = _found["torch._C._functorch.get_interpreter_stack"]
_TransformType = _found["torch._C._functorch.TransformType"]
_has_kernel = _found["torch._C._dispatch_has_kernel_for_dispatch_key"]


def unwatched(args: Sequence) -> str | None:
    """The type of device whose kernel is all that is left of a call on these below autograd.

    None where a mode or a tensor subclass intercepts, a tensor's memory does not hold its values,
    or the device has no kernels of ours.
    """
    if _len_torch_dispatch_stack() > 0:
        return None
    leader = None
    for x in args:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            # A vjp that has closed leaves wrapped tensors behind; the dispatcher unwraps them.
            if _is_functorch_wrapped_tensor(x) or x.is_neg() or _is_zerotensor(x):
                return None
            leader = x
        elif isinstance(x, Tensor):
            return None
    if leader is None:
        return None
    if leader.is_cpu:
        return "cpu"
    return "cuda" if leader.is_cuda else None


def front_door(
    overload: Callable, kernels: Mapping[str, Callable], recorded: Mapping[str, Callable]
) -> Callable:
    """`overload` for calls with every argument given and no list of tensors, by the short way.

    Args:
        overload: `torch.ops.rhovae.<name>.default`.
        kernels: by type of device, what the dispatcher comes to below autograd.
        recorded: the same, recorded by autograd where it can be.
    """
    if not _short_way:
        return overload

    def call(*args):
        if not (
            is_dynamo_compiling()
            or _len_torch_function_stack() > 0
            or _peek_interpreter_stack() is not None
            or forward_ad._current_level >= 0
            or _is_any_autocast_enabled()
            or _get_tracing_state() is not None
            or _profiler_enabled()
            or _dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
        ):
            device_type = unwatched(args)
            if device_type is not None:
                return (recorded if is_grad_enabled() else kernels)[device_type](*args)
        return overload(*args)

    return call


def gradients(overload: Callable, kernels: Mapping[str, Callable]) -> Callable:
    """`overload`, a backward op, for calls from within a backward pass; arguments as `front_door`.

    Returns:
        A function of the op's arguments before `needs`, and of `needs`: the gradients, None where
        one was not asked for.
    """

    def call(args, needs):
        recorded = is_grad_enabled() or forward_ad._current_level >= 0
        device_type = None if recorded or _peek_interpreter_stack() is not None else unwatched(args)
        results = (overload if device_type is None else kernels[device_type])(*args, needs)
        return tuple([g if need else None for g, need in zip(results, needs, strict=True)])

    def call_through_the_dispatcher(args, needs):
        results = overload(*args, needs)
        return tuple([g if need else None for g, need in zip(results, needs, strict=True)])

    return call if _short_way else call_through_the_dispatcher


def below_autograd(overload: Callable) -> Callable:
    """Calls the op through the dispatcher, below autograd."""
    guard = _AutoDispatchBelowAutograd

    def below(*args):
        with guard():
            return overload(*args)

    def below_by_inference_mode(*args):
        with torch.inference_mode():
            outputs = overload(*args)
        # Autograd saves no tensor that was made in inference mode.
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(y.clone() for y in outputs)

    return below_by_inference_mode if guard is None else below


def with_forward(function: type[Function], forward: Callable) -> type[Function]:
    """The derivatives of `function` around this `forward`."""
    return type(function.__name__, (function,), {"forward": staticmethod(forward)})


def recorder(function: type[Function]) -> Callable:
    """`function.apply` where no transform of torch.func can be at work."""
    if _found["torch._C._FunctionBase.apply"] is None:
        return function.apply
    return super(Function, function).apply  # type: ignore[misc]


def at_autograd(
    below: Callable, inputs: Callable, record: Callable, recorded: Mapping[str, Callable]
) -> Callable:
    """What runs at the dispatcher's key Autograd.

    Args:
        below: the op below autograd.
        inputs: makes of the op's arguments those of `record` and `recorded`.
        record: `below`, recorded.
        recorded: by type of device, the kernel, recorded.
    """
    if not _short_way:
        return lambda *args: record(*inputs(args))

    def autograd(*args):
        # Without gradients, in reverse or forward mode, there is nothing to record.
        if not is_grad_enabled() and forward_ad._current_level < 0:
            return below(*args)
        args = inputs(args)
        device_type = unwatched(args)
        return (record if device_type is None else recorded[device_type])(*args)

    return autograd


def at_functorch(name: str, inputs: Callable, function: type[Function]) -> Callable:
    """What runs at the dispatcher's key FuncTorchDynamicLayerFrontMode.

    Args:
        name: the op's, for errors.
        inputs: makes of the op's arguments those of `function`.
        function: records the op below autograd.
    """
    levels_known = _get_interpreter_stack is not None and _TransformType is not None

    def refuse(ctx, *tangents):
        raise RuntimeError(
            f"rhovae::{name}: forward mode under torch.func is not supported with torch "
            f"{torch.__version__}; use reverse mode, or torch.autograd.forward_ad"
        )

    if not levels_known:
        function = type(function.__name__, (function,), {"jvp": staticmethod(refuse)})

    def transformed(*args):
        if levels_known:
            levels = _get_interpreter_stack() or ()
            if sum(level.key() == _TransformType.Jvp for level in levels) > 1:
                # PyTorch gives an autograd.Function's jvp no tangents of tangents: they would be 0.
                raise RuntimeError(
                    f"rhovae::{name}: forward mode over forward mode is not supported; "
                    "use torch.func.hessian or forward over reverse mode"
                )
        # A tensor saved by a vjp that has since closed is still wrapped at its level.
        return function.apply(*unwrapped(inputs(args)))

    return transformed


def unwrapped(args: Sequence) -> Sequence:
    """The arguments, without what a transform of torch.func that has closed left around them."""
    if _unwrap_dead_wrappers is not None:
        return _unwrap_dead_wrappers(args)
    return [x.view_as(x) if isinstance(x, Tensor) else x for x in args]


def below_autocast(device_type: str) -> Callable[[], AbstractContextManager]:
    """Makes a block in which autocast on this type of device is left out."""
    key = _found[f"torch._C.DispatchKey.Autocast{device_type.upper()}"]
    if _ExcludeDispatchKeyGuard is None or _DispatchKeySet is None or key is None:
        return partial(torch.autocast, device_type, enabled=False)
    return partial(_ExcludeDispatchKeyGuard, _DispatchKeySet(key))


def entry(overload: Any) -> Callable:
    """The dispatcher's entry of an op, without the Python call that an overload is around it."""
    return overload if _found["torch.ops.aten.alias.default._op"] is None else overload._op


def has_kernel(name: str, device_type: str) -> bool:
    """Whether the op `namespace::name` has a kernel registered for this type of device."""
    return _has_kernel is None or _has_kernel(name, device_type.upper())


def holds_values(x: Tensor) -> bool:
    """Whether the values of x can be looked at: nothing records, transforms or stands for them."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if type(x) not in (Tensor, Parameter) or x.is_meta:
        return False
    if _is_functorch_wrapped_tensor is None or _is_functorch_wrapped_tensor(x):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def is_exporting() -> bool:
    """Whether torch.export traces: under torch.compile too, torch 2.11 says that it does.

    The flag behind it is right there. A torch that has none is taken at its word.
    """
    return torch.compiler.is_exporting() and getattr(torch.compiler, "_is_exporting_flag", True)


def version(x: Tensor) -> int | None:
    """A number that each change of x in place makes another one, or None where none is kept."""
    return None if _found["torch.Tensor._version"] is None else x._version
