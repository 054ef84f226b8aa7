// Compiles the kernels of one file once per instruction set; RHOVAE_RUN(arguments, Pass) runs the best.
//
// A kernel file names itself in RHOVAE_KERNELS and includes this header, which includes it back for
// each target with RHOVAE_TARGET defined: the part of the file under `#ifdef RHOVAE_TARGET` lands in
// the namespace rhovae::<target>. Standard headers are included before: an inline function of theirs
// compiled for a newer machine could otherwise be the copy that the linker keeps for every caller.

#include "../math.h"
#include "simd_types.h"

#define RHOVAE_TARGET baseline
#define RHOVAE_VECTOR_BYTES 16
#include "simd.h"
#include "tiled.h"
#include RHOVAE_KERNELS
#undef RHOVAE_TARGET
#undef RHOVAE_VECTOR_BYTES

#ifdef RHOVAE_SEVERAL_TARGETS

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

#define RHOVAE_RUN(arguments, ...)                                                        \
  switch (::rhovae::cpu_target()) {                                                        \
    case ::rhovae::Target::kAvx512:                                                        \
      ::rhovae::avx512::run<::rhovae::avx512::__VA_ARGS__>(arguments);                     \
      break;                                                                               \
    case ::rhovae::Target::kAvx2:                                                          \
      ::rhovae::avx2::run<::rhovae::avx2::__VA_ARGS__>(arguments);                         \
      break;                                                                               \
    default:                                                                               \
      ::rhovae::baseline::run<::rhovae::baseline::__VA_ARGS__>(arguments);                 \
  }

#else
#define RHOVAE_RUN(arguments, ...) \
  ::rhovae::baseline::run<::rhovae::baseline::__VA_ARGS__>(arguments)
#endif
