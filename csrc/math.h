// Scalar mathematics of the kernels, the same on the host and on the device.
//
// Include this file by its relative path: a directory of include paths that holds a `math.h`
// would hide the C library's.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define RHOVAE_HD __host__ __device__ __forceinline__
#else
// Into the vector code of whichever instruction set calls it.
#define RHOVAE_HD inline __attribute__((always_inline))
#endif

namespace rhovae {

constexpr double kLog2 = 0.69314718055994530942;
constexpr double kLog2Pi = 1.83787706640934548356;

// What the AR(1) formulas need of ρ = tanh a, right where ρ itself has rounded to ±1.
// With m = |a| and h = e^{−m}, t = h²; nothing is formed from 1 − ρ².
template <typename T>
struct Correlation {
  T sign;                // of a: 1 at 0
  T rho;                 // tanh a
  T sech;                // σ = √(1−ρ²) = 2h/(1+t)
  T cosh;                // 1/σ
  T log_one_minus_rho2;  // log(1−ρ²) = −2 log cosh a
  T one_minus_abs_rho;   // 1−|ρ| = 2t/(1+t)

  static RHOVAE_HD Correlation of(T a) {
    const T sign = a < T(0) ? T(-1) : T(1);
    const T m = sign * a;
    const T h = std::exp(-m);
    const T t = h * h;
    const T e = std::expm1(T(-2) * m);  // t − 1, keeping the digits of small a
    // log cosh a = m + log1p(t) − log 2 cancels for small a, where cosh a − 1 = (1−h)²/2h does not.
    const T below_one = -e / (T(1) + h);  // 1 − h
    const T log_cosh = m < T(1) ? std::log1p(below_one * below_one / (T(2) * h))
                                : m + std::log1p(t) - T(kLog2);
    Correlation c;
    c.sign = sign;
    c.rho = -sign * e / (T(2) + e);
    c.sech = T(2) * h / (T(1) + t);
    c.cosh = T(0.5) * std::exp(m) * (T(1) + t);
    c.log_one_minus_rho2 = T(-2) * log_cosh;
    c.one_minus_abs_rho = T(2) * t / (T(1) + t);
    return c;
  }
};

// σ(s) = 1/(1+e^−s), σ(−s) and log σ(s), of e = exp(−|s|), which never overflows: right where σ
// itself has rounded to 0 or 1.
template <typename T>
struct Sigmoid {
  T kept;      // σ(s)
  T replaced;  // σ(−s) = 1−σ(s)
  T log;       // log σ(s)

  static RHOVAE_HD Sigmoid of(T s) {
    const bool negative = s < T(0);
    const T e = std::exp(negative ? s : -s);
    const T large = T(1) / (T(1) + e), small = e * large;
    return {negative ? small : large, negative ? large : small,
            (negative ? s : T(0)) - std::log1p(e)};
  }
};

// tanh x and its derivative, of e = exp(−2|x|): right where tanh itself has rounded to ±1.
template <typename T>
struct Tanh {
  T tanh;
  T sech2;  // 1 − tanh²

  static RHOVAE_HD Tanh of(T x) {
    const bool negative = x < T(0);
    const T twice = T(2) * (negative ? x : -x);
    const T e = std::exp(twice), below_one = std::expm1(twice);
    const T magnitude = -below_one / (T(2) + below_one);
    return {negative ? -magnitude : magnitude, T(4) * e / ((T(1) + e) * (T(1) + e))};
  }
};

}  // namespace rhovae
