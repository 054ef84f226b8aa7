"""How an op becomes `torch.ops.rhovae.<name>`: one schema, and what PyTorch asks of an op.

Layers, from the call inwards: autocast; autograd and functorch (`Autograd` and
`FuncTorchDynamicLayerFrontMode`, an `autograd.Function` with setup_context, backward, jvp, vmap);
fake tensors; and per device a kernel that hands its arguments to the backend in force, which
refuses those that do not fit. `torch.library.register_autograd` is not used: it returns zero
tangents in forward mode without a word, and torch.func refuses it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _dispatch_tls_is_dispatch_key_excluded,
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import (
    TransformType,
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
)
from torch._functorch.utils import unwrap_dead_wrappers
from torch.amp.autocast_mode import _cast
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling
from torch.library import Library, register_autocast, register_fake
from torch.nn import Parameter

from rhovae_kernels import backends
from rhovae_kernels.ops import checks
from rhovae_kernels.ops.cost import MODELS, Cost

PUBLIC_OPS: list[str] = []
# The module that holds each op, in every room.
ROOMS: dict[str, str] = {}
DEVICES = ("cpu", "cuda")
# For `define`: cast to the type that autocast is set to, in place of a fixed one.
AUTOCAST_TYPE = "the autocast type"

# Library objects undo what they registered when they die: these live as long as the module.
_rhovae = Library("rhovae", "DEF")
_compiled = [Library("rhovae_cpu", "DEF"), Library("rhovae_cuda", "DEF")]

below_autograd = torch._C._AutoDispatchBelowAutograd
# Excluded with the rest of autograd, and a key of its own: the devices' are bits of a common one.
_AUTOGRAD = torch._C.DispatchKey.AutogradOther
# What the dispatcher takes for arguments of these types.
_TYPES = {
    "Tensor": Tensor,
    "Optional[Tensor]": (Tensor, type(None)),
    "bool": bool,
    "int": (int, torch.SymInt),
    "SymInt": (int, torch.SymInt),
    "float": (int, float),
    "str": str,
}

# By name and type of device: the op's kernel, and the same recorded by autograd, where it can be.
_kernels: dict[tuple[str, str], Callable] = {}
_recorded: dict[tuple[str, str], Callable] = {}
# Of ops that take lists of tensors: the places of those arguments.
_lists: dict[str, tuple[int, ...]] = {}


def unwatched(args: Sequence) -> str | None:
    """The type of device whose kernel is all that is left of a call on these below autograd.

    None where a mode or a tensor subclass looks on, a tensor's memory does not hold its values, or
    the device has no kernels of ours.
    """
    if _len_torch_dispatch_stack() > 0:
        return None
    leader = None
    for x in args:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            # A vjp that has closed leaves wrapped tensors behind; the dispatcher unwraps them.
            if is_functorch_wrapped_tensor(x) or x.is_neg() or x._is_zerotensor():
                return None
            leader = x
        elif isinstance(x, Tensor):
            return None
    if leader is None:
        return None
    if leader.is_cpu:
        return "cpu"
    return "cuda" if leader.is_cuda else None


def flatten(name: str, args: Sequence) -> tuple:
    """The arguments of an op as its autograd.Function takes them, which sees no tensor in a list.

    The lengths of the lists come first, then every argument, the lists' entries in their place.
    """
    lists = _lists[name]
    flat: list = []
    for i, x in enumerate(args):
        flat.extend(x) if i in lists else flat.append(x)
    return (tuple(len(args[i]) for i in lists), *flat)


def nest(name: str, lengths: Sequence[int], flat: Sequence) -> list:
    """What `flatten` was given."""
    flat, args = list(flat), list[Any]()
    for i, length in zip(_lists[name], lengths, strict=True):
        before = i - len(args)
        args += [*flat[:before], flat[before : before + length]]
        del flat[: before + length]
    return args + flat


def define(
    room: str,
    schema: str,
    *,
    check: Callable[..., None],
    fake: Callable,
    cost: Callable[..., Cost],
    function: type[Function] | None = None,
    autocast: torch.dtype | str | None = None,
) -> torch._ops.OpOverload:
    """Define `torch.ops.rhovae.<name>` and return it.

    Args:
        room: the module that holds the op in every room: `ops`, `triton`, `python_ref`.
        schema: name, arguments and returns, as `torch.library` writes them.
        check: takes the arguments; raises where one is wrong.
        fake: takes the arguments; makes outputs of the right shapes and types with no data.
        cost: takes the arguments; what the call has to move and to compute.
        function: the op's derivatives and batching rule; its `forward` is `call_below`'s, or, where
            the schema holds a `Tensor[]`, `call_below_flat`'s: that Function's arguments, gradients
            and tangents are those of `flatten`.
        autocast: under autocast, floating arguments are cast to this type, or to the one in force
            where this is `AUTOCAST_TYPE`.
    """
    name = schema.partition("(")[0]
    ROOMS[name], MODELS[name] = room, cost
    _rhovae.define(schema)
    for library in _compiled:
        library.define(schema)
    op = getattr(torch.ops.rhovae, name).default
    lists = tuple(i for i, a in enumerate(op._schema.arguments) if str(a.type) == "List[Tensor]")
    if lists:
        _lists[name] = lists
    if not name.endswith("_backward"):
        PUBLIC_OPS.append(name)

    def check_all(*args):
        # `call` leaves out the dispatcher, and the dispatcher trailing arguments by default.
        for argument, x in zip(op._schema.arguments, args, strict=False):
            kind = str(argument.type)
            if kind in _TYPES and not isinstance(x, _TYPES[kind]):
                checks.refuse(name, argument.name, repr(x), f"of type {kind}")
        check(*args)

    backends.CHECKS[name] = check_all

    def checked_fake(*args):
        check(*args)
        return fake(*args)

    register_fake(f"rhovae::{name}", checked_fake, lib=_rhovae)

    for device_type in DEVICES:
        kernel = _kernel(room, name, device_type)
        _kernels[name, device_type] = _recorded[name, device_type] = kernel
        _rhovae.impl(name, kernel, device_type.upper())

    if function is not None:
        arguments = op._schema.arguments

        def inputs_of(args):
            # The dispatcher leaves out trailing arguments that equal their defaults.
            if len(args) < len(arguments):
                args = (*args, *(a.default_value for a in arguments[len(args) :]))
            return flatten(name, args) if lists else args

        def transformed(*args):
            levels = torch._C._functorch.get_interpreter_stack() or ()
            if sum(level.key() == TransformType.Jvp for level in levels) > 1:
                # PyTorch gives an autograd.Function's jvp no tangents of tangents: they would be 0.
                raise RuntimeError(
                    f"rhovae::{name}: forward mode over forward mode is not supported; "
                    "use torch.func.hessian or forward over reverse mode"
                )
            # A tensor saved by a vjp that has since closed is still wrapped at its level.
            return function.apply(*unwrap_dead_wrappers(inputs_of(args)))

        record = _apply(function)
        for d in DEVICES:
            _recorded[name, d] = _apply(_around_kernel(function, name, d))

        def autograd(*args):
            # Without gradients, in reverse or forward mode, there is nothing to record.
            if not is_grad_enabled() and forward_ad._current_level < 0:
                with below_autograd():
                    return op(*args)
            if lists or len(args) < len(arguments):
                args = inputs_of(args)
            device_type = unwatched(args)
            return (record if device_type is None else _recorded[name, device_type])(*args)

        _rhovae.impl(name, autograd, "Autograd")
        _rhovae.impl(name, transformed, "FuncTorchDynamicLayerFrontMode")
    if autocast is not None:
        for device_type in DEVICES:
            if isinstance(autocast, torch.dtype):
                register_autocast(f"rhovae::{name}", device_type, autocast, lib=_rhovae)
            else:
                _autocast_in_force(op, name, device_type)
    return op


def _autocast_in_force(op: Callable, name: str, device_type: str) -> None:
    """As `register_autocast`, which takes one type for good, but cast to the type in force."""
    key = f"Autocast{device_type.upper()}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args):
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*_cast(args, device_type, dtype))

    _rhovae.impl(name, kernel, key)


def call(name: str, *args: Any) -> Any:
    """`torch.ops.rhovae.<name>` on these, all of them given and none a list of tensors.

    In plain eager mode PyTorch's dispatcher, which would come straight to autograd and from there
    to the kernel, is left out: within a training step, where its code is not at hand, its way
    through costs as much as a small kernel.
    """
    if not (
        is_dynamo_compiling()
        or _len_torch_function_stack() > 0
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _is_any_autocast_enabled()
        or _get_tracing_state() is not None
        or _profiler_enabled()
        or _dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
    ):
        device_type = unwatched(args)
        if device_type is not None:
            return (_recorded if is_grad_enabled() else _kernels)[name, device_type](*args)
    return getattr(torch.ops.rhovae, name).default(*args)


def call_below(name: str) -> Any:
    """The `forward` of an op's autograd.Function: the op itself, below autograd."""

    def forward(*args):
        with below_autograd():
            return getattr(torch.ops.rhovae, name).default(*args)

    return staticmethod(forward)


def call_below_flat(name: str) -> Any:
    """`call_below` for an op with lists of tensors, from the arguments that `flatten` makes."""

    def forward(lengths, *flat):
        with below_autograd():
            return getattr(torch.ops.rhovae, name).default(*nest(name, lengths, flat))

    return staticmethod(forward)


def _kernel(room: str, name: str, device_type: str) -> Callable:
    """The op on this device's tensors, by the backend in force."""
    key = name, device_type

    def kernel(*args):
        implementation = backends.selected.get(key) or backends.select(room, name, device_type)
        try:
            return implementation(*args)
        except RuntimeError as error:
            refused = error
        # Names the argument that does not fit, where that is why.
        backends.CHECKS[name](*args)
        raise refused

    return kernel


def _around_kernel(function: type[Function], name: str, device_type: str) -> type[Function]:
    """The derivatives of `function` around the kernel itself, without a way through PyTorch."""
    kernel = _kernels[name, device_type]

    def of_flat(lengths, *flat):
        return kernel(*nest(name, lengths, flat))

    forward = staticmethod(of_flat if name in _lists else kernel)
    return type(function.__name__, (function,), {"forward": forward})


def _apply(function: type[Function]) -> Callable:
    """`Function.apply` less what it does for functorch, which never comes to the Autograd key:
    inspecting the signature of `forward` at each call costs more than the rest together.
    """
    return super(Function, function).apply  # type: ignore[misc]


def gradients(name: str, args: Sequence, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """What an op's backward returns: the op `name` on `args`; None for what `needs` leaves out."""
    recorded = is_grad_enabled() or forward_ad._current_level >= 0
    device_type = None if recorded or peek_interpreter_stack() is not None else unwatched(args)
    if device_type is None:
        results = getattr(torch.ops.rhovae, name).default(*args, needs)
    else:
        results = _kernels[name, device_type](*args, needs)
    return tuple([g if need else None for g, need in zip(results, needs, strict=True)])


def to_front(batch_size: int, x: Any, dim: int | None) -> Any:
    """A vmapped argument with its batch dimension first; one without is expanded, not copied."""
    if not isinstance(x, Tensor):
        return x
    return x.expand(batch_size, *x.shape) if dim is None else x.movedim(dim, 0)


def batch_over_leading(op: Callable, info: Any, in_dims: Sequence, args: Sequence) -> Any:
    """vmap of an op that takes any leading dimensions: the vmapped one becomes the first."""
    return op(*(to_front(info.batch_size, x, dim) for x, dim in zip(args, in_dims, strict=True)))


def batch_rows(name: str, rows: int, info: Any, in_dims: Sequence, lengths, flat) -> Any:
    """vmap of an op that takes lists; only the first `rows` flat arguments have leading dimensions.

    Where one of the others is batched, each entry is a call.
    """
    op, dims = getattr(torch.ops.rhovae, name).default, in_dims[1:]
    if all(dim is None for dim in dims[rows:]):
        front = [
            to_front(info.batch_size, x, dim)
            for x, dim in zip(flat[:rows], dims[:rows], strict=True)
        ]
        return op(*nest(name, lengths, (*front, *flat[rows:])))
    entries = []
    for b in range(info.batch_size):
        entry = [x if dim is None else x.select(dim, b) for x, dim in zip(flat, dims, strict=True)]
        entries.append(op(*nest(name, lengths, entry)))
    if isinstance(entries[0], Tensor):
        return torch.stack(entries)
    return tuple(torch.stack(outputs) for outputs in zip(*entries, strict=True))


def primals_of(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Saved tensors without tangents: a jvp that saw these would be asked for by its own ops."""
    return tuple(forward_ad.unpack_dual(x).primal for x in tensors)


def forward_mode(formula: Callable, primals: Sequence[Tensor], tangents: Sequence) -> Any:
    """The tangents of a differentiable formula's outputs; a tangent that is None is zero.

    Made of reverse mode twice, since PyTorch does not nest forward mode: v ↦ J v is the transpose
    of w ↦ Jᵀ w, which is linear.
    """
    primals = primals_of(primals)
    tangents = tuple(
        torch.zeros_like(p) if t is None else t for t, p in zip(tangents, primals, strict=True)
    )
    outputs, transposed = torch.func.vjp(formula, *primals)[:2]
    several = isinstance(outputs, tuple)
    at = tuple(map(torch.zeros_like, outputs)) if several else (torch.zeros_like(outputs),)
    jacobian = torch.func.vjp(lambda *w: transposed(w if several else w[0]), *at)[1]
    result = jacobian(tangents)
    return result if several else result[0]


def backward_function(
    name: str, tensors: int, formula: Callable, vmap: Callable | None = None
) -> type[Function]:
    """The autograd.Function of a `<op>_backward`, whose derivatives come from a composed formula.

    `formula` takes the first `tensors` arguments (and those between them and `needs`), returns
    every gradient, and is made of differentiable ops; it is what second and higher derivatives,
    and forward mode over reverse, are taken of. `vmap` is the batching rule, as autograd.Function
    has it, of an op that does not take any leading dimensions in all of its tensors.
    """

    def batched(info, in_dims, *args):
        outputs = batch_over_leading(getattr(torch.ops.rhovae, name), info, in_dims, args)
        return outputs, tuple(0 if need else None for need in args[-1])

    rule = vmap or batched

    def bind(ctx):
        """The gradients asked for as a function of the floating tensors; those; their places."""
        saved = ctx.saved_tensors
        where = [i for i, x in enumerate(saved) if x is not None and x.is_floating_point()]

        def of_floating(*values):
            arguments = list(saved)
            for i, value in zip(where, values, strict=True):
                arguments[i] = value
            gradients = formula(*arguments, *ctx.constants)
            return tuple(g for g, need in zip(gradients, ctx.needs, strict=True) if need)

        return of_floating, tuple(saved[i] for i in where), where

    class Backward(Function):
        forward = call_below(name)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs[:tensors])
            ctx.save_for_forward(*inputs[:tensors])
            ctx.constants, ctx.needs = inputs[tensors:-1], inputs[-1]
            ctx.arguments = len(inputs)
            ctx.mark_non_differentiable(
                *(x for x, need in zip(output, ctx.needs, strict=True) if not need)
            )

        @staticmethod
        def backward(ctx, *grads):
            of_floating, values, where = bind(ctx)
            _, vjp = torch.func.vjp(of_floating, *values)
            result: list = [None] * ctx.arguments
            cotangents = tuple(g for g, need in zip(grads, ctx.needs, strict=True) if need)
            for i, g in zip(where, vjp(cotangents), strict=True):
                result[i] = g
            return tuple(result)

        @staticmethod
        def jvp(ctx, *tangents):
            of_floating, values, where = bind(ctx)
            outputs = iter(forward_mode(of_floating, values, [tangents[i] for i in where]))
            return tuple(next(outputs) if need else None for need in ctx.needs)

        vmap = staticmethod(rule)

    Backward.__name__ = Backward.__qualname__ = f"rhovae_{name}"
    return Backward


def empty_gradients(inputs: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """The fake of a backward op: a gradient like each input, empty where it was not asked for."""
    return tuple(
        x.new_empty(x.shape if need else (0,)) for x, need in zip(inputs, needs, strict=True)
    )
