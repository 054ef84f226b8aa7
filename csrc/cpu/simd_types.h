// What the CPU kernels share across instruction sets: half-precision storage, the choice of target.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
#error "rhovae_kernels needs GCC 12 or newer (or Clang): CXX=g++-12 names another compiler"
#endif

// One file, several instruction sets: GCC's way. Other compilers build the baseline alone. A build
// for one machine names its instruction set in RHOVAE_ONLY, by its number in `Target`.
#if !defined(__x86_64__) || !defined(__GNUC__) || defined(__clang__)
#undef RHOVAE_ONLY
#define RHOVAE_ONLY 0
#endif
#ifdef RHOVAE_ONLY
#define RHOVAE_BUILDS(number) (RHOVAE_ONLY == number)
#else
#define RHOVAE_BUILDS(number) 1
#endif
#define RHOVAE_BUILDS_AVX2 RHOVAE_BUILDS(1)
#define RHOVAE_BUILDS_AVX512 RHOVAE_BUILDS(2)

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if RHOVAE_BUILDS_AVX2 || RHOVAE_BUILDS_AVX512
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
constexpr const char* kTargetNames[] = {"baseline", "avx2", "avx512"};

inline const char* name_of(Target target) { return kTargetNames[int(target)]; }

inline bool is_built(Target target) {
  constexpr bool built[] = {RHOVAE_BUILDS(0), RHOVAE_BUILDS_AVX2, RHOVAE_BUILDS_AVX512};
  return built[int(target)];
}

inline bool runs_here(Target target) {
#if RHOVAE_BUILDS_AVX2 || RHOVAE_BUILDS_AVX512
  if (target == Target::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (target == Target::kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return target == Target::kBaseline;
}

// The best target that is built and that this machine runs, up to the one that RHOVAE_CPU_TARGET
// names.
inline Target cpu_target() {
  static const Target target = [] {
    int best = int(Target::kAvx512);
    if (const char* named = std::getenv("RHOVAE_CPU_TARGET")) {
      while (best >= 0 && std::strcmp(named, kTargetNames[best])) --best;
      if (best < 0) {
        throw std::runtime_error(std::string("RHOVAE_CPU_TARGET is '") + named +
                                 "'; it must be baseline, avx2 or avx512");
      }
    }
    for (; best >= 0; --best) {
      if (is_built(Target(best)) && runs_here(Target(best))) return Target(best);
    }
    std::string built;
    for (const Target each : {Target::kBaseline, Target::kAvx2, Target::kAvx512}) {
      if (is_built(each)) built += built.empty() ? name_of(each) : std::string(", ") + name_of(each);
    }
    throw std::runtime_error("its CPU kernels were built for " + built +
                             ", which this machine does not run or RHOVAE_CPU_TARGET rules out");
  }();
  return target;
}

}  // namespace rhovae
