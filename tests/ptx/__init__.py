"""What the compiler made of a Triton kernel, run without a GPU: an executor of PTX.

A register is a NumPy array, one value a thread. Threads that a branch has parted run in turns, and
wait for the others where a warp or a program acts together. In all else they are in step, so that
a barrier that is missing is not found.
Each access of memory is held against what was allocated.
Approximate functions are exact here; `fma` of float64 rounds its product to 64 bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from machine_code import NOT_TRUSTED
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from ptx.block import WARP, Block
from ptx.memory import Memory
from ptx.program import Program
from rhovae_kernels.triton.runtime import Tiling, constants_of, options_of

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}
# Between two tensors in memory: what lies there is nobody's.
GAP = 4096
KERNELS: dict[str, CompiledKernel] = {}


def run(ptx: str, programs: int, threads: int, shared: int, arguments: Sequence[Any]) -> None:
    """Run a kernel over a grid of so many programs, on tensors of the CPU, in place.

    Args:
        arguments: those that are not constants: tensors and integers.
    """
    storages: dict[int, tuple[Tensor, int]] = {}
    size = GAP
    for x in arguments:
        if isinstance(x, Tensor):
            storage = x.untyped_storage()
            if storage.data_ptr() not in storages:
                lies = size + storage.data_ptr() % 256
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                storages[storage.data_ptr()] = whole, lies
                size = -(-(lies + len(whole) + GAP) // 256) * 256
    memory = Memory(size, "global")
    for whole, lies in storages.values():
        memory.bytes[lies : lies + len(whole)] = whole.numpy()
        memory.allocated[lies : lies + len(whole)] = True
    values = [
        storages[x.untyped_storage().data_ptr()][1] + x.data_ptr() - x.untyped_storage().data_ptr()
        if isinstance(x, Tensor)
        else int(x)
        for x in arguments
    ]
    block = Block(Program(ptx), threads, memory, shared, [*values, 0, 0])
    for index in range(programs):
        block.run(index)
    for whole, lies in storages.values():
        whole.numpy()[:] = memory.bytes[lies : lies + len(whole)]


def launch(kernel: JITFunction, t: Tiling, like: Tensor, *args, **constants) -> None:
    """As `runtime.launch`, of CPU tensors: compiled for a GPU, and run here."""
    args += (t.rows, t.columns, t.chunks, t.chunk_columns)
    constants |= constants_of(t)
    options = options_of(kernel, t, like, constants)
    constexprs, signature, aligned, given = dict(constants), {}, {}, []
    for i, (name, x) in enumerate(zip(kernel.arg_names, args, strict=False)):
        # Triton's own rule: 1 is a constant, and of 16 it is asked whether it divides.
        if x is None or (x == 1 and name != "rows" if isinstance(x, int) else False):
            constexprs[name] = x
            continue
        given.append(x)
        is_tensor = isinstance(x, Tensor)
        signature[name] = TYPES[x.dtype] if is_tensor else "i32" if x < 2**31 else "i64"
        if name != "rows" and (x.data_ptr() if is_tensor else x) % 16 == 0:
            aligned[(i,)] = [["tt.divisibility", 16]]
    whole = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    key = repr((id(kernel), whole, constexprs, aligned, options))
    if key not in KERNELS:
        source = ASTSource(kernel, whole, constexprs, aligned)
        KERNELS[key] = triton.compile(source, target=HOPPER, options=options)
    made = KERNELS[key]
    assert not NOT_TRUSTED.findall(made.asm["ptx"]), f"{kernel.__name__}: {key}"
    threads = WARP * made.metadata.num_warps
    run(made.asm["ptx"], t.programs, threads, made.metadata.shared, given)
