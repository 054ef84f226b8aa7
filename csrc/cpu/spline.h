// Splines, a vector of elements at a time, one a lane, from columns of their raw numbers. The letters
// are those of python_ref/rq_spline.py. Included once per target; has no include guard for that reason.

namespace rhovae {
namespace RHOVAE_TARGET {

// A vector in memory, of any alignment.
template <typename T>
struct Column {
  T lanes[kLanes<T>];

  RHOVAE_INLINE V<T> get() const { return load(static_cast<const T*>(lanes)); }
  RHOVAE_INLINE void set(V<T> v) { store(lanes, v); }
};

// log x of x ≥ 0.
RHOVAE_INLINE V<float> logarithm(V<float> x) {
  using Bits = typename Vector<float>::bits;
  const V<float> zero = {}, infinite = broadcast(std::numeric_limits<float>::infinity());
  // x = 2^n m, √½ ≤ m < √2, of a number that is not subnormal.
  const auto small = x < 0x1p-126f;
  const V<float> normal = small ? x * 0x1p24f : x;
  const Bits bits = Bits(normal), n = (bits - 0x3f3504f3) >> 23;
  const V<float> m = V<float>(bits - (n << 23));
  const V<float> e = __builtin_convertvector(n, V<float>) - (small ? zero + 24.0f : zero);
  const V<float> log = e * 0.693359375f + (log1p_unit(m - 1) + e * -2.12194440e-4f);
  return x > zero && x < infinite ? log : (x == zero ? -infinite : x);
}

RHOVAE_INLINE V<double> logarithm(V<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log(x[i]);
  return x;
}

template <typename T>
RHOVAE_INLINE V<T> magnitude(V<T> x) {
  return x < T(0) ? -x : x;
}

template <typename T>
RHOVAE_INLINE V<T> within(V<T> x, V<T> low, V<T> high) {
  const V<T> y = x < low ? low : x;
  return y > high ? high : y;
}

template <typename T>
RHOVAE_INLINE V<T> root(V<T> x) {
  for (int i = 0; i < kLanes<T>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// Widths or heights: what the logits in `columns` are turned into, and where bins begin.
template <typename T>
struct Sizes {
  Column<T>* columns;  // e^(u − max u), of which a share is `each` times
  Column<T>* rates;    // ∂u/∂logits, where there is a clip and it is asked for
  V<T> each;
  T least, free;
  V<T> sum = {}, begin;                    // of those before the bin that is looked at, its begin
  V<T> before = {}, own, at;               // the same of the bin that was found, and its own

  RHOVAE_INLINE Sizes(const SplineConvention& p, double share, Column<T>* columns, Column<T>* rates)
      : columns(columns), rates(rates), least(T(p.least(share))), free(T(p.free(share))) {
    const T scale = T(p.logit_scale), inverse_clip = p.clip > 0 ? T(2 / p.clip) : T(0);
    V<T> most = broadcast(-std::numeric_limits<T>::infinity());
    for (int64_t j = 0; j < p.bins; ++j) {
      V<T> u = columns[j].get() * scale;
      if (p.clip > 0) {
        const V<T> r = T(1) / (T(1) + magnitude<T>(u) * inverse_clip);
        u *= r;
        if (rates) rates[j].set(r * r);
      }
      columns[j].set(u);
      most = u > most ? u : most;
    }
    V<T> total = {};
    for (int64_t j = 0; j < p.bins; ++j) {
      const V<T> e = exponential(columns[j].get() - most).exp;
      columns[j].set(e);
      total += e;
    }
    each = T(1) / total;
    begin = at = broadcast(T(-p.bound));
    own = columns[0].get();
  }

  // On to bin j ≥ 1.
  RHOVAE_INLINE void next(int64_t j, T bound) {
    sum += columns[j - 1].get();
    begin = sum * (each * free) + (T(j) * least - bound);
  }

  template <typename M>
  RHOVAE_INLINE void take(M found, int64_t j) {
    before = found ? sum : before;
    at = found ? begin : at;
    own = found ? columns[j].get() : own;
  }

  RHOVAE_INLINE V<T> size() const { return own * (each * free) + least; }

  // Of logit j, of the gradients of the size of each bin before bin k and of bin k's own.
  struct Gradient {
    V<T> of_before, of_own, mean, scale;
  };
  RHOVAE_INLINE Gradient gradient(V<T> of_before, V<T> of_own, T logit_scale) const {
    return {of_before, of_own, (before * of_before + own * of_own) * each,
            each * (free * logit_scale)};
  }
};

// A knot of each element: its raw slope, whether the slope is 1 because a tail begins there.
template <typename T>
struct Slopes {
  V<T> delta, rate;

  template <bool with_rate>
  static RHOVAE_INLINE Slopes of(const SplineConvention& p, V<T> raw) {
    V<T> u = raw, of_clip = broadcast(T(1));
    if (p.clip > 0) {
      const V<T> r = T(1) / (T(1) + magnitude<T>(raw) * T(1 / p.clip));
      u *= r;
      of_clip = r * r;
    }
    if (p.slope == Slope::kExp) {
      const V<T> e = exponential(u).exp;
      return {e + T(p.min_derivative), e * of_clip};
    }
    u += T(p.offset);
    const auto negative = u < T(0);
    const V<T> zero = {}, e = exponential(negative ? u : -u).exp;
    const V<T> delta = (negative ? zero : u) + log1p_unit(e) + T(p.min_derivative);
    if constexpr (!with_rate) return {delta, delta};
    const V<T> large = T(1) / (T(1) + e);
    return {delta, (negative ? e * large : large) * of_clip};
  }
};

// The bin of each element, and where in it the element is.
template <typename T, bool with_rate>
struct Bin {
  typename Vector<T>::bits outside;
  V<T> v, k;  // k is a whole number
  Sizes<T> x, y;
  V<T> w, h, d0, d1, rate0, rate1, sigma, xi, zeta, tau, rest, m, n, d;

  RHOVAE_INLINE Bin(const SplineConvention& p, V<T> v_, Sizes<T> x_, Sizes<T> y_, const Column<T>* raw)
      : v(v_), k{}, x(x_), y(y_) {
    const T bound = T(p.bound);
    const V<T> zero = {}, one = broadcast(T(1));
    outside = v < -bound || v > bound;
    const V<T> v = outside ? (p.linear ? zero : zero + std::numeric_limits<T>::quiet_NaN()) : this->v;
    // The raw slope of knot i; of one where a linear tail begins, anything.
    const int64_t first = p.linear, knots = p.knots();
    const auto slope_at = [&](int64_t i) {
      return i >= first && i < first + knots ? raw[i - first].get() : zero;
    };
    V<T> raw0 = slope_at(0), raw1 = slope_at(1);
    // NaN is in bin 0.
    for (int64_t j = 1; j < p.bins; ++j) {
      x.next(j, bound);
      y.next(j, bound);
      const auto found = (p.inverse ? y.begin : x.begin) <= v;
      x.take(found, j);
      y.take(found, j);
      k = found ? broadcast(T(j)) : k;
      raw0 = found ? slope_at(j) : raw0;
      raw1 = found ? slope_at(j + 1) : raw1;
    }
    w = x.size(), h = y.size();
    const Slopes<T> at0 = Slopes<T>::template of<with_rate>(p, raw0);
    const Slopes<T> at1 = Slopes<T>::template of<with_rate>(p, raw1);
    d0 = at0.delta, d1 = at1.delta, rate0 = at0.rate, rate1 = at1.rate;
    if (p.linear) {
      d0 = k == T(0) ? one : d0;
      d1 = k == T(p.bins - 1) ? one : d1;
    }
    sigma = h / w;
    if (p.inverse) {
      tau = within<T>((v - y.at) / h, zero, one);
      rest = one - tau;
      const V<T> step = T(2) * sigma * tau, e = d0 * rest - d1 * tau;
      const V<T> product = T(2) * step * sigma * rest;
      const V<T> large = magnitude<T>(e) + root<T>(e * e + product);
      const V<T> other = e < T(0) ? product / large : large;
      const V<T> sum = one / (step + other);
      xi = step * sum, zeta = other * sum;
    } else {
      xi = within<T>((v - x.at) / w, zero, one);
      zeta = one - xi;
    }
    m = xi * zeta;
    const V<T> near = sigma * xi + d0 * zeta, far = sigma * zeta + d1 * xi;
    d = xi * near + zeta * far;
    n = d1 * (xi * xi) + T(2) * sigma * m + d0 * (zeta * zeta);
    if (!p.inverse) {
      const V<T> over = one / d;
      tau = xi * near * over, rest = zeta * far * over;
    }
  }

  RHOVAE_INLINE V<T> slope() const {
    const V<T> ratio = sigma / d;
    return n * ratio * ratio;
  }

  // f(v), or f⁻¹(v) for the inverse, and log f', where the spline is f in either case.
  struct Image {
    V<T> value, log_slope;
  };
  RHOVAE_INLINE Image image(const SplineConvention& p) const {
    const V<T> zero = {}, bound = broadcast(T(p.bound));
    V<T> value = p.inverse ? x.at + w * xi : y.at + h * tau;
    value = within<T>(value, -bound, bound);
    V<T> log_slope = logarithm(slope());
    if (p.linear) {
      value = outside ? v : value;
      log_slope = outside ? zero : log_slope;
    }
    return {value, log_slope};
  }
};

}  // namespace RHOVAE_TARGET
}  // namespace rhovae
