// Executes CUDA kernels on the CPU, for tests on machines without a GPU.
//
// What runs is the kernels' own source: a C++ compiler takes a .cu file with this header in the
// place of CUDA's. Blocks run one after another, in random order. The lanes of a block are fibers
// of one thread: each runs until it waits for others (at a barrier, a shuffle, a vote) or ends.
// Which one goes on is drawn at random, and such that one warp often runs ahead as far as it can: a
// missing barrier shows as wrong results. Stricter than a GPU, the executor throws where
//   - a barrier is not reached by all lanes of the block, or a shuffle or vote not by all 32 of the
//     warp, be it that a lane has ended or that it waits elsewhere;
//   - lanes meet in different lines, or disagree about what they do there;
//   - a shuffle's mask leaves lanes out, or a block is no whole number of warps;
//   - a launch exceeds CUDA's limits of threads, blocks or bytes of parameters.
// Shared memory is the library's thread-local variables, and what a launch asks for, as large as it
// says; both are filled with NaN before each block. Vector loads are what the compiler makes of an aligned struct; -fsanitize=alignment tells misaligned ones.
// What the compiler's -fsanitize=thread tells of each access, races.h compares between barriers.
//
// Left out, since no kernel here uses them: atomics, fences, inline assembly, threads in more than
// one dimension, warps that diverge for good.
#pragma once

#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include "races.h"
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static  // with the sanitizer's margins around it
#else
#define __shared__ static thread_local
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using std::max;
using std::min;

namespace executor {

constexpr int kWarp = 32;
constexpr unsigned kEveryLane = 0xffffffffu;
constexpr size_t kStackBytes = 128 << 10;
// Of every device since compute capability 5.0.
constexpr unsigned kMostThreads = 1024, kMostBlocksX = 0x7fffffffu, kMostBlocksY = 0xffffu;
constexpr size_t kMostParameterBytes = 4096;

struct Memory {
  unsigned char* first = nullptr;
  size_t bytes = 0;
};

enum class Action { kStart, kEnd, kBarrier, kUp, kDown, kXor, kIndex, kBallot };

// Why a lane waits, and what it brings along.
struct Wait {
  Action action = Action::kStart;
  int line = 0;
  unsigned mask = kEveryLane;
  int operand = 0, width = kWarp;
  uint64_t value = 0;
};

struct Lane {
  dim3 thread;
  Wait wait;
  ucontext_t context;
  jmp_buf place;  // where it waits, once it has begun
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

// One block runs at a time.
inline dim3 block_index, block_size, grid_size;
inline std::function<void()> kernel;
inline std::vector<Lane> lanes;
inline std::vector<unsigned char> shared_memory;  // that the launch asks for
inline Lane* current = nullptr;
inline std::mt19937 generator;

#ifdef __SANITIZE_ADDRESS__
// Where the scheduler's own stack lies, which AddressSanitizer wants to be told at every switch.
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
#endif

// The shared memory of all kernels of this library: its thread-local variables, and no others.
inline Memory shared_variables;
inline thread_local char a_shared_variable;  // whose use makes the others exist

inline int look_for_shared_variables(dl_phdr_info* library, size_t, void*) {
  const auto address = reinterpret_cast<uintptr_t>(&shared_variables);
  bool here = false;
  size_t bytes = 0;
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    const auto& segment = library->dlpi_phdr[i];
    if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
    if (segment.p_type == PT_LOAD)
      here |= address - (library->dlpi_addr + segment.p_vaddr) < segment.p_memsz;
  }
  if (here) shared_variables = {static_cast<unsigned char*>(library->dlpi_tls_data), bytes};
  return here;
}

inline void find_shared_variables() {
  volatile char* const exists = &a_shared_variable;
  *exists = 0;
  dl_iterate_phdr(look_for_shared_variables, nullptr);
}

#ifdef __SANITIZE_ADDRESS__
inline ucontext_t scheduler;

// From the scheduler to a lane, until that waits.
inline void resume(Lane& lane) {
  current = &lane;
  void* frames = nullptr;
  __sanitizer_start_switch_fiber(&frames, lane.stack.get(), kStackBytes);
  swapcontext(&scheduler, &lane.context);
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
}

// From a lane to the scheduler, until what the lane waits for has come.
inline uint64_t wait(const Wait& why) {
  Lane& lane = *current;
  lane.wait = why;
  void* frames = nullptr;
  __sanitizer_start_switch_fiber(&frames, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&lane.context, &scheduler);
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
  return lane.wait.value;
}
#else
inline jmp_buf scheduler;

// The same, by jumps, which make no system call and take a third of the time. The first entry of a
// lane, to a stack of its own, is a change of contexts.
inline void resume(Lane& lane) {
  current = &lane;
#ifdef __SANITIZE_THREAD__
  races::lane = int(lane.thread.x);
#endif
  if (!_setjmp(scheduler)) {
    if (lane.wait.action == Action::kStart) setcontext(&lane.context);
    _longjmp(lane.place, 1);
  }
#ifdef __SANITIZE_THREAD__
  races::lane = races::kNobody;
#endif
}

inline uint64_t wait(const Wait& why) {
  Lane& lane = *current;
  lane.wait = why;
  if (!_setjmp(lane.place)) _longjmp(scheduler, 1);
  return current->wait.value;
}
#endif

inline void lane_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  kernel();
  wait({Action::kEnd});
}

[[noreturn]] inline void fail(const std::string& what, const Lane& lane) {
  throw std::runtime_error("cuda_host: " + what + " (thread " + std::to_string(lane.thread.x) +
                           " at line " + std::to_string(lane.wait.line) + ")");
}

// Gives each lane of a warp, all of which wait for one another, what it waits for.
inline void exchange(Lane* warp) {
  const Wait& first = warp[0].wait;
  uint64_t results[kWarp], ballot = 0;
  for (int i = 0; i < kWarp; ++i) {
    const Wait& w = warp[i].wait;
    if (w.action != first.action || w.line != first.line || w.width != first.width)
      fail("the lanes of a warp meet in different shuffles or votes", warp[i]);
    if (w.action != Action::kIndex && w.operand != first.operand)
      fail("the lanes of a warp disagree about a shuffle's distance", warp[i]);
    if (w.mask != kEveryLane) fail("a mask leaves lanes of the warp out", warp[i]);
    const int place = i % w.width, start = i - place;
    int from = i;
    switch (w.action) {
      case Action::kUp:
        if (place >= w.operand) from = i - w.operand;
        break;
      case Action::kDown:
        if (place + w.operand < w.width) from = i + w.operand;
        break;
      case Action::kXor:
        if ((place ^ w.operand) < w.width) from = start + (place ^ w.operand);
        break;
      case Action::kIndex:
        from = start + (w.operand & (w.width - 1));
        break;
      default:
        ballot |= uint64_t(w.value != 0) << i;
    }
    results[i] = warp[from].wait.value;
  }
  const bool votes = first.action == Action::kBallot;
  for (int i = 0; i < kWarp; ++i) warp[i].wait.value = votes ? ballot : results[i];
}

inline void run_block() {
  const int count = int(block_size.x);
  // NaN in every type.
  std::memset(shared_variables.first, 0xff, shared_variables.bytes);
  std::fill(shared_memory.begin(), shared_memory.end(), 0xff);
#ifdef __SANITIZE_THREAD__
  races::new_block(shared_variables, {shared_memory.data(), shared_memory.size()});
#endif
  if (int(lanes.size()) < count) lanes.resize(count);
  const int warps = count / kWarp;
  std::vector<std::vector<int>> ready(warps);  // lanes that can go on, of each warp
  for (int i = 0; i < count; ++i) {
    Lane& lane = lanes[i];
    lane.thread = dim3(i, 0, 0);
    lane.wait = {};
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(lane.stack.get(), kStackBytes);
#endif
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.get();
    lane.context.uc_stack.ss_size = kStackBytes;
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, lane_main, 0);
    ready[i / kWarp].push_back(i);
  }
  // The warp that comes first in this order goes on as long as it can. Rarely, the order changes.
  constexpr unsigned kLanesPerChange = 256;
  std::vector<int> order(warps);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), generator);
  int ended = 0, at_barrier = 0;
  std::vector<int> in_exchange(warps, 0);
  while (ended < count) {
    if (generator() % kLanesPerChange == 0) std::shuffle(order.begin(), order.end(), generator);
    const auto next = std::find_if(order.begin(), order.end(),
                                   [&](int warp) { return !ready[warp].empty(); });
    if (next == order.end()) {
      for (int i = 0; i < count; ++i) {
        if (lanes[i].wait.action != Action::kEnd)
          fail("a barrier, shuffle or vote that not all lanes reach", lanes[i]);
      }
    }
    std::vector<int>& candidates = ready[*next];
    std::swap(candidates[generator() % candidates.size()], candidates.back());
    const int i = candidates.back();
    candidates.pop_back();
    resume(lanes[i]);
#ifdef __SANITIZE_THREAD__
    if (races::found) fail(races::message(), lanes[i]);
#endif
    if (lanes[i].wait.action == Action::kEnd) {
      ++ended;
    } else if (lanes[i].wait.action == Action::kBarrier) {
      if (++at_barrier < count) continue;
      at_barrier = 0;
#ifdef __SANITIZE_THREAD__
      ++races::period;
#endif
      for (int k = 0; k < count; ++k) {
        if (lanes[k].wait.line != lanes[i].wait.line)
          fail("the lanes of a block meet at different barriers", lanes[k]);
        ready[k / kWarp].push_back(k);
      }
      std::shuffle(order.begin(), order.end(), generator);
    } else if (++in_exchange[i / kWarp] == kWarp) {
      in_exchange[i / kWarp] = 0;
      const int first = i / kWarp * kWarp;
      exchange(&lanes[first]);
      for (int k = first; k < first + kWarp; ++k) ready[i / kWarp].push_back(k);
    }
  }
}

template <typename Parameters>
void launch(void (*function)(Parameters), dim3 blocks, int threads, const Parameters& parameters,
            size_t shared_bytes = 0) {
  if (threads % kWarp) throw std::runtime_error("cuda_host: a block is no whole number of warps");
  if (unsigned(threads) > kMostThreads || blocks.x > kMostBlocksX || blocks.y > kMostBlocksY)
    throw std::runtime_error("cuda_host: more threads or blocks than a launch may have");
  static_assert(sizeof(Parameters) <= kMostParameterBytes);
  find_shared_variables();
  shared_memory = std::vector<unsigned char>(shared_bytes);
  block_size = dim3(unsigned(threads));
  grid_size = blocks;
  kernel = [&] { function(parameters); };
  std::vector<dim3> order;
  for (unsigned y = 0; y < blocks.y; ++y) {
    for (unsigned x = 0; x < blocks.x; ++x) order.emplace_back(x, y);
  }
  std::shuffle(order.begin(), order.end(), generator);
  for (const dim3& index : order) {
    block_index = index;
    run_block();
  }
}

template <typename T>
T shuffle(Action action, unsigned mask, T x, int operand, int width, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  Wait why{action, line, mask, operand, width};
  std::memcpy(&why.value, &x, sizeof x);
  const uint64_t result = wait(why);
  std::memcpy(&x, &result, sizeof x);
  return x;
}

}  // namespace executor

#define threadIdx (executor::current->thread)
#define blockIdx (executor::block_index)
#define blockDim (executor::block_size)
#define gridDim (executor::grid_size)

inline void __syncthreads(int line = __builtin_LINE()) {
  executor::wait({executor::Action::kBarrier, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T x, int distance, int width = executor::kWarp,
                 int line = __builtin_LINE()) {
  return executor::shuffle(executor::Action::kUp, mask, x, distance, width, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T x, int distance, int width = executor::kWarp,
                   int line = __builtin_LINE()) {
  return executor::shuffle(executor::Action::kDown, mask, x, distance, width, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int distance, int width = executor::kWarp,
                  int line = __builtin_LINE()) {
  return executor::shuffle(executor::Action::kXor, mask, x, distance, width, line);
}
template <typename T>
T __shfl_sync(unsigned mask, T x, int lane, int width = executor::kWarp,
              int line = __builtin_LINE()) {
  return executor::shuffle(executor::Action::kIndex, mask, x, lane, width, line);
}
inline unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
  using executor::Action;
  return unsigned(executor::shuffle(Action::kBallot, mask, uint64_t(vote != 0), 0, 32, line));
}
inline int __any_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
  return __ballot_sync(mask, vote, line) != 0;
}
inline int __all_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
  return __ballot_sync(mask, vote, line) == executor::kEveryLane;
}
