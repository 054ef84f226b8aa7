"""`fuse`: what is slow inside a flow of another library, replaced by this package's."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from rhovae_kernels.interop import nflows, normflows, pyro, zuko
from rhovae_kernels.interop.fusion import Fusion
from rhovae_kernels.interop.holders import modules_of
from rhovae_kernels.interop.networks import ReorderedLinear
from rhovae_kernels.interop.optimizers import check_optimizer, move_to_stand_in
from rhovae_kernels.interop.replaced import CannotFuse, Replaced, StandIn

# What replaces a transform of each class, or of one derived from it, by the name of the class.
KINDS = {**zuko.KINDS, **nflows.KINDS, **normflows.KINDS, **pyro.KINDS}


def fuse(flow: Any, optimizer: Optimizer | None = None) -> Fusion:
    """Replace what is slow inside a flow of another library by this package's, in place.

    The libraries are zuko, nflows, normflows and pyro, and sbi, whose estimators are flows of the
    first two. Outputs, densities and samples stay what they were, up to rounding.

    - Autoregressive transforms, affine ones and rational-quadratic splines, of networks that are
      plain chains: the networks become `MADE`s, no mask is multiplied, and the sequential direction
      is one pass in place of one for each dimension. In networks of
      nflows with residual blocks each masked layer is replaced, and the sequential direction
      computes each hidden unit once. In others with residual blocks, or an activation that
      `rhovae_kernels.ops.made_inverse` does not know, each layer alone is replaced.
    - Couplings, affine and rational-quadratic: what follows the network is one op. The network
      stays the library's own, and its parameters are the same.

    The weights of an autoregressive network are carried over into new parameters, trainable where
    the old ones were, their units in another order. An optimizer that was made before holds the old
    ones, and nothing can be known of it here: give it as `optimizer`, or make it after this. Call
    `undo` before a state dict is to be read by the library's own modules.

    May be called again when the flow has grown; given what it returned, it goes on with that.

    Args:
        flow: a module that holds transforms of these libraries, with or without context; a
            posterior or an inference of sbi; a transform of pyro, or a distribution of such; or the
            `Fusion` of one of these.
        optimizer: of parameters of the flow: its groups come to hold the new ones in the place of
            the old, and its state (Adam's moments) goes along in their order.

    Returns:
        A `Fusion`: what was replaced, what was left alone and why (other kinds of transforms, batch
        norm, dropout, masks that are staircases under no order of units), and `undo`. For all else
        it is the flow: `flow = rk.fuse(flow)` will do.

    Raises:
        ValueError: flow holds no such transform, or is one itself, which nothing holds that it
            could be replaced in; optimizer holds no parameter of flow, or a state that is not of
            the shape of its parameter.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> zuko = __import__("pytest").importorskip("zuko")
        >>> flow = zuko.flows.MAF(3, transforms=1, hidden_features=(16, 16))
        >>> x = torch.randn(5, 3)
        >>> before = flow().log_prob(x)
        >>> flow = rk.fuse(flow)
        >>> print(flow)
        transform.transforms.0: one pass in either direction
        >>> torch.testing.assert_close(flow().log_prob(x), before)
    """
    fusion = flow if type(flow) is Fusion else Fusion(flow)
    modules = modules_of(fusion.flow)
    if optimizer is not None:
        check_optimizer(optimizer, modules.values())
    fusion.left = {}
    # A transform that the flow holds at several places stays one.
    stand_ins: dict[nn.Module, tuple[str, list[Replaced]]] = {}
    found = [each for name, module in modules.items() for each in _transforms(name, module)]
    for name, parent, key, transform in found:
        if name in fusion.fused:
            continue
        if transform in stand_ins:
            how, (*_, last) = stand_ins[transform]
            fusion.fused[name] = how
            if last.original is transform:
                parent._modules[key] = last.now
                fusion.replaced.append(last._replace(parent=parent, key=key))
            continue
        try:
            how, replaced = _fuse(parent, key, transform)
        except CannotFuse as reason:
            fusion.left[name] = str(reason)
            continue
        fusion.fused[name] = how
        fusion.replaced += replaced
        stand_ins[transform] = how, replaced
        if optimizer is not None:
            for each in replaced:
                move_to_stand_in(optimizer, each)
    if not found:
        raise ValueError(
            f"{type(fusion.flow).__name__} holds no masked autoregressive transform or coupling of "
            "zuko, nflows, normflows or pyro"
        )
    return fusion


def _fuse(parent: nn.Module, key: str, transform: nn.Module) -> tuple[str, list[Replaced]]:
    if isinstance(transform, StandIn):
        raise CannotFuse("as it is replaced already")
    if any(isinstance(layer, StandIn | ReorderedLinear) for layer in transform.modules()):
        raise CannotFuse("as its layers are replaced already")
    kind = _kind(transform)
    assert kind is not None
    return KINDS[kind](parent, key, transform)


def _kind(module: object) -> str | None:
    """The first class of a module that is known, by name."""
    names = (f"{base.__module__}.{base.__qualname__}" for base in type(module).__mro__)
    return next((name for name in names if name in KINDS), None)


def _transforms(of: str, flow: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Name, parent, key and module of each transform of a library, or what stands in for one.

    `of` is the name of the flow, if it is not what was given.
    """
    if _kind(flow) in pyro.KINDS:
        # Its parts are replaced, not itself.
        yield of.lstrip(".") or type(flow).__name__, flow, "", flow
    elif _kind(flow) is not None:
        raise ValueError(
            f"flow is itself a {type(flow).__name__}, which is replaced inside the module that "
            "holds it: give that one"
        )
    for parent_name, parent in flow.named_modules():
        if _kind(parent) is not None:
            continue
        # `named_children` leaves out what it has named.
        for key, module in parent._modules.items():
            if _kind(module) is not None or isinstance(module, StandIn):
                assert module is not None
                yield f"{of}.{parent_name}.{key}".replace("..", ".").strip("."), parent, key, module
