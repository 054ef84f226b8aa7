// Compiles the kernels of one file once per instruction set; RHOVAE_RUN(arguments, Pass) runs the best that is here.
//
// A kernel file names itself in RHOVAE_KERNELS and includes this header, which includes it back for
// each target with RHOVAE_TARGET defined: the part of the file under `#ifdef RHOVAE_TARGET` lands in
// the namespace rhovae::<target>. Standard headers are included before: an inline function of theirs
// compiled for a newer machine could otherwise be the copy that the linker keeps for every caller.

#include "../math.h"
#include "simd_types.h"

#if RHOVAE_BUILDS(0)
#define RHOVAE_TARGET baseline
#define RHOVAE_VECTOR_BYTES 16
#include "simd.h"
#include "tiled.h"
#include RHOVAE_KERNELS
#undef RHOVAE_TARGET
#undef RHOVAE_VECTOR_BYTES
#define RHOVAE_RUN_BASELINE(...) __VA_ARGS__
#else
#define RHOVAE_RUN_BASELINE(...)
#endif

#if RHOVAE_BUILDS_AVX2
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define RHOVAE_TARGET avx2
#define RHOVAE_VECTOR_BYTES 32
#include "simd.h"
#include "tiled.h"
#include RHOVAE_KERNELS
#undef RHOVAE_TARGET
#undef RHOVAE_VECTOR_BYTES
#pragma GCC pop_options
#define RHOVAE_RUN_AVX2(...) __VA_ARGS__
#else
#define RHOVAE_RUN_AVX2(...)
#endif

#if RHOVAE_BUILDS_AVX512
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define RHOVAE_TARGET avx512
#define RHOVAE_VECTOR_BYTES 64
// One instruction for a lane move, where the compiler's general shuffle takes a slower one.
// (Masked, all lanes taken: the plain form of GCC 12's headers warns of a variable of its own.)
#define RHOVAE_ALIGN_LANES(a, b, k) _mm512_mask_alignr_epi32(a, 0xffff, a, b, k)
// Loads and stores that leave lanes out; the lesser of two in one instruction.
#define RHOVAE_MASKED
#include "simd.h"
#include "tiled.h"
#include RHOVAE_KERNELS
#undef RHOVAE_TARGET
#undef RHOVAE_VECTOR_BYTES
#pragma GCC pop_options
#define RHOVAE_RUN_AVX512(...) __VA_ARGS__
#else
#define RHOVAE_RUN_AVX512(...)
#endif

#define RHOVAE_RUN_ON(target, arguments, ...) \
  ::rhovae::target::run<::rhovae::target::__VA_ARGS__>(arguments)

// cpu_target() gives none that is not built.
#define RHOVAE_RUN(arguments, ...)                                        \
  switch (::rhovae::cpu_target()) {                                       \
    case ::rhovae::Target::kAvx512:                                       \
      RHOVAE_RUN_AVX512(RHOVAE_RUN_ON(avx512, arguments, __VA_ARGS__));   \
      break;                                                              \
    case ::rhovae::Target::kAvx2:                                         \
      RHOVAE_RUN_AVX2(RHOVAE_RUN_ON(avx2, arguments, __VA_ARGS__));       \
      break;                                                              \
    case ::rhovae::Target::kBaseline:                                     \
      RHOVAE_RUN_BASELINE(RHOVAE_RUN_ON(baseline, arguments, __VA_ARGS__)); \
  }
