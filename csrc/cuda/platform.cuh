// What the kernels take from CUDA's runtime and from torch's: the current device and stream, a
// launch, and where the ops register. Kernels themselves use the language, shuffles and barriers
// only. A program that executes them on the host defines RHOVAE_HOST_EXECUTOR as the name of a
// header that supplies the same in its own way.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef RHOVAE_HOST_EXECUTOR
#include RHOVAE_HOST_EXECUTOR
#else

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#define RHOVAE_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(rhovae_cuda, CUDA, m)

namespace rhovae::cuda {

// The device of a tensor, current while this lives. Launches go to its current stream.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& x)
      : index_(x.get_device_index()), guard_(index_) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream_));
  }

  int multiprocessors() const {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index_));
    return count;
  }

  template <typename Parameters>
  void launch(void (*kernel)(Parameters), dim3 blocks, int threads,
              const Parameters& parameters) const {
    if (blocks.x == 0 || blocks.y == 0) return;
    kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream_)>>>(parameters);
    check(cudaGetLastError());
  }

 private:
  static void check(cudaError_t status) {
    STD_TORCH_CHECK(status == cudaSuccess, "rhovae: CUDA: ", cudaGetErrorString(status));
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace rhovae::cuda

#endif  // RHOVAE_HOST_EXECUTOR
