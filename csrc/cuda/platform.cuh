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

constexpr int64_t kSharedWithoutAsking = 48 << 10;

// The shared memory of a block that its launch asks for.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

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

  // That a kernel may ask for of its own, a block.
  int64_t shared_bytes() const {
    int bytes = 0;
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index_));
    return bytes;
  }

  // `shared_bytes` is what `shared_memory` gives each block.
  template <typename Parameters>
  void launch(void (*kernel)(Parameters), dim3 blocks, int threads, const Parameters& parameters,
              int64_t shared_bytes = 0) const {
    if (blocks.x == 0 || blocks.y == 0) return;
    if (shared_bytes > kSharedWithoutAsking) {
      // The same at every launch, whichever thread makes it: all that there is.
      check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(this->shared_bytes())));
    }
    kernel<<<blocks, threads, size_t(shared_bytes), static_cast<cudaStream_t>(stream_)>>>(
        parameters);
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
