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

// Each lane finds its neighbour's number, but writes its own before all have read.
__global__ void read_without_a_barrier(Probe p) {
  __shared__ int written[kThreads];
  const int i = threadIdx.x;
  written[i] = i;
  __syncthreads();
  p.out[i] = written[(i + 1) % kThreads];
  written[i] = 0;
}

__global__ void one_place_for_all(Probe p) {
  __shared__ int written;
  written = threadIdx.x;
  __syncthreads();
  p.out[threadIdx.x] = written;
}

// What a shuffle brings has been written before, but no barrier says so of shared memory.
__global__ void a_shuffle_is_no_barrier(Probe p) {
  __shared__ int written[kThreads];
  const int i = threadIdx.x;
  written[i] = i;
  p.out[i] = __shfl_xor_sync(~0u, i, 1) + written[i ^ 1];
}

__global__ void with_barriers(Probe p) {
  __shared__ int written[kThreads];
  const int i = threadIdx.x;
  for (int turn = 0; turn < 3; ++turn) {
    written[i] = i + turn;
    __syncthreads();
    p.out[i] = written[(i + 1) % kThreads] + written[0];
    __syncthreads();
  }
}

__global__ void never_written(Probe p) {
  __shared__ float x[4 * kThreads];
  for (int k = 0; k < 4; ++k) {
    p.out[4 * threadIdx.x + k] = x[4 * threadIdx.x + k] != x[4 * threadIdx.x + k];
  }
}

// 0 where the product is rounded before it is subtracted from, its rounding error where not.
__global__ void product_and_sum(Probe p) {
  volatile float x = 1.0f + 1.0f / 4096, y = -(x * x);
  p.out[threadIdx.x] = x * x + y != 0;
}

__global__ void nothing(Probe) {}

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

// What the block's shared memory holds at first, a byte a lane; then it is written.
__global__ void asked_for(Probe p) {
  const int i = threadIdx.x;
  p.out[i] = executor::shared_memory.at(i);
  executor::shared_memory.at(i) = 0;
}

}  // namespace

// Runs a kernel over one block; what the executor said, or "".
extern "C" __attribute__((visibility("default"))) const char* probe(const char* name, int* out) {
  static std::string message;
  message.clear();
  const std::string wanted = name;
  try {
#define RUN(kernel, threads) \
  if (wanted == #kernel) executor::launch(kernel, dim3(1), threads, Probe{out})
#define LAUNCH(name, blocks, threads) \
  if (wanted == name) executor::launch(nothing, blocks, threads, Probe{out})
    RUN(exchanges, kThreads);
    RUN(votes, kThreads);
    RUN(missing_barrier, kThreads);
    RUN(barrier_of_some, kThreads);
    RUN(two_barriers, kThreads);
    RUN(shuffle_of_some, kThreads);
    RUN(two_shuffles, kThreads);
    RUN(two_distances, kThreads);
    RUN(half_a_mask, kThreads);
    RUN(read_without_a_barrier, kThreads);
    RUN(one_place_for_all, kThreads);
    RUN(a_shuffle_is_no_barrier, kThreads);
    RUN(with_barriers, kThreads);
    RUN(never_written, kThreads);
    RUN(product_and_sum, kThreads);
    LAUNCH("part of a warp", dim3(1), kThreads - 1);
    LAUNCH("too many threads", dim3(1), 1056);
    LAUNCH("too many blocks", dim3(1, 65536), kThreads);
    if (wanted == "asked_for") executor::launch(asked_for, dim3(2), kThreads, Probe{out}, kThreads);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  return message.c_str();
}
