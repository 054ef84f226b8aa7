// CUDA's runtime without a device, as far as torch and the kernels call it: memory is the host's,
// copies are made, and a kernel that is launched is written down and not run.

#include <cxxabi.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <unordered_map>

#include "device.h"

namespace stub {
namespace {

struct State {
  std::mutex mutex;
  std::unordered_map<const void*, Kernel> kernels;  // by the function that launches one
  std::map<uintptr_t, size_t> memory;               // bytes by address
  std::FILE* launches = nullptr;
};

// Never destroyed: libraries unregister their kernels after everything else.
State& state() {
  static State& one = *new State;
  return one;
}

thread_local cudaError_t last = cudaSuccess;

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) last = status;
  return status;
}

Kernel* kernel_of(const void* function) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto found = s.kernels.find(function);
  return found == s.kernels.end() ? nullptr : &found->second;
}

std::string demangled(const std::string& name) {
  int status;
  char* const text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string out = text ? text : name;
  std::free(text);
  return out;
}

// What follows a launch's <<< >>> until the kernel's own function takes it.
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local Configuration configuration;

}  // namespace

int attribute(int which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
      return kThreads;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return kShared;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return kSharedOptin;
    case cudaDevAttrMultiProcessorCount:
      return kMultiprocessors;
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
      return 1 << 16;
    default:
      return 0;
  }
}

bool in_memory(uintptr_t address) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto after = s.memory.upper_bound(address);
  if (after == s.memory.begin()) return false;
  const auto& [first, bytes] = *std::prev(after);
  return address - first < bytes;
}

cudaError_t launch(const Kernel& kernel, dim3 grid, dim3 block, size_t shared, const void* stream) {
  if (stream && static_cast<const Stream*>(stream)->device != current) {
    return cudaErrorInvalidResourceHandle;
  }
  const auto within = [](unsigned n, unsigned most) { return n > 0 && n <= most; };
  if (!within(grid.x, kGridX) || !within(grid.y, kGridYZ) || !within(grid.z, kGridYZ) ||
      !within(block.x, kThreads) || !within(block.y, kThreads) || !within(block.z, 64) ||
      uint64_t(block.x) * block.y * block.z > kThreads) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared > size_t(kernel.shared)) return cudaErrorInvalidValue;
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (s.launches == nullptr) {
    const char* const path = std::getenv("RHOVAE_LAUNCHES");
    s.launches = std::fopen(path ? path : "/dev/null", "a");
    if (s.launches == nullptr) {
      std::perror(path);
      std::abort();
    }
  }
  std::fprintf(s.launches,
               "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], "
               "\"shared\": %zu, \"device\": %d, \"stream\": %zu}\n",
               demangled(kernel.name).c_str(), grid.x, grid.y, grid.z, block.x, block.y, block.z,
               shared, current, size_t(stream));
  std::fflush(s.launches);
  return cudaSuccess;
}

}  // namespace stub

using namespace stub;

extern "C" {

// Devices.

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {};
  std::strcpy(p->name, "no device");
  p->major = 9;
  p->totalGlobalMem = kMemory;
  p->multiProcessorCount = kMultiprocessors;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = kThreads;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2 * kThreads;
  p->maxGridSize[0] = kGridX;
  p->maxGridSize[1] = p->maxGridSize[2] = kGridYZ;
  p->regsPerBlock = p->regsPerMultiprocessor = attribute(cudaDevAttrMaxRegistersPerBlock);
  p->sharedMemPerBlock = kShared;
  p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = kSharedOptin;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = attribute(which);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

// The thread's error. Its name and text are the real runtime's.

cudaError_t cudaGetLastError() {
  const cudaError_t status = last;
  last = cudaSuccess;
  return status;
}

// Memory. It is reserved alone: what nobody touches takes none.

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (bytes > kMemory) return result(cudaErrorMemoryAllocation);
  void* const found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return result(cudaErrorMemoryAllocation);
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.memory[uintptr_t(found)] = bytes;
  *pointer = found;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  const auto found = s.memory.find(uintptr_t(pointer));
  if (found == s.memory.end()) return result(cudaErrorInvalidValue);
  munmap(pointer, found->second);
  s.memory.erase(found);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = std::malloc(bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = kMemory;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// Streams: whatever was asked for is done.

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream{current});
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

// Kernels, as nvcc has the host register and launch them.

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.kernels[function].name = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared,
                             cudaStream_t stream) {
  const Kernel* const kernel = kernel_of(function);
  return result(kernel ? launch(*kernel, grid, block, shared, stream)
                       : cudaErrorInvalidDeviceFunction);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which, int value) {
  Kernel* const kernel = kernel_of(function);
  if (kernel == nullptr) return result(cudaErrorInvalidDeviceFunction);
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > kSharedOptin) return result(cudaErrorInvalidValue);
  kernel->shared = value;
  return cudaSuccess;
}

}  // extern "C"
