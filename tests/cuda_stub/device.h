// The devices that the stub shows: what they have, their memory, and launches, which are written
// down.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace stub {

constexpr int kDevices = 2;
constexpr int kMultiprocessors = 132;
constexpr size_t kMemory = size_t(141) << 30;
constexpr int kThreads = 1024;           // of a block, at most
constexpr int kShared = 48 << 10;        // of a block, without asking
constexpr int kSharedOptin = 227 << 10;  // of a block, at most
constexpr unsigned kGridX = 0x7fffffff, kGridYZ = 65535;

// The calling thread's.
inline thread_local int current = 0;

struct Kernel {
  std::string name;
  int shared = kShared;  // that a launch may ask for
};

struct Stream {
  int device;
};

// The value of a device's attribute; the runtime and the driver number them alike.
int attribute(int which);

// Whether this lies in memory of a device.
bool in_memory(uintptr_t address);

// What CUDA makes of the launch; one that it takes is written down. The runtime and the driver give
// an error one number.
cudaError_t launch(const Kernel& kernel, dim3 grid, dim3 block, size_t shared, const void* stream);

}  // namespace stub
