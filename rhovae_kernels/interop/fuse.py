"""`fuse`: the masked networks inside a flow of zuko or nflows, replaced by this package's."""

from collections.abc import Iterator

from torch import nn

from rhovae_kernels.interop.networks import CannotFuse, ReorderedLinear, Replaced, is_a
from rhovae_kernels.interop.nflows import NFLOWS_ANY, fuse_nflows
from rhovae_kernels.interop.zuko import ZUKO, fuse_zuko


class Fusion:
    """What `fuse` did to a flow, and the way back.

    Attributes:
        fused: by the name of each transform, what runs in place of it.
        left: by the name of each that was left alone, why.
    """

    def __init__(self) -> None:
        self.fused: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self._replaced: list[Replaced] = []

    def undo(self) -> None:
        """Put the library's own modules back, with the weights that are in the flow now.

        What their masks hide is as it was before, so that the state dict of a flow that was not
        trained in between is the same to the bit.
        """
        while self._replaced:
            self._replaced.pop().put_back()
        self.fused, self.left = {}, {}

    def __str__(self) -> str:
        lines = [f"{name}: {what}" for name, what in self.fused.items()]
        lines += [f"{name}: left alone, {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing is fused"


def fuse(flow: nn.Module) -> Fusion:
    """Replace the masked networks inside a flow of zuko or nflows by this package's, in place.

    Outputs, densities and samples stay what they were, up to rounding. Affine transforms whose
    networks are plain chains become `MADE`s: no mask is multiplied, and their sequential direction
    is one pass in place of one for each dimension. In networks with residual blocks, or an
    activation that `rhovae_kernels.ops.made_inverse` does not know, each layer alone is replaced.

    Weights are carried over into new parameters, trainable where the old ones were, their units in
    another order: make the optimizer after this, and call `undo` before a state dict is to be read
    by the library's own modules.

    Args:
        flow: a module that holds `MaskedAutoregressiveTransform`s of zuko or
            `MaskedAffineAutoregressiveTransform`s of nflows, with or without context.

    Returns:
        A `Fusion`: what was replaced, what was left alone and why (transforms that are not affine,
        batch norm, dropout, masks that are staircases under no order of units), and `undo`.

    Raises:
        ValueError: flow holds no autoregressive transform of these libraries, or is one itself,
            which nothing holds that it could be replaced in.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> zuko = __import__("pytest").importorskip("zuko")
        >>> flow = zuko.flows.MAF(3, transforms=1, hidden_features=(16, 16))
        >>> x = torch.randn(5, 3)
        >>> before = flow().log_prob(x)
        >>> print(rk.fuse(flow))
        transform.transforms.0: one pass in either direction
        >>> torch.testing.assert_close(flow().log_prob(x), before)
    """
    if is_a(flow, ZUKO) or is_a(flow, NFLOWS_ANY):
        raise ValueError(
            f"flow is itself a {type(flow).__name__}, which is replaced inside the module that "
            "holds it: give that one"
        )
    fusion = Fusion()
    # A transform that the flow holds at several places stays one.
    stand_ins: dict[nn.Module, tuple[str, Replaced]] = {}
    for name, parent, key, module in list(_transforms(flow)):
        if module in stand_ins:
            how, first = stand_ins[module]
            fusion.fused[name] = how
            if first.original is module:
                parent._modules[key] = first.parent._modules[first.key]
                fusion._replaced.append(Replaced(parent, key, module, first.carry_back))
            continue
        try:
            if any(isinstance(layer, ReorderedLinear) for layer in module.modules()):
                raise CannotFuse("as its layers are replaced already")
            how, replaced = (fuse_zuko if is_a(module, ZUKO) else fuse_nflows)(parent, key, module)
        except CannotFuse as reason:
            fusion.left[name] = str(reason)
            continue
        fusion.fused[name] = how
        fusion._replaced += replaced
        stand_ins[module] = how, replaced[0]
    if not fusion.fused and not fusion.left:
        raise ValueError(
            f"{type(flow).__name__} holds no masked autoregressive transform of zuko or nflows"
        )
    return fusion


def _transforms(flow: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Name, parent, key and module of each autoregressive transform."""
    for parent_name, parent in flow.named_modules():
        # `named_children` leaves out what it has named.
        for key, module in parent._modules.items():
            if is_a(module, ZUKO) or is_a(module, NFLOWS_ANY):
                yield f"{parent_name}.{key}".lstrip("."), parent, key, module
