// rhovae_kernels._C: importing it registers the kernels; it tells how it was built.

#include <pybind11/pybind11.h>

#include "cpu/simd_types.h"

namespace py = pybind11;

namespace {

const char* target_name() {
  switch (rhovae::cpu_target()) {
    case rhovae::Target::kAvx512:
      return "avx512";
    case rhovae::Target::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of rhovae_kernels; importing this registers them.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = RHOVAE_COMPILER;
        info["flags"] = RHOVAE_FLAGS;
        info["torch"] = RHOVAE_TORCH;
        info["torch_target"] = "2.11";
        info["cuda"] = RHOVAE_CUDA;
        info["architectures"] = RHOVAE_ARCHITECTURES;
        info["instructions"] = target_name();
        return info;
      },
      "How this extension was built (compiler, flags, CUDA version and architectures, the torch it "
      "was built against), and the CPU instructions it uses on this machine.");
}
