// Small kernels that test the executor itself: what shuffles and votes give, and what it refuses.
#include "executor.h"

namespace {

constexpr int kThreads = 64;

struct Probe {
  int* out;
};

// Four numbers a lane.
__global__ void exchanges(Probe p) {
  const int i = threadIdx.x;
  int* const out = p.out + 4 * i;
  out[0] = __shfl_up_sync(~0u, i, 3, 8);
  out[1] = __shfl_down_sync(~0u, i, 3, 8);
  out[2] = __shfl_xor_sync(~0u, i, 5);
  out[3] = __shfl_sync(~0u, i, 6, 16);
}

__global__ void votes(Probe p) {
  const int i = threadIdx.x;
  int* const out = p.out + 4 * i;
  out[0] = int(__ballot_sync(~0u, i % 32 < 3));
  out[1] = __any_sync(~0u, i == 40);
  out[2] = __all_sync(~0u, i < 63);
  out[3] = int(blockDim.x + gridDim.y);
}

__global__ void missing_barrier(Probe p) {
  __shared__ int written[kThreads];
  const int i = threadIdx.x;
  written[i] = 1;
  p.out[i] = written[kThreads - 1 - i];
}

__global__ void barrier_of_some(Probe) {
  if (threadIdx.x != 40) __syncthreads();
}

__global__ void two_barriers(Probe) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_of_some(Probe p) {
  if (threadIdx.x % 2) p.out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 2);
}

__global__ void two_shuffles(Probe p) {
  const int i = threadIdx.x;
  p.out[i] = i % 32 < 16 ? __shfl_up_sync(~0u, i, 1) : __shfl_down_sync(~0u, i, 1);
}

__global__ void two_distances(Probe p) {
  p.out[threadIdx.x] = __shfl_up_sync(~0u, 1, threadIdx.x % 32 < 16 ? 1 : 2);
}

__global__ void half_a_mask(Probe p) { p.out[threadIdx.x] = __shfl_up_sync(0xffffu, 1, 1); }

__global__ void part_of_a_warp(Probe) {}

}  // namespace

// Runs a kernel over one block; what the executor said, or "".
extern "C" __attribute__((visibility("default"))) const char* probe(const char* name, int* out) {
  static std::string message;
  message.clear();
  const std::string wanted = name;
  try {
#define RUN(kernel, threads) \
  if (wanted == #kernel) executor::launch(kernel, dim3(1), threads, Probe{out})
    RUN(exchanges, kThreads);
    RUN(votes, kThreads);
    RUN(missing_barrier, kThreads);
    RUN(barrier_of_some, kThreads);
    RUN(two_barriers, kThreads);
    RUN(shuffle_of_some, kThreads);
    RUN(two_shuffles, kThreads);
    RUN(two_distances, kThreads);
    RUN(half_a_mask, kThreads);
    RUN(part_of_a_warp, kThreads - 1);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  return message.c_str();
}
