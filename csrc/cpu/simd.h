// Vectors of one instruction set, written with the compilers' own vector types.
// Included by targets.h once per target; has no include guard for that reason.

namespace rhovae {
namespace RHOVAE_TARGET {

#define RHOVAE_INLINE inline __attribute__((always_inline))

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(RHOVAE_VECTOR_BYTES)));
  typedef int32_t bits __attribute__((vector_size(RHOVAE_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(RHOVAE_VECTOR_BYTES)));
  typedef int64_t bits __attribute__((vector_size(RHOVAE_VECTOR_BYTES)));
};

template <typename T>
using V = typename Vector<T>::type;
template <typename T>
constexpr int kLanes = RHOVAE_VECTOR_BYTES / sizeof(T);

// A product of matrices is made in tiles of sums that fill the registers, `kHeight` by a line of
// lanes: 12·2 of 32 registers, or 6·2 of 16.
constexpr int kHeight = RHOVAE_VECTOR_BYTES == 64 ? 12 : 6;
constexpr int kVectors = 2;
template <typename T>
constexpr int kLine = kVectors * kLanes<T>;

typedef uint16_t HalfBits __attribute__((vector_size(RHOVAE_VECTOR_BYTES / 2)));
typedef uint32_t FloatBits __attribute__((vector_size(RHOVAE_VECTOR_BYTES)));

// One lane, in every lane.
template <typename T, int lane, int... I>
RHOVAE_INLINE V<T> repeat(V<T> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I * 0 + lane)...);
}
template <typename T, int lane>
RHOVAE_INLINE V<T> repeat(V<T> v) {
  return repeat<T, lane>(v, std::make_integer_sequence<int, kLanes<T>>());
}
template <typename T>
RHOVAE_INLINE V<T> broadcast(T x) {
  return repeat<T, 0>(V<T>{x});
}

// Storage to compute type and back. Halves are widened and rounded (to nearest even) by their bits.

template <typename S>
RHOVAE_INLINE V<S> widen(V<S> x) {
  return x;
}
RHOVAE_INLINE V<float> widen_bfloat16(HalfBits h) {
  const FloatBits bits = __builtin_convertvector(h, FloatBits) << 16;
  V<float> v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
RHOVAE_INLINE V<float> widen_float16(HalfBits h) {
  const FloatBits wide = __builtin_convertvector(h, FloatBits);
  FloatBits magnitude = (wide & 0x7fffu) << 13;
  V<float> scaled;
  __builtin_memcpy(&scaled, &magnitude, sizeof scaled);
  scaled *= 0x1p112f;  // rebias the exponent; exact, subnormals included
  __builtin_memcpy(&magnitude, &scaled, sizeof scaled);
  const FloatBits not_finite = (FloatBits)((wide & 0x7fffu) >= 0x7c00u);
  const FloatBits bits = magnitude | (not_finite & 0x7f800000u) | ((wide & 0x8000u) << 16);
  V<float> v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
RHOVAE_INLINE HalfBits round_bfloat16(V<float> v) {
  FloatBits bits;
  __builtin_memcpy(&bits, &v, sizeof v);
  const FloatBits nan = (FloatBits)(v != v);
  const FloatBits rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
  return __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), HalfBits);
}
RHOVAE_INLINE HalfBits round_float16(V<float> v) {
  FloatBits bits;
  __builtin_memcpy(&bits, &v, sizeof v);
  const FloatBits sign = (bits >> 16) & 0x8000u;
  const FloatBits magnitude = bits & 0x7fffffffu;
  // Below 2^-14: adding ½ aligns the significand to units of 2^-24, and rounds.
  V<float> small;
  __builtin_memcpy(&small, &magnitude, sizeof small);
  small += 0.5f;
  FloatBits subnormal;
  __builtin_memcpy(&subnormal, &small, sizeof small);
  subnormal -= 0x3f000000u;
  const FloatBits normal =
      ((magnitude + (0xfffu + ((magnitude >> 13) & 1u))) >> 13) - (uint32_t(112) << 10);
  const FloatBits is_small = (FloatBits)(magnitude < 0x38800000u);
  const FloatBits is_large = (FloatBits)(magnitude >= 0x477ff000u);
  const FloatBits is_nan = (FloatBits)(magnitude > 0x7f800000u);
  FloatBits half = (is_small & subnormal) | (~is_small & normal);
  half = (is_large & 0x7c00u) | (~is_large & half);
  half |= is_nan & 0x200u;
  return __builtin_convertvector(half | sign, HalfBits);
}

// Loads and stores of the lanes 0 … n−1, the others zero; any alignment.

template <typename S>
RHOVAE_INLINE V<Compute<S>> load(const S* p) {
  if constexpr (sizeof(S) == 2) {
    HalfBits h;
    __builtin_memcpy(&h, p, sizeof h);
    if constexpr (std::is_same_v<S, BFloat16>) return widen_bfloat16(h);
    else return widen_float16(h);
  } else {
    V<S> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
}

template <typename S>
RHOVAE_INLINE void store(S* p, V<Compute<S>> v) {
  if constexpr (sizeof(S) == 2) {
    HalfBits h;
    if constexpr (std::is_same_v<S, BFloat16>) h = round_bfloat16(v);
    else h = round_float16(v);
    __builtin_memcpy(p, &h, sizeof h);
  } else {
    __builtin_memcpy(p, &v, sizeof v);
  }
}

template <typename S>
RHOVAE_INLINE V<Compute<S>> load(const S* p, int n) {
  constexpr int lanes = kLanes<Compute<S>>;
  if (n >= lanes) return load(p);
#ifdef RHOVAE_MASKED
  if constexpr (sizeof(S) == 4) return V<S>(_mm512_maskz_loadu_ps((1u << n) - 1, p));
#endif
  S buffer[lanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(static_cast<const S*>(buffer));
}

template <typename S>
RHOVAE_INLINE void store(S* p, V<Compute<S>> v, int n) {
  constexpr int lanes = kLanes<Compute<S>>;
  if (n >= lanes) return store(p, v);
#ifdef RHOVAE_MASKED
  if constexpr (sizeof(S) == 4) return _mm512_mask_storeu_ps(p, (1u << n) - 1, __m512(v));
#endif
  S buffer[lanes];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

// Every second element from p on: the lanes of one head of two that are interleaved. What is read
// ends with the last of them, and so within the operand.
template <typename U, int lanes, int... I>
RHOVAE_INLINE U every_second(U front, U back, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(front, back,
                                 (I < lanes / 2 ? 2 * I : lanes + 2 * I - (lanes - 1))...);
}
template <typename S>
RHOVAE_INLINE V<Compute<S>> load_every_second(const S* p, int n) {
  constexpr int lanes = kLanes<Compute<S>>;
  constexpr std::make_integer_sequence<int, lanes> all{};
  if (n < lanes) {
    S buffer[lanes] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[2 * i];
    return load(static_cast<const S*>(buffer));
  }
  if constexpr (sizeof(S) == 2) {
    HalfBits front, back;
    __builtin_memcpy(&front, p, sizeof front);
    __builtin_memcpy(&back, p + lanes - 1, sizeof back);
    const HalfBits h = every_second<HalfBits, lanes>(front, back, all);
    if constexpr (std::is_same_v<S, BFloat16>) return widen_bfloat16(h);
    else return widen_float16(h);
  } else {
    return every_second<V<S>, lanes>(load(p), load(p + lanes - 1), all);
  }
}

// One number, widened from storage; one number of a row, rounded to storage.
template <typename S>
RHOVAE_INLINE Compute<S> number(const S* p) {
  if constexpr (sizeof(S) == 2) return load(p, 1)[0];
  else return *p;
}
template <typename S>
RHOVAE_INLINE void put(void* out, int64_t row, double x) {
  S* at = static_cast<S*>(out) + row;
  if constexpr (sizeof(S) == 2) store(at, broadcast(float(x)), 1);
  else *at = S(x);
}

// Lanes j … j+n−1 of a row of `length` elements; those outside the row are zero.
template <typename S>
RHOVAE_INLINE V<Compute<S>> load_within(const S* row, int64_t j, int n, int64_t length) {
  constexpr int lanes = kLanes<Compute<S>>;
  if (j >= 0 && j + n <= length) return load(row + j, n);
  S buffer[lanes] = {};
  for (int i = 0; i < n; ++i) {
    if (j + i >= 0 && j + i < length) buffer[i] = row[j + i];
  }
  return load(static_cast<const S*>(buffer));
}

// The first n lanes; zero in the others, whatever they held.
template <typename T>
RHOVAE_INLINE V<T> first_lanes(V<T> v, int n) {
  for (int i = n; i < kLanes<T>; ++i) v[i] = 0;
  return v;
}

// Calls f(j, n) for the vectors of [begin, end), in the direction of a scan: n lanes from j on. For
// full vectors n is a constant, so that f compiles to straight code; only the last may be short.
template <typename T, bool reverse, typename F>
RHOVAE_INLINE void for_vectors(int64_t begin, int64_t end, const F& f) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr std::integral_constant<int, kLanes<T>> full{};
  const int64_t full_end = begin + (end - begin) / lanes * lanes;
  const int rest = int(end - full_end);
  if constexpr (reverse) {
    if (rest) f(full_end, rest);
    for (int64_t j = full_end - lanes; j >= begin; j -= lanes) f(j, full);
  } else {
    for (int64_t j = begin; j < full_end; j += lanes) f(j, full);
    if (rest) f(full_end, rest);
  }
}

// Lane moves. slide_up<K>: lane i takes lane i−K, the first K take `fill`, which is the same in every
// lane; slide_down<K> the other way.

template <typename T, int K, int... I>
RHOVAE_INLINE V<T> slide_up_lanes(V<T> v, V<T> fill, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(fill, v, (I < K ? I : kLanes<T> + I - K)...);
}
template <typename T, int K, int... I>
RHOVAE_INLINE V<T> slide_down_lanes(V<T> v, V<T> fill, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, fill, (I + K)...);
}
template <typename T, int K>
RHOVAE_INLINE V<T> slide_up(V<T> v, V<T> fill) {
#ifdef RHOVAE_ALIGN_LANES
  if constexpr (sizeof(T) == 4) return V<T>(RHOVAE_ALIGN_LANES(__m512i(v), __m512i(fill), 16 - K));
#endif
  return slide_up_lanes<T, K>(v, fill, std::make_integer_sequence<int, kLanes<T>>());
}
template <typename T, int K>
RHOVAE_INLINE V<T> slide_down(V<T> v, V<T> fill) {
#ifdef RHOVAE_ALIGN_LANES
  if constexpr (sizeof(T) == 4) return V<T>(RHOVAE_ALIGN_LANES(__m512i(fill), __m512i(v), K));
#endif
  return slide_down_lanes<T, K>(v, fill, std::make_integer_sequence<int, kLanes<T>>());
}
template <typename T, int K, bool reverse>
RHOVAE_INLINE V<T> slide(V<T> v, V<T> fill) {
  if constexpr (reverse) return slide_down<T, K>(v, fill);
  else return slide_up<T, K>(v, fill);
}

// The sum of all lanes, by halves.
template <typename T>
RHOVAE_INLINE T sum(V<T> v) {
  const V<T> zero = {};
  if constexpr (kLanes<T> > 8) v += slide_down<T, 8>(v, zero);
  if constexpr (kLanes<T> > 4) v += slide_down<T, 4>(v, zero);
  if constexpr (kLanes<T> > 2) v += slide_down<T, 2>(v, zero);
  v += slide_down<T, 1>(v, zero);
  return v[0];
}

// The last lane in the direction of a scan, in every lane.
template <typename T, bool reverse>
RHOVAE_INLINE V<T> last(V<T> v) {
  return repeat<T, reverse ? 0 : kLanes<T> - 1>(v);
}

// Of a square of vectors, lane i of vector j becomes lane j of vector i: 2×2 squares of 1, 2, 4, …
// lanes exchange their off-diagonal halves.
template <typename T, int K, int... I>
RHOVAE_INLINE void exchange(V<T>& a, V<T>& b, std::integer_sequence<int, I...>) {
  const V<T> from_b = __builtin_shufflevector(a, b, (I & K ? kLanes<T> + I - K : I)...);
  b = __builtin_shufflevector(a, b, (I & K ? kLanes<T> + I : I + K)...);
  a = from_b;
}
template <typename T, int K>
RHOVAE_INLINE void exchange(V<T>* square) {
  if constexpr (K < kLanes<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & K) == 0) {
        exchange<T, K>(square[i], square[i + K], std::make_integer_sequence<int, kLanes<T>>());
      }
    }
  }
}
template <typename T>
RHOVAE_INLINE void transpose(V<T>* square) {
  exchange<T, 1>(square);
  exchange<T, 2>(square);
  exchange<T, 4>(square);
  exchange<T, 8>(square);
}

// The sums of the lanes of each vector of a square, in the lane of its number.
template <typename T>
RHOVAE_INLINE V<T> sum_each(V<T>* square) {
  transpose<T>(square);
  V<T> total = square[0];
  for (int i = 1; i < kLanes<T>; ++i) total += square[i];
  return total;
}

// The bits of x that are set in `mask`, and x with those that are set in `bits` flipped.
template <typename T>
RHOVAE_INLINE V<T> bits_of(V<T> x, V<T> mask) {
  using Bits = typename Vector<T>::bits;
  return V<T>(Bits(x) & Bits(mask));
}
template <typename T>
RHOVAE_INLINE V<T> flipped(V<T> x, V<T> bits) {
  using Bits = typename Vector<T>::bits;
  return V<T>(Bits(x) ^ Bits(bits));
}

// x, or the bound that it is beyond; a NaN stays.
RHOVAE_INLINE V<float> at_most(V<float> bound, V<float> x) {
#ifdef RHOVAE_MASKED
  return V<float>(_mm512_mask_min_ps(x, 0xffff, bound, x));
#else
  return x > bound ? bound : x;
#endif
}
RHOVAE_INLINE V<float> at_least(V<float> bound, V<float> x) {
#ifdef RHOVAE_MASKED
  return V<float>(_mm512_mask_max_ps(x, 0xffff, bound, x));
#else
  return x < bound ? bound : x;
#endif
}

// exp(x) and exp(x) − 1, the latter to its own last digits where x is small.
template <typename T>
struct Exponential {
  V<T> exp, expm1;
};

RHOVAE_INLINE Exponential<float> exponential(V<float> x) {
  // x = n log 2 + r, |r| ≤ ½ log 2; beyond the clamps exp is infinite, or below the least normal.
  const V<float> y = at_least(broadcast(-87.0f), at_most(broadcast(88.8f), x));
  // ½·2^n, so that n = 128 stays finite until the last doubling, from the bits of n as it was rounded.
  constexpr float magic = 12582912.0f + 126;
  const V<float> rounded = y * 1.44269504f + magic, n = rounded - magic;
  const V<float> r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  V<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r;  // e^r − 1
  typename Vector<float>::bits exponent;
  __builtin_memcpy(&exponent, &rounded, sizeof exponent);
  exponent <<= 23;
  V<float> half;
  __builtin_memcpy(&half, &exponent, sizeof half);
  return {(p * half + half) * 2.0f, (p * half + (half - 0.5f)) * 2.0f};
}

RHOVAE_INLINE Exponential<double> exponential(V<double> x) {
  Exponential<double> e;
  for (int i = 0; i < kLanes<double>; ++i) {
    e.exp[i] = std::exp(x[i]);
    e.expm1[i] = std::expm1(x[i]);
  }
  return e;
}

// e^−x and 1 − e^−x of x ≥ 0, the latter to its own last digits where x is small.
template <typename T>
struct Decay {
  V<T> exp, below_one;
};

RHOVAE_INLINE Decay<float> decay(V<float> x) {
  // As `exponential`; at most 2^−126, so that 2^n is made from the bits of n as it was rounded.
  const V<float> y = at_most(broadcast(87.0f), x);
  constexpr float magic = 12582912.0f + 127;
  const V<float> rounded = magic - y * 1.44269504f, n = rounded - magic;
  const V<float> r = (-y - n * 0.693359375f) - n * -2.12194440e-4f;
  V<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r;  // e^r − 1
  typename Vector<float>::bits exponent;
  __builtin_memcpy(&exponent, &rounded, sizeof exponent);
  exponent <<= 23;
  V<float> power;
  __builtin_memcpy(&power, &exponent, sizeof power);
  return {p * power + power, (1 - power) - p * power};
}

RHOVAE_INLINE Decay<double> decay(V<double> x) {
  Decay<double> e;
  for (int i = 0; i < kLanes<double>; ++i) {
    e.exp[i] = std::exp(-x[i]);
    e.below_one[i] = -std::expm1(-x[i]);
  }
  return e;
}

// Tanh<T>::of (csrc/math.h) a vector at a time, by the same formulas.
template <typename T>
RHOVAE_INLINE Tanh<V<T>> hyperbolic_tangent(V<T> x) {
  const V<T> minus = x < T(0) ? x : -x;
  const Exponential<T> e = exponential(T(2) * minus);
  const V<T> r = T(1) / (T(2) + e.expm1);
  const V<T> magnitude = -e.expm1 * r;
  return {x < T(0) ? -magnitude : magnitude, T(4) * e.exp * r * r};
}

// log(1+x) for x in [−0.6, 1.5], as 2 artanh(x/(2+x)) by its series.
RHOVAE_INLINE V<float> log1p_unit(V<float> x) {
  const V<float> s = x / (x + 2), y = s * s;
  V<float> p = y * (1.0f / 15) + 1.0f / 13;
  p = p * y + 1.0f / 11;
  p = p * y + 1.0f / 9;
  p = p * y + 1.0f / 7;
  p = p * y + 1.0f / 5;
  p = p * y + 1.0f / 3;
  return 2 * (s + s * y * p);
}

RHOVAE_INLINE V<double> log1p_unit(V<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log1p(x[i]);
  return x;
}

// The recurrence x_t = ρ x_{t−1} + b_t, a vector of steps at a time: inside the vector by log-steps,
// from vector to vector by one value, the carry.
template <typename T, bool reverse>
struct RowScan {
  V<T> gate1, gate2, gate4, gate8;  // ρ^1, ρ^2, ρ^4, ρ^8
  V<T> ramp;                        // ρ^(steps from the carry to the lane)
  V<T> carry;

  RHOVAE_INLINE RowScan(T rho, T first_carry) {
    const T rho2 = rho * rho, rho4 = rho2 * rho2;
    gate1 = broadcast(rho), gate2 = broadcast(rho2), gate4 = broadcast(rho4);
    gate8 = broadcast(rho4 * rho4);
    const V<T> one = broadcast(T(1));
    ramp = gate1;
    ramp *= slide<T, 1, reverse>(ramp, one);
    if constexpr (kLanes<T> > 2) ramp *= slide<T, 2, reverse>(ramp, one);
    if constexpr (kLanes<T> > 4) ramp *= slide<T, 4, reverse>(ramp, one);
    if constexpr (kLanes<T> > 8) ramp *= slide<T, 8, reverse>(ramp, one);
    carry = broadcast(first_carry);
  }

  RHOVAE_INLINE V<T> operator()(V<T> x) {
    const V<T> zero = {};
    x += gate1 * slide<T, 1, reverse>(x, zero);
    if constexpr (kLanes<T> > 2) x += gate2 * slide<T, 2, reverse>(x, zero);
    if constexpr (kLanes<T> > 4) x += gate4 * slide<T, 4, reverse>(x, zero);
    if constexpr (kLanes<T> > 8) x += gate8 * slide<T, 8, reverse>(x, zero);
    x += ramp * carry;
    carry = last<T, reverse>(x);
    return x;
  }

  T value() const { return carry[0]; }
};

// The recurrence with a gate for each step: inside the vector, (a₂,b₂)∘(a₁,b₁) = (a₁a₂, a₂b₁ + b₂).
template <typename T, bool reverse>
struct StepScan {
  V<T> carry, gate;  // the state, and the product of all gates so far

  explicit RHOVAE_INLINE StepScan(T first_carry)
      : carry(broadcast(first_carry)), gate(broadcast(T(1))) {}

  RHOVAE_INLINE V<T> operator()(V<T> a, V<T> x) {
    const V<T> zero = {}, one = broadcast(T(1));
    compose<1>(a, x, zero, one);
    if constexpr (kLanes<T> > 2) compose<2>(a, x, zero, one);
    if constexpr (kLanes<T> > 4) compose<4>(a, x, zero, one);
    if constexpr (kLanes<T> > 8) compose<8>(a, x, zero, one);
    x += a * carry;
    carry = last<T, reverse>(x);
    gate *= last<T, reverse>(a);
    return x;
  }

 private:
  template <int K>
  static RHOVAE_INLINE void compose(V<T>& a, V<T>& x, V<T> zero, V<T> one) {
    x += a * slide<T, K, reverse>(x, zero);
    a *= slide<T, K, reverse>(a, one);
  }
};

// The carry that RowScan leaves behind after a run of vectors, without the states in between.
template <typename T, bool reverse>
struct RowAggregate {
  V<T> vector_gate, weights;  // ρ^lanes; ρ^(steps from the lane to the end)
  V<T> lanes = {};

  explicit RHOVAE_INLINE RowAggregate(T rho) {
    vector_gate = last<T, reverse>(RowScan<T, reverse>(rho, T(0)).ramp);
    weights = slide<T, 1, !reverse>(RowScan<T, !reverse>(rho, T(0)).ramp, broadcast(T(1)));
  }

  RHOVAE_INLINE void operator()(V<T> x) { lanes = lanes * vector_gate + x; }

  T value() const { return sum<T>(lanes * weights); }
};

}  // namespace RHOVAE_TARGET
}  // namespace rhovae
