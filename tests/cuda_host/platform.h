// What csrc/cuda/platform.cuh takes from CUDA's runtime, of the executor instead: the ops register
// in the namespace of the CUDA kernels, for tensors on the CPU. Three environment variables, read at
// each launch, say what the device is: RHOVAE_HOST_MULTIPROCESSORS; RHOVAE_HOST_SHARED_BYTES, that a
// block may ask for; and RHOVAE_HOST_SEED, which draws the order of lanes and blocks.
#pragma once

#include <cstdlib>

#include "executor.h"

#define RHOVAE_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(rhovae_cuda, CPU, m)

namespace rhovae::cuda {

inline unsigned char* shared_memory() { return executor::shared_memory.data(); }

class Device {
 public:
  explicit Device(const torch::stable::Tensor&) {}

  int multiprocessors() const { return setting("RHOVAE_HOST_MULTIPROCESSORS", 4); }

  int64_t shared_bytes() const { return setting("RHOVAE_HOST_SHARED_BYTES", 99 << 10); }

  template <typename Parameters>
  void launch(void (*kernel)(Parameters), dim3 blocks, int threads, const Parameters& parameters,
              int64_t shared_bytes = 0) const {
    executor::generator.seed(unsigned(setting("RHOVAE_HOST_SEED", 1)));
    executor::launch(kernel, blocks, threads, parameters, size_t(shared_bytes));
  }

 private:
  static int setting(const char* name, int otherwise) {
    const char* const value = std::getenv(name);
    return value ? std::atoi(value) : otherwise;
  }
};

}  // namespace rhovae::cuda
