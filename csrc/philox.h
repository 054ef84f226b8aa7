// Philox4x32-10 (Salmon et al., SC 2011) and the normals made of its words, host and device.
//
// Row r of a draw is a stream of 32-bit words: word k is word k mod 4 of Philox at counter
// (offset low, offset high, r, k div 4) under key (seed low, seed high). The words are the same,
// bit for bit, in every implementation, and so is the way from words to normals. The functions are
// free of branches, so that a loop over blocks vectorises on the host.
#pragma once

#include <cstdint>
#include <cstring>

#include "math.h"

namespace rhovae {

// A draw has fewer rows and columns than these: row and block are words of the counter.
constexpr int64_t kPhiloxRows = int64_t(1) << 32, kPhiloxColumns = int64_t(1) << 34;

struct PhiloxWords {
  uint32_t word[4];
};

RHOVAE_HD PhiloxWords philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                    uint32_t k0, uint32_t k1) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Words 4·block … 4·block+3 of a row's stream.
RHOVAE_HD PhiloxWords philox_block(int64_t seed, int64_t offset, uint32_t row, uint32_t block) {
  const uint64_t key = uint64_t(seed), counter = uint64_t(offset);
  return philox4x32_10(uint32_t(counter), uint32_t(counter >> 32), row, block, uint32_t(key),
                       uint32_t(key >> 32));
}

// cos(πw) and sin(πw) for |w| ≤ 1. The angle is reduced exactly, to f = w − q/2 with |f| ≤ ¼, where
// minimax polynomials in f² hold 1e-8 (float) and 1e-19 (double).
template <typename T>
RHOVAE_HD void cos_sin_pi(T w, T& cosine, T& sine) {
  const int quadrant = int(T(2) * w + T(2.5)) - 2;
  const T f = w - T(0.5) * T(quadrant);
  const T y = f * f;
  T c, s;
  if constexpr (sizeof(T) == 4) {
    c = ((((0.23132972f * y - 1.3350446f) * y + 4.0587072f) * y - 4.9348021f) * y) + 1.0f;
    s = (((-0.58907866f * y + 2.5497673f) * y - 5.1677079f) * y + 3.14159274f) * f;
  } else {
    c = -0.00010356753962002818 * y + 0.0019294657587335116;
    c = c * y - 0.02580688565420877;
    c = c * y + 0.23533063019094136;
    c = c * y - 1.3352627688519185;
    c = c * y + 4.058712126416747;
    c = c * y - 4.934802200544679;
    c = c * y + 1.0;
    s = -2.1717412498168797e-05 * y + 0.0004662827319365402;
    s = s * y - 0.0073704298849206805;
    s = s * y + 0.08214588658006507;
    s = s * y - 0.5992645293202981;
    s = s * y + 2.5501640398773415;
    s = s * y - 5.16771278004997;
    s = (s * y + 3.141592653589793) * f;
  }
  const bool swapped = quadrant & 1;
  const T x = swapped ? s : c;
  const T z = swapped ? c : s;
  cosine = ((quadrant + 1) & 2) ? -x : x;
  sine = (quadrant & 2) ? -z : z;
}

// log v for normal v in (0, 1]: v = 2^e (1+f) with 1+f in [√½, √2). Relative error 1e-7, up to v = 1.
RHOVAE_HD float log_uniform(float v) {
  int32_t bits;
  memcpy(&bits, &v, sizeof bits);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  bits -= int32_t(uint32_t(exponent) << 23);
  float mantissa;
  memcpy(&mantissa, &bits, sizeof mantissa);
  const float f = mantissa - 1.0f, e = float(exponent);
  float p = -0.07865643f * f + 0.12879275f;
  p = p * f - 0.1312526f;
  p = p * f + 0.14181408f;
  p = p * f - 0.16624972f;
  p = p * f + 0.20002283f;
  p = p * f - 0.25000796f;
  p = p * f + 0.33333316f;
  const float log1p_f = f + (f * f) * (p * f - 0.5f);
  // log 2 in two parts, the first short enough that its product with e is exact.
  return e * 0.693359375f + (e * -2.12194440e-4f + log1p_f);
}

// Box–Muller: r = √(−2 log v), θ = πw; the two normals are r cos θ and r sin θ. One 32-bit word a
// uniform: v = (word+½)·2⁻³² and w = int32(word)·2⁻³¹, each rounded once.
RHOVAE_HD void normal_pair(uint32_t v_word, uint32_t w_word, float& first, float& second) {
  // Both products are exact, so that the sum is the only rounding, fused or not.
  const float v = float(int32_t(v_word >> 16)) * 0x1p-16f +
                  (float(int32_t(v_word & 0xffffu)) + 0.5f) * 0x1p-32f;
  const float w = float(int32_t(w_word)) * 0x1p-31f;
  const float r = std::sqrt(-2.0f * log_uniform(v));
  float cosine, sine;
  cos_sin_pi(w, cosine, sine);
  first = r * cosine;
  second = r * sine;
}

// The same in double precision: two words a uniform, the first the high one, of which the upper 53
// bits m are kept: v = (m+1)·2⁻⁵³, w = m·2⁻⁵² with m read as signed.
RHOVAE_HD void normal_pair(uint64_t v_words, uint64_t w_words, double& first, double& second) {
  const double v = double(int64_t(v_words >> 11) + 1) * 0x1p-53;
  const double w = double(int64_t(w_words) >> 11) * 0x1p-52;
  const double r = std::sqrt(-2.0 * std::log(v));
  double cosine, sine;
  cos_sin_pi(w, cosine, sine);
  first = r * cosine;
  second = r * sine;
}

// The normals that one Philox block makes: 4 in float, 2 in double.
template <typename T>
constexpr int kNormalsPerBlock = sizeof(T) == 4 ? 4 : 2;

// Normals kNormalsPerBlock·block … of row `row`.
template <typename T>
RHOVAE_HD void normal_block(int64_t seed, int64_t offset, uint32_t row, uint32_t block, T* out) {
  const PhiloxWords p = philox_block(seed, offset, row, block);
  if constexpr (sizeof(T) == 4) {
    normal_pair(p.word[0], p.word[1], out[0], out[1]);
    normal_pair(p.word[2], p.word[3], out[2], out[3]);
  } else {
    normal_pair(uint64_t(p.word[0]) << 32 | p.word[1], uint64_t(p.word[2]) << 32 | p.word[3],
                out[0], out[1]);
  }
}

}  // namespace rhovae
