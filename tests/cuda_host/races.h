// Races on shared memory: a lane reads what another wrote since the last barrier, or writes what
// another wrote or read since then. Shuffles and votes order no memory, and count for nothing here.
//
// A compiler that is told -fsanitize=thread calls __tsan_read4(address) and the like before every
// access; here they are, in the place of that sanitizer's own library. The hooks themselves must
// not be watched, and call nothing that is.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#define RHOVAE_UNWATCHED __attribute__((no_sanitize("thread"), noinline, used))

namespace executor::races {

constexpr int kNobody = -1, kSeveral = -2;

// Who used a byte of shared memory since the last barrier.
struct Byte {
  long period = -1;  // barriers before the uses below
  int writer = kNobody, reader = kNobody;
};

inline std::vector<Byte> storage;
inline Byte* used = nullptr;
// The shared memory: what is named in the sources, and what the launch asks for.
inline unsigned char* first[2] = {};
inline size_t count[2] = {};
inline long period = 0;
inline int lane = kNobody;  // that runs now

inline bool found = false;
inline int found_lane = 0, found_other = 0;

template <typename Memory>
void new_block(Memory named, Memory asked_for) {
  const size_t bytes = named.bytes + asked_for.bytes;
  if (storage.size() != bytes) storage.assign(bytes, Byte());
  ++period;
  used = storage.data();
  first[0] = named.first, first[1] = asked_for.first;
  count[0] = named.bytes, count[1] = asked_for.bytes;
  found = false;
}

inline std::string message() {
  const std::string other = found_other == kSeveral ? "several threads" : "thread " + std::to_string(found_other);
  return "a race: shared memory that " + other + " used since the last barrier, thread " +
         std::to_string(found_lane);
}

RHOVAE_UNWATCHED inline void access(const void* address, size_t size, bool writes) {
  if (lane < 0) return;
  for (size_t i = 0; i < size; ++i) {
    const unsigned char* const p = static_cast<const unsigned char*>(address) + i;
    size_t at = size_t(p - first[0]);
    if (at >= count[0]) {
      if (size_t(p - first[1]) >= count[1]) continue;
      at = count[0] + size_t(p - first[1]);
    }
    Byte& byte = used[at];
    if (byte.period != period) {
      byte.period = period;
      byte.writer = byte.reader = kNobody;
    }
    int other = kNobody;
    if (byte.writer != kNobody && byte.writer != lane) other = byte.writer;
    if (writes && byte.reader != kNobody && byte.reader != lane) other = byte.reader;
    if (other != kNobody && !found) {
      found = true;
      found_lane = lane;
      found_other = other;
    }
    if (writes) {
      byte.writer = lane;
    } else {
      byte.reader = byte.reader == kNobody || byte.reader == lane ? lane : kSeveral;
    }
  }
}

}  // namespace executor::races

#define RHOVAE_HOOK(name, ...) \
  extern "C" RHOVAE_UNWATCHED inline void __tsan_##name(__VA_ARGS__)
#define RHOVAE_HOOKS(bytes)                                                                     \
  RHOVAE_HOOK(read##bytes, void* p) { executor::races::access(p, bytes, false); }               \
  RHOVAE_HOOK(write##bytes, void* p) { executor::races::access(p, bytes, true); }               \
  RHOVAE_HOOK(unaligned_read##bytes, void* p) { executor::races::access(p, bytes, false); }     \
  RHOVAE_HOOK(unaligned_write##bytes, void* p) { executor::races::access(p, bytes, true); }

RHOVAE_HOOKS(1)
RHOVAE_HOOKS(2)
RHOVAE_HOOKS(4)
RHOVAE_HOOKS(8)
RHOVAE_HOOKS(16)
RHOVAE_HOOK(read_range, void* p, size_t bytes) { executor::races::access(p, bytes, false); }
RHOVAE_HOOK(write_range, void* p, size_t bytes) { executor::races::access(p, bytes, true); }
RHOVAE_HOOK(init) {}
RHOVAE_HOOK(func_entry, void*) {}
RHOVAE_HOOK(func_exit) {}
RHOVAE_HOOK(vptr_update, void**, void*) {}
// Of the host's code: guards of static variables, counts of references.
extern "C" RHOVAE_UNWATCHED inline unsigned char __tsan_atomic8_load(
    const volatile unsigned char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
extern "C" RHOVAE_UNWATCHED inline int __tsan_atomic32_fetch_add(volatile int* p, int x, int) {
  return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}
