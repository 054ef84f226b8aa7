"""Of each name of torch's DispatchKey: what it is to the short way past the dispatcher.

`intercepts`: what the key stands for changes what a call means, and the short way is not taken; a
test here, or in test_eager.py, shows it. `refused`: tensors of that kind are refused by name.
`harmless`: the key does nothing for these ops that the short way leaves out. `cannot`: no tensor or
mode of that kind reaches an op. A name that is in no list fails: look what it is first.
"""

import pytest
import torch
from torch.func import functionalize

import rhovae_kernels as rk

INTERCEPTS = {
    "Negative": "a lazy minus: the memory holds other values",
    "ZeroTensor": "zeros that are in no memory",
    "Python": "a tensor subclass, or a dispatch mode",
    "PythonTLSSnapshot": "the same, on its way in",
    "PythonDispatcher": "what torch.compile traces with",
    "PreDispatch": "what torch.export traces with",
    "FuncTorchDynamicLayerFrontMode": "a transform of torch.func",
    "FuncTorchDynamicLayerBackMode": "the same, on its way out",
    "FuncTorchBatched": "a tensor under vmap",
    "FuncTorchBatchedDecomposition": "the same",
    "FuncTorchVmapMode": "random numbers under vmap",
    "FuncTorchGradWrapper": "a tensor under grad",
    "Functionalize": "a functional tensor",
    "AutocastCPU": "autocast",
    "AutocastCUDA": "autocast",
    "Meta": "no values",
}
REFUSED = {
    "Conjugate": "of complex numbers alone",
    "Quantized": "types of their own",
    "Sparse": "layouts of their own",
    "SparseCsr": "layouts of their own",
    "NestedTensor": "no shape",
}
HARMLESS = {
    "Dense": "what the kernels are of",
    "CPU": "the kernel that the short way calls",
    "CUDA": "the kernel that the short way calls",
    "AutogradFunctionality": "recorded by the op's own Function, which the short way calls",
    "AutogradCPU": "the same",
    "AutogradCUDA": "the same",
    "Autograd": "an alias of these",
    "ADInplaceOrView": "counts changes in place and views; the ops make neither",
    "BackendSelect": "chooses a device for an op without tensors; each of ours has one",
    "CompositeImplicitAutograd": "an alias, of ops that are made of others",
    "CompositeExplicitAutograd": "an alias, of ops that are made of others",
    "CompositeExplicitAutogradNonFunctional": "an alias, of ops that are made of others",
}
CANNOT = {
    "Undefined": "stands for no tensor",
    "CompositeImplicitAutogradNestedTensor": "an alias of nested tensors",
    "AutogradOther": "what tells that the caller is below autograd: no tensor has it",
    "AutogradNestedTensor": "nested tensors are refused",
    "AutogradMeta": "a tensor without values never takes the short way",
}
# Devices that no kernel here is of: the dispatcher says so.
ELSEWHERE = ["HIP", "XLA", "MPS", "IPU", "XPU", "HPU", "VE", "Lazy", "MTIA", "MAIA"]
ELSEWHERE += ["PrivateUse1", "PrivateUse2", "PrivateUse3"]
FAMILIES = {
    "": ELSEWHERE,
    "Autocast": ["MPS", "XPU", "HPU", "IPU", "PrivateUse1"],
    "Autograd": ELSEWHERE,
    "Quantized": ["CPU", "CUDA", "Meta", *ELSEWHERE],
    "Sparse": ["CPU", "CUDA", "Meta", *ELSEWHERE],
    "SparseCsr": ["CPU", "CUDA", "Meta", *ELSEWHERE],
    "NestedTensor": ["CPU", "CUDA", "Meta", *ELSEWHERE],
}


def test_each_name_of_a_dispatch_key_is_accounted_for():
    listed = [*INTERCEPTS, *REFUSED, *HARMLESS, *CANNOT]
    listed += [prefix + name for prefix, names in FAMILIES.items() for name in names]
    assert len(listed) == len(set(listed)), "a name is listed twice"
    names = {
        name
        for name in torch._C.DispatchKey.__members__
        # Bounds of a range, no keys.
        if not name.startswith(("StartOf", "EndOf"))
    }
    assert names - set(listed) == set()


def scan(tokens, gates=None):
    gates = torch.full((2, 1), 0.5) if gates is None else gates
    return rk.ops.linear_scan(gates, tokens)


X = torch.arange(6.0).reshape(2, 3)
LAZY = {
    "a lazy minus": (torch._neg_view(X), -X),
    "an imaginary part": (torch.complex(X, -X).conj().imag, X),
    "zeros in no memory": (torch._efficientzerotensor((2, 3)), torch.zeros(2, 3)),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_tensor_whose_memory_holds_other_values_is_read_by_its_values(name):
    lazy, plain = LAZY[name]
    assert torch.equal(scan(lazy), scan(plain))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.vmap(f),
        lambda f: lambda x: torch.func.vjp(f, x)[0],
        lambda f: lambda x: torch.func.jvp(f, (x,), (torch.zeros_like(x),))[0],
        lambda f: torch.compile(f, backend="aot_eager", fullgraph=True),
        lambda f: torch.export.export(Wrapped(f), (X[None],)).module(),
    ],
    ids=["vmap", "vjp", "jvp", "compile", "export"],
)
def test_a_transform_gives_the_same(transform):
    torch._dynamo.reset()
    gates = torch.full((2, 1), 0.5)

    def batched(x):
        return scan(x, gates.expand(*x.shape[:-1], 1))

    assert torch.equal(transform(batched)(X[None]), batched(X[None]))


def test_functionalize_is_pytorchs_to_refuse():
    """It has no rule for an autograd.Function; torch.compile functionalizes below autograd."""
    with pytest.raises(RuntimeError, match="Functionalize rule"):
        functionalize(scan)(X)


class Wrapped(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_a_functional_tensor_gives_the_same():
    functional = torch._to_functional_tensor(X)
    result = scan(functional)
    if torch._is_functional_tensor(result):
        torch._sync(result)
        result = torch._from_functional_tensor(result)
    assert torch.equal(result, scan(X))


def test_a_tensor_without_values_gives_one():
    assert scan(X.to("meta"), torch.zeros(2, 1, device="meta")).is_meta


OTHERS = {
    "sparse": (X.to_sparse(), "of layout torch.sparse_coo"),
    "sparse by rows": (X.to_sparse_csr(), "of layout torch.sparse_csr"),
    "of mkldnn": (X.to_mkldnn(), "of layout torch._mkldnn"),
    "nested": (torch.nested.nested_tensor([X[0], X[1, :2]]), "nested"),
    "quantized": (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), "of type torch.quint8"),
    "complex": (torch.complex(X, X).conj(), "of type torch.complex64"),
}


@pytest.mark.parametrize("backend", ["cpu", "reference", "triton"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_tensor_of_another_kind_is_refused_by_name(name, backend):
    tokens, got = OTHERS[name]
    with rk.use_backend(backend), pytest.raises(ValueError, match=f"tokens is {got}; it must be"):
        scan(tokens)
