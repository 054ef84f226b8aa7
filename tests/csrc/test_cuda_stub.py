"""The stub of CUDA's runtime, under a program that nvcc compiled: what is launched and refused."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_stub
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import build_flags  # noqa: E402

NVCC = shutil.which("nvcc")

PROGRAM = """
#include <cstdio>

namespace rhovae::cuda {
namespace {
template <typename T>
__global__ void twice(T* x) { *x *= 2; }
}
void tried(const char* what, dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  static float* x = nullptr;
  if (x == nullptr) cudaMalloc(&x, sizeof(*x));
  twice<float><<<grid, block, shared, stream>>>(x);
  std::printf("%s: %d\\n", what, int(cudaGetLastError()));
}
}

int main() {
  using namespace rhovae::cuda;
  cudaStream_t side;
  cudaSetDevice(1);
  cudaStreamCreateWithPriority(&side, cudaStreamNonBlocking, 0);
  tried("a stream of its device", dim3(7, 5, 3), dim3(32, 2, 2), 1000, side);
  cudaSetDevice(0);
  tried("a stream of another device", 1, 1, 0, side);
  tried("the largest grid", dim3(2147483647u, 65535, 65535), dim3(1024), 0, nullptr);
  tried("too many blocks along x", dim3(2147483648u), 1, 0, nullptr);
  tried("too many blocks along y", dim3(1, 65536), 1, 0, nullptr);
  tried("too many blocks along z", dim3(1, 1, 65536), 1, 0, nullptr);
  tried("no block", dim3(0), 1, 0, nullptr);
  tried("too many threads", 1, 1025, 0, nullptr);
  tried("too many threads in all", 1, dim3(32, 33), 0, nullptr);
  tried("too much shared memory", 1, 1, (48 << 10) + 1, nullptr);
  const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const int more = cudaFuncSetAttribute(twice<float>, most, 228 << 10);
  const int all = cudaFuncSetAttribute(twice<float>, most, 227 << 10);
  std::printf("more than there is: %d\\nall that there is: %d\\n", more, all);
  cudaGetLastError();
  tried("shared memory that was asked for", 1, 1, 227 << 10, nullptr);
}
"""


@pytest.mark.skipif(NVCC is None, reason="nvcc, the CUDA compiler, is not on this machine")
def test_launches_within_cudas_limits_are_written_down_and_others_refused(tmp_path):
    stub = cuda_stub.build(tmp_path)
    source, program, launches = (tmp_path / name for name in ("twice.cu", "twice", "launches"))
    source.write_text(PROGRAM)
    version = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    toolkit = build_flags.toolkit_of(NVCC)
    folders = [toolkit / name for name in ("lib64", "lib")]
    library = build_flags.runtime_library(folders, re.search(r"V(\d+\.\d+)", version)[1])
    command = [NVCC, "--cudart=shared", f"-L{library.parent}", "-arch=sm_90", "-o", program, source]
    subprocess.run(command, check=True, capture_output=True)
    environment = {
        "LD_PRELOAD": str(stub),
        "LD_LIBRARY_PATH": str(library.parent),
        "RHOVAE_LAUNCHES": str(launches),
    }
    ran = subprocess.run(
        [program], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    # cudaErrorInvalidValue, cudaErrorInvalidConfiguration, cudaErrorInvalidResourceHandle.
    value, configuration, resource = 1, 9, 400
    assert dict(line.split(": ") for line in ran.stdout.splitlines()) == {
        what: str(status)
        for what, status in {
            "a stream of its device": 0,
            "a stream of another device": resource,
            "the largest grid": 0,
            "too many blocks along x": configuration,
            "too many blocks along y": configuration,
            "too many blocks along z": configuration,
            "no block": configuration,
            "too many threads": configuration,
            "too many threads in all": configuration,
            "too much shared memory": value,
            "more than there is": value,
            "all that there is": 0,
            "shared memory that was asked for": 0,
        }.items()
    }
    first, largest, shared = map(cuda_stub.launch_of, launches.read_text().splitlines())
    assert first[:5] == ("twice", (7, 5, 3), (32, 2, 2), 1000, 1) and first.stream
    assert largest == ("twice", (2**31 - 1, 65535, 65535), (1024, 1, 1), 0, 0, 0)
    assert shared == ("twice", (1, 1, 1), (1, 1, 1), 227 * 1024, 0, 0)
