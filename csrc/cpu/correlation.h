// Correlations and scales a vector at a time, for the Gauss–Markov kernels. Included by each of them
// once per target; has no include guard for that reason.

namespace rhovae {
namespace RHOVAE_TARGET {

// Correlation<float>::of (csrc/math.h) a vector at a time, by the same formulas.
RHOVAE_INLINE Correlation<V<float>> correlations(V<float> a) {
  const V<float> one = broadcast(1.0f);
  Correlation<V<float>> c;
  c.sign = a < 0 ? -one : one;
  const V<float> m = c.sign * a;
  const V<float> h = exponential(-m).exp, e = exponential(m * -2.0f).expm1;
  const V<float> t = h * h, below_one = 1 - h;
  const V<float> near = log1p_unit(below_one * below_one / (2 * h));
  const V<float> far = m + log1p_unit(t) - float(kLog2);
  c.log_one_minus_rho2 = -2 * (m < 1 ? near : far);
  c.rho = -c.sign * e / (2 + e);
  c.sech = 2 * h / (1 + t);
  c.cosh = 0.5f * exponential(m).exp * (1 + t);
  c.one_minus_abs_rho = 2 * t / (1 + t);
  return c;
}

RHOVAE_INLINE Correlation<V<double>> correlations(V<double> a) {
  Correlation<V<double>> c;
  for (int i = 0; i < kLanes<double>; ++i) {
    const auto one = Correlation<double>::of(a[i]);
    c.sign[i] = one.sign, c.rho[i] = one.rho, c.sech[i] = one.sech, c.cosh[i] = one.cosh;
    c.log_one_minus_rho2[i] = one.log_one_minus_rho2;
    c.one_minus_abs_rho[i] = one.one_minus_abs_rho;
  }
  return c;
}

// √s, s − 1 and log s.
template <typename T>
struct Scale {
  V<T> scale, expm1, log_var;

  static RHOVAE_INLINE Scale of(V<T> log_var) {
    const Exponential<T> root = exponential(log_var * T(0.5));
    return {root.exp, root.expm1 * (root.expm1 + 2), log_var};
  }
};

}  // namespace RHOVAE_TARGET
}  // namespace rhovae
