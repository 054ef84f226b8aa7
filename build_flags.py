"""The flags that the extension is compiled with: one home, for `setup.py` and the compile tests."""

# The stable C++ ABI of torch, as of 2.11: one build serves every torch from there on.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]

CXX_FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-fvisibility=hidden", "-Wall"]

# In the place of optimisation, and for the linker: what reads or writes out of bounds, or relies on
# undefined behaviour, ends the program.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZED_CXX_FLAGS = ["-O1", "-g1", *CXX_FLAGS[1:], *SANITIZE]

NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "-DUSE_CUDA",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--threads=2",
    "-Xptxas=-v",
]

# Built for where no GPU is there to name its own: Ampere, Hopper, Blackwell.
CUDA_ARCHITECTURES = ["80", "90", "100"]


def gencode(architectures: list[str]) -> list[str]:
    """nvcc's flags for these compute capabilities ("90"), PTX of the last one included."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    return [*flags, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]
