// What the CPU kernels share across instruction sets: half-precision storage, the choice of target.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "rhovae_kernels needs GCC 12 or newer (or Clang): CXX=g++-12 names another compiler"
#endif

// One file, several instruction sets: GCC's way. Other compilers build the baseline alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RHOVAE_SEVERAL_TARGETS
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef RHOVAE_SEVERAL_TARGETS
#include <immintrin.h>
#endif

namespace rhovae {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// The type that arithmetic is done in, for values stored as S.
template <typename S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename S>
using Compute = typename ComputeOf<S>::type;

enum class Target { kBaseline, kAvx2, kAvx512 };

// The best target of this machine, or a lesser one named by RHOVAE_CPU_TARGET.
inline Target cpu_target() {
#ifdef RHOVAE_SEVERAL_TARGETS
  static const Target target = [] {
    const char* named = std::getenv("RHOVAE_CPU_TARGET");
    const auto is = [named](const char* name) { return !std::strcmp(named, name); };
    if (named && !is("baseline") && !is("avx2") && !is("avx512")) {
      throw std::runtime_error(std::string("RHOVAE_CPU_TARGET is '") + named +
                               "'; it must be baseline, avx2 or avx512");
    }
    const auto allowed = [named](const char* name) { return !named || !std::strcmp(named, name); };
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        allowed("avx512")) {
      return Target::kAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        (allowed("avx2") || allowed("avx512"))) {
      return Target::kAvx2;
    }
    return Target::kBaseline;
  }();
  return target;
#else
  return Target::kBaseline;
#endif
}

}  // namespace rhovae
