"""What an op is, and how it becomes `torch.ops.rhovae.<name>`.

Layers, from the call inwards: autocast; autograd and functorch (`Autograd` and
`FuncTorchDynamicLayerFrontMode`, an `autograd.Function` with setup_context, backward, jvp, vmap);
fake tensors; and per device a kernel that hands its arguments to the backend in force, which
refuses those that do not fit. `torch.library.register_autograd` is not used: it returns zero
tangents in forward mode without a word, and torch.func refuses it.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import Library, register_autocast, register_fake
from torch.utils.flop_counter import register_flop_formula

from rhovae_kernels import backends
from rhovae_kernels.ops import checks, eager

DEVICES = ("cpu", "cuda")

# Library objects undo what they registered when they die: these live as long as the module.
_rhovae = Library("rhovae", "DEF")
_compiled = [Library("rhovae_cpu", "DEF"), Library("rhovae_cuda", "DEF")]

# What the dispatcher takes for an argument of this type, and what an error calls it.
_TYPES: dict[str, tuple[Any, str]] = {
    "Tensor": (Tensor, "Tensor"),
    "Tensor?": ((Tensor, type(None)), "Optional[Tensor]"),
    "bool": (bool, "bool"),
    "SymInt": ((int, torch.SymInt), "int"),
    "float": ((int, float), "float"),
    "str": (str, "str"),
}


class Argument(NamedTuple):
    """One argument of a schema; `default` is None where that is it, and where there is none."""

    type: str
    name: str
    default: bool | str | None


class Lists(NamedTuple):
    """How an op that takes `Tensor[]` is recorded: autograd.Function sees no tensor in a list.

    `flatten(*args)` gives the Function's arguments, `nest(*flat)` the op's; gradients and tangents
    are those of the flat ones.
    """

    flatten: Callable[..., tuple]
    nest: Callable[..., Sequence]


def has_many_elements(*args: Any) -> bool:
    """Whether one of the first two arguments, the longest of which is the op's, is that large."""
    return any(
        isinstance(x, torch.Tensor) and x.numel() >= backends.MANY_ELEMENTS for x in args[:2]
    )


class Form(NamedTuple):
    """Calls of an op: what they have, for the words "with …", and whether a call is one."""

    what: str
    of: Callable[..., bool]


@dataclass(frozen=True, eq=False)
class Op:
    """All that there is to know of one op; `register` makes `torch.ops.rhovae.<name>` of it.

    Args:
        file: the name of the files that hold it: `csrc/cpu/<file>.cpp` and `csrc/cuda/<file>.cu`,
            which register its compiled kernels; `python_ref`, `rhovae_kernels/triton`.
        schema: name, arguments and returns, as `torch.library` writes them.
        check: takes the arguments; raises where one is wrong.
        fake: takes the arguments; makes outputs of the right shapes and types with no data.
        cost: takes the arguments; what the call has to move and to compute, a `cost.Cost`.
        reference: the specification in plain PyTorch.
        triton: imports the kernel in Triton, which need not be installed, and returns it.
        function: the op's derivatives and batching rule; its `forward` is the op itself.
        autocast: under autocast, floating arguments are cast to this type; or what makes, of a type
            of device, the function that runs in the op's place.
        lists: for an op that takes lists of tensors.
        not_in_cuda: the calls that the kernel in CUDA C++ refuses, on whose CUDA tensors Triton
            runs; `of` takes the arguments unchecked.
        triton_first: why the kernel in Triton is the default on CUDA tensors of
            `backends.MANY_ELEMENTS` or more, where it is.
    """

    file: str
    schema: str
    check: Callable[..., None]
    fake: Callable
    cost: Callable[..., tuple[int, int, int]]
    reference: Callable
    triton: Callable[[], Callable] | None = None
    function: type[Function] | None = None
    autocast: torch.dtype | Callable[[str], Callable] | None = None
    lists: Lists | None = None
    not_in_cuda: Form | None = None
    triton_first: str | None = None

    @cached_property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """What the schema says of each argument."""
        inside = self.schema[self.schema.index("(") + 1 : self.schema.index(") -> ")]
        arguments = []
        for text in inside.split(", "):
            kind, _, rest = text.partition(" ")
            name, _, default = rest.partition("=")
            arguments.append(Argument(kind, name, ast.literal_eval(default or "None")))
        return tuple(arguments)

    @cached_property
    def overload(self) -> Any:
        """`torch.ops.rhovae.<name>.default`."""
        return getattr(torch.ops.rhovae, self.name).default

    def check_all(self, *args: Any) -> None:
        """Refuse arguments that do not fit, first by type, as the short way has no dispatcher."""
        for argument, x in zip(self.arguments, args, strict=False):
            if argument.type in _TYPES:
                types, wanted = _TYPES[argument.type]
                if not isinstance(x, types):
                    checks.refuse(self.name, argument.name, repr(x), f"of type {wanted}")
        self.check(*args)

    def checked_fake(self, *args: Any) -> Any:
        self.check(*args)
        return self.fake(*args)

    @property
    def cuda_form(self) -> str | None:
        """What the calls have that its kernel in CUDA C++ does not take, where there are some."""
        return None if self.not_in_cuda is None else self.not_in_cuda.what

    def is_written(self, backend: str, form: str | None = None) -> bool:
        """Whether the op has an implementation in this backend; of calls of a form, if named."""
        if backend == "cuda" and form is not None and form == self.cuda_form:
            return False
        if backend in ("cpu", "cuda"):
            return eager.has_kernel(f"rhovae_{backend}::{self.name}", backend)
        return backend == "reference" or self.triton is not None

    def implementation(self, backend: str) -> Callable:
        """What implements the op in this backend, which it is written in.

        It refuses arguments that do not fit: in Python with an error that names the argument;
        compiled, in C++ (csrc/arguments.h), with a RuntimeError.
        """
        if backend in ("cpu", "cuda"):
            return eager.entry(getattr(getattr(torch.ops, f"rhovae_{backend}"), self.name).default)
        if backend == "reference":
            kernel = self.reference
        else:
            assert self.triton is not None
            kernel = self.triton()

        def checked(*args):
            self.check_all(*args)
            return kernel(*args)

        return checked

    @cached_property
    def kernels(self) -> dict[str, Callable]:
        """By type of device: the op on its tensors, by the backend in force."""
        return {device_type: self._kernel(device_type) for device_type in DEVICES}

    def _kernel(self, device_type: str) -> Callable:
        form = self.not_in_cuda if device_type == "cuda" else None
        by_size = device_type == "cuda" and self.triton_first is not None
        every, of_form, of_many = (
            (self.name, device_type, what) for what in (None, self.cuda_form, backends.OF_MANY)
        )

        def kernel(*args):
            key = every
            if form is not None and form.of(*args):
                key = of_form
            elif by_size and has_many_elements(*args):
                key = of_many
            try:
                implementation = backends.selected.get(key) or backends.select(self, *key[1:])
                return implementation(*args)
            except RuntimeError as error:
                refused = error
            # Names the argument that does not fit, where that is why.
            self.check_all(*args)
            raise refused

        return kernel

    @cached_property
    def recorded(self) -> dict[str, Callable]:
        """By type of device: `kernels`, recorded by autograd where the op has derivatives."""
        if self.function is None:
            return self.kernels
        return {
            device_type: eager.recorder(self.derivatives(kernel))
            for device_type, kernel in self.kernels.items()
        }

    def all_arguments(self, args: tuple) -> tuple:
        """Those that the dispatcher hands on, which leaves out trailing ones of default value."""
        return (*args, *(argument.default for argument in self.arguments[len(args) :]))

    def flops(self, *args: Any, out_val: Any = None) -> int:
        """The floating-point operations of a call, as `torch.utils.flop_counter` asks for them."""
        return self.cost(*self.all_arguments(args))[2]

    def inputs(self, args: tuple) -> tuple:
        """The arguments of the op's autograd.Function, of those that the dispatcher hands on."""
        args = self.all_arguments(args)
        return args if self.lists is None else self.lists.flatten(*args)

    def derivatives(self, forward: Callable) -> type[Function]:
        """The op's autograd.Function around a function of the op's arguments."""
        assert self.function is not None
        if self.lists is None:
            return eager.with_forward(self.function, forward)
        nest = self.lists.nest
        return eager.with_forward(self.function, lambda *flat: forward(*nest(*flat)))

    @cached_property
    def call(self) -> Callable:
        """The op, every argument given, without the dispatcher where that has nothing to do."""
        if self.lists is not None:
            return self.overload
        return eager.front_door(self.overload, self.kernels, self.recorded)

    @cached_property
    def gradients(self) -> Callable:
        """A backward op, for backward passes: see `eager.gradients`."""
        return eager.gradients(self.overload, self.kernels)


# Every op by its name.
REGISTRY: dict[str, Op] = {}


def public_ops() -> list[Op]:
    """The ops that are called by name, in its order: all but the backward passes."""
    return [REGISTRY[name] for name in sorted(REGISTRY) if not name.endswith("_backward")]


def register(op: Op) -> Op:
    """Make `torch.ops.rhovae.<name>` of the record, and return the record."""
    REGISTRY[op.name] = op
    for library in (_rhovae, *_compiled):
        library.define(op.schema)
    for device_type in DEVICES:
        _rhovae.impl(op.name, op.kernels[device_type], device_type.upper())
    register_fake(f"rhovae::{op.name}", op.checked_fake, lib=_rhovae)
    register_flop_formula(getattr(torch.ops.rhovae, op.name), get_raw=True)(op.flops)
    if op.function is not None:
        below = eager.below_autograd(op.overload)
        function = op.derivatives(below)
        autograd = eager.at_autograd(below, op.inputs, eager.recorder(function), op.recorded)
        _rhovae.impl(op.name, autograd, "Autograd")
        transformed = eager.at_functorch(op.name, op.inputs, function)
        _rhovae.impl(op.name, transformed, "FuncTorchDynamicLayerFrontMode")
    for device_type in DEVICES:
        if isinstance(op.autocast, torch.dtype):
            register_autocast(f"rhovae::{op.name}", device_type, op.autocast, lib=_rhovae)
        elif op.autocast is not None:
            _rhovae.impl(op.name, op.autocast(device_type), f"Autocast{device_type.upper()}")
    # Made now: torch.compile, which may be the first to ask, cannot trace a property being cached.
    _ = op.call, op.gradients
    return op


def of_those_asked_for(gradients: Callable) -> Callable:
    """A specification that gives every gradient, as a `<op>_backward`: empty if not asked for."""

    def implementation(*args):
        *given, needs = args
        results = gradients(*given)
        return tuple(g if n else g.new_empty(0) for g, n in zip(results, needs, strict=True))

    return implementation
