"""The records of the ops: what each says is there."""

import importlib
from pathlib import Path

import pytest
import torch

import rhovae_kernels as rk
from rhovae_kernels.ops.op import REGISTRY, Argument

ROOT = Path(__file__).resolve().parent.parent.parent
OPS = pytest.mark.parametrize("op", REGISTRY.values(), ids=REGISTRY)


@OPS
def test_the_files_of_an_op_hold_its_implementations(op):
    compiled = [ROOT / "csrc" / "cpu" / f"{op.file}.cpp", ROOT / "csrc" / "cuda" / f"{op.file}.cu"]
    for source in filter(Path.exists, compiled):
        assert f'm.impl("{op.name}"' in source.read_text()
    assert compiled[0].exists()
    assert hasattr(importlib.import_module(f"rhovae_kernels.python_ref.{op.file}"), op.name)
    if op.triton is not None:
        pytest.importorskip("triton", reason="Triton has no build for this platform")
        kernel = op.triton()
        assert (kernel.__module__, kernel.__name__) == (f"rhovae_kernels.triton.{op.file}", op.name)


@OPS
def test_the_arguments_read_from_a_schema_are_those_that_torch_reads(op):
    parsed = op.overload._schema.arguments
    assert [(a.name, a.default) for a in op.arguments] == [
        (a.name, a.default_value) for a in parsed
    ]
    assert [a.type == "Tensor" for a in op.arguments] == [str(a.type) == "Tensor" for a in parsed]


def test_an_argument_has_its_type_its_name_and_its_default():
    assert REGISTRY["affine_coupling"].arguments[-3:] == (
        Argument("Tensor", "mask", None),
        Argument("bool", "inverse", False),
        Argument("str", "bound", "none"),
    )


def test_a_record_does_not_change():
    with pytest.raises(AttributeError):
        REGISTRY["philox"].cost = None


@pytest.mark.parametrize("name", rk.ops.__all__)
def test_every_front_door_has_a_record_of_its_name(name):
    assert REGISTRY[name].overload is getattr(torch.ops.rhovae, name).default
