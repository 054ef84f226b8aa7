// markov_smooth and its backward pass for the CPU. The letters are those of
// python_ref/markov_smooth.py.
//
// Many rows are smoothed together, one a lane; a row alone has its steps in the lanes for all that
// is done at each step by itself, and only its recurrences, a few operations a step, run in series.
// Both are the same code: a block holds `kBlock` vectors, which are as many steps of several rows,
// or `kLanes` times as many of one, and a recurrence runs over vectors or over numbers.

#ifndef RHOVAE_TARGET

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <type_traits>

#include <torch/csrc/stable/library.h>

#include "rows.h"

namespace rhovae {
namespace {

// An operand that is one number a step, or one a row.
struct Parameter {
  Rows rows;
  bool per_row = false;
};

// Everything the kernels of this file read and write. An operand that is not given, and an output
// that is not asked for, is null; outputs are contiguous.
struct Smoother {
  int64_t rows, length;
  Parameter y, log_r, mu, log_var, rho_logit;
  Parameter grad_mu, grad_log_var, grad_rho_logit;  // g, v, b
  Rows grad_log_marginal;                           // k
  void *mu_out = nullptr, *log_var_out = nullptr, *rho_logit_out = nullptr;
  void* log_marginal_out = nullptr;
  void *d_y = nullptr, *d_log_r = nullptr, *d_mu = nullptr, *d_log_var = nullptr;
  void* d_rho_logit = nullptr;
  std::atomic<bool>* refused = nullptr;             // whether a log_r is NaN or −∞

  bool has_adjoint() const {
    return grad_mu.rows.data || grad_log_var.rows.data || grad_rho_logit.rows.data;
  }
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "markov_smooth.cpp"
#include "targets.h"

namespace rhovae {
namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Call : Smoother {
  std::vector<Tensor> keep;

  Call(const Tensor& y_, const Tensor& log_r_, const Tensor& mu_, const Tensor& log_var_,
       const Tensor& rho_logit_) {
    Leader(y_).one_or_like(log_r_).like(mu_).one_or_like(log_var_).one_or_like(rho_logit_);
    rows = row_count(y_);
    length = y_.size(y_.dim() - 1);
    y = parameter(y_);
    log_r = parameter(log_r_);
    mu = parameter(mu_);
    log_var = parameter(log_var_);
    rho_logit = parameter(rho_logit_);
  }

  Parameter parameter(const Tensor& x) {
    return {rows_of(x, 1, keep), x.size(x.dim() - 1) == 1 && length != 1};
  }
  Parameter parameter(const std::optional<Tensor>& x) { return x ? parameter(*x) : Parameter{}; }
};

Four markov_smooth(const Tensor& y, const Tensor& log_r, const Tensor& mu, const Tensor& log_var,
                   const Tensor& rho_logit) {
  Call call(y, log_r, mu, log_var, rho_logit);
  std::atomic<bool> refused{false};
  call.refused = &refused;
  Tensor outputs[] = {empty_like_rows(y), empty_like_rows(y), empty_like_rows(y),
                      empty_per_row(y)};
  call.mu_out = outputs[0].mutable_data_ptr();
  call.log_var_out = outputs[1].mutable_data_ptr();
  call.rho_logit_out = outputs[2].mutable_data_ptr();
  call.log_marginal_out = outputs[3].mutable_data_ptr();
  with_storage(y.scalar_type(), [&](auto s) {
    RHOVAE_RUN(static_cast<const Smoother&>(call), Forward<decltype(s)>);
  });
  require(!refused);
  return {outputs[0], outputs[1], outputs[2], outputs[3]};
}

Five markov_smooth_backward(const std::optional<Tensor>& grad_mu,
                            const std::optional<Tensor>& grad_log_var,
                            const std::optional<Tensor>& grad_rho_logit,
                            const std::optional<Tensor>& grad_log_marginal, const Tensor& y,
                            const Tensor& log_r, const Tensor& mu, const Tensor& log_var,
                            const Tensor& rho_logit, const std::vector<bool>& needs) {
  require_flags(needs, 5);
  Leader(y).like(grad_mu).like(grad_log_var).like(grad_rho_logit).per_row(grad_log_marginal);
  Call call(y, log_r, mu, log_var, rho_logit);
  call.grad_mu = call.parameter(grad_mu);
  call.grad_log_var = call.parameter(grad_log_var);
  call.grad_rho_logit = call.parameter(grad_rho_logit);
  call.grad_log_marginal = rows_of(grad_log_marginal, 0, call.keep);
  const Tensor* inputs[] = {&y, &log_r, &mu, &log_var, &rho_logit};
  void** places[] = {&call.d_y, &call.d_log_r, &call.d_mu, &call.d_log_var, &call.d_rho_logit};
  std::vector<Tensor> gradients;
  for (int i = 0; i < 5; ++i) {
    gradients.push_back(gradient_like(*inputs[i], needs[i]));
    if (needs[i]) *places[i] = gradients[i].mutable_data_ptr();
  }
  with_storage(y.scalar_type(), [&](auto s) {
    RHOVAE_RUN(static_cast<const Smoother&>(call), Backward<decltype(s)>);
  });
  return {gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("markov_smooth", TORCH_BOX(&rhovae::markov_smooth));
  m.impl("markov_smooth_backward", TORCH_BOX(&rhovae::markov_smooth_backward));
}

#else  // RHOVAE_TARGET

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// Elementary functions of vectors, beside those of simd.h.

template <typename T>
RHOVAE_INLINE V<T> square_root(V<T> x) {
  for (int i = 0; i < kLanes<T>; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// log x of a positive normal x: x = 2^e (1+f), 1+f in [√½, √2).
RHOVAE_INLINE V<float> logarithm(V<float> x) {
  typedef typename Vector<float>::bits Bits;
  Bits bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const Bits e = (bits - 0x3f3504f3) >> 23;
  bits -= e << 23;
  V<float> f;
  __builtin_memcpy(&f, &bits, sizeof f);
  f -= 1;
  V<float> p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const V<float> exponent = __builtin_convertvector(e, V<float>);
  p = f * f * (f * p - 0.5f) + exponent * -2.12194440e-4f + f;
  const V<float> log = p + exponent * 0.693359375f;
  return x - x == 0 ? log : x;
}
RHOVAE_INLINE V<double> logarithm(V<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::log(x[i]);
  return x;
}

// asinh x for x ≥ 0, as 2 artanh(x / (1 + √(1+x²))) by its series, log(x + √(1+x²)), and log 2x where
// x² leaves the type.
RHOVAE_INLINE V<float> inverse_sinh(V<float> x) {
  const V<float> large = broadcast(1e6f), y = x < large ? x : large;
  const V<float> root = square_root<float>(1 + y * y);
  const V<float> s = y / (1 + root), s2 = s * s;
  V<float> p = s2 * (1.0f / 15) + 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  return x <= 0.75f ? 2 * (s + s * s2 * p) : logarithm(x < large ? y + root : 2 * x);
}
RHOVAE_INLINE V<double> inverse_sinh(V<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::asinh(x[i]);
  return x;
}
template <typename T>
RHOVAE_INLINE V<T> magnitude(V<T> x) {
  return x < 0 ? -x : x;
}

// How many vectors a block holds: whole squares of every vector length.
constexpr int kBlock = 16;
template <typename T>
constexpr int kNumbers = kBlock * kLanes<T>;
// Rows fewer than this are smoothed each by itself.
constexpr int64_t kTogetherFrom = 3;

// A number of each step of a block.
template <typename T>
struct Values {
  T at[kNumbers<T>];

  RHOVAE_INLINE V<T> operator[](int i) const { return load(at + i * kLanes<T>); }
  RHOVAE_INLINE void set(int i, V<T> x) { store(at + i * kLanes<T>, x); }

  // A step of a recurrence: X is a vector of rows, or a number of the only one.
  template <typename X>
  RHOVAE_INLINE X step(int i) const {
    if constexpr (std::is_same_v<X, T>) return at[i];
    else return (*this)[i];
  }
  template <typename X>
  RHOVAE_INLINE void set_step(int i, X x) {
    if constexpr (std::is_same_v<X, T>) at[i] = x;
    else set(i, x);
  }
};

// Rows first … first+count−1, and how their steps lie in blocks.
template <typename S, bool alone>
struct Lanes {
  using T = Compute<S>;
  using X = std::conditional_t<alone, T, V<T>>;
  static constexpr int lanes = kLanes<T>;
  static constexpr int steps = alone ? kNumbers<T> : kBlock;  // of a block

  const int64_t first, length;
  const int count;

  int64_t blocks() const { return (length + steps - 1) / steps; }

  // How many of the lanes of row elements from j on lie within the row.
  int within(int64_t j) const {
    return int(std::max<int64_t>(0, std::min<int64_t>(lanes, length - j)));
  }

  // The steps of a block from j on; `beyond` the end of a row.
  void read(const Parameter& p, int64_t j, Values<T>& to, T beyond = 0) const {
    const V<T> outside = broadcast(beyond);
    if (p.per_row || !p.rows.data) {
      V<T> of_rows = {};
      if (p.rows.data) {
        for (int r = 0; r < count; ++r) of_rows[r] = number(p.rows.row<S>(first + r));
        if (alone) of_rows = broadcast(T(of_rows[0]));
      }
      for (int i = 0; i < kBlock; ++i) to.set(i, of_rows);
    } else if constexpr (alone) {
      const S* const row = p.rows.row<S>(first);
      for (int i = 0; i < kBlock; ++i) {
        const int64_t at = j + i * lanes;
        to.set(i, within(at) ? load(row + at, within(at)) : outside);
      }
    } else {
      V<T> square[lanes];
      for (int i = 0; i < kBlock; i += lanes) {
        const int n = within(j + i);
        for (int r = 0; r < lanes; ++r) {
          square[r] = r < count && n ? load(p.rows.row<S>(first + r) + j + i, n) : V<T>{};
        }
        transpose<T>(square);
        for (int k = 0; k < lanes; ++k) to.set(i + k, square[k]);
      }
    }
    if (beyond != 0) {
      const int whole = int(std::min<int64_t>(steps, length - j)) * (alone ? 1 : lanes);
      for (int i = whole; i < kNumbers<T>; ++i) to.at[i] = beyond;
    }
  }

  void write(void* out, int64_t j, const Values<T>& from) const {
    if (!out) return;
    S* const row = static_cast<S*>(out) + first * length + j;
    if constexpr (alone) {
      for (int i = 0; i < kBlock; ++i) {
        if (const int n = within(j + i * lanes)) store(row + i * lanes, from[i], n);
      }
    } else {
      V<T> square[lanes];
      for (int i = 0; i < kBlock; i += lanes) {
        const int n = within(j + i);
        if (!n) break;
        for (int k = 0; k < lanes; ++k) square[k] = from[i + k];
        transpose<T>(square);
        for (int r = 0; r < count; ++r) store(row + r * length + i, square[r], n);
      }
    }
  }
};

// A sum over each row, a block at a time, in double.
template <typename T, bool alone>
struct RowSums {
  double of[kLanes<T>] = {};

  void add(V<T> block) {
    if constexpr (alone) of[0] += double(sum<T>(block));
    else for (int i = 0; i < kLanes<T>; ++i) of[i] += double(block[i]);
  }
  template <typename Out>
  void write(void* out, int64_t first, int count) const {
    for (int i = 0; i < count; ++i) put<Out>(out, first + i, of[i]);
  }
};

// The whitened steps of a block.
template <typename S, bool alone>
struct Block {
  using T = Compute<S>;
  Values<T> mu, log_r, log_s, a, x, w, scale, rho, sech;
  Values<T> sinh;  // sinh min(|a|, 80), where ρ' is asked for
  bool refused = false;

  void read(const Smoother& p, const Lanes<S, alone>& rows, int64_t j) {
    const T infinity = std::numeric_limits<T>::infinity();
    Values<T> y;
    rows.read(p.y, j, y);
    rows.read(p.log_r, j, log_r, infinity);
    rows.read(p.mu, j, mu);
    read_chain(p, rows, j);
    const V<T> zero = {};
    typename Vector<T>::bits wrong = {};
    for (int i = 0; i < kBlock; ++i) {
      const V<T> r = log_r[i];
      const auto observed = r != infinity;
      wrong |= ~(r > -infinity);
      x.set(i, observed ? (y[i] - mu[i]) / scale[i] : zero);
      w.set(i, observed ? exponential(observed ? log_s[i] - r : zero).exp : zero);
    }
    for (int i = 0; i < kLanes<T>; ++i) refused = refused || wrong[i];
  }

  // What is one number a row stays as it was in the block before.
  void read_chain(const Smoother& p, const Lanes<S, alone>& rows, int64_t j) {
    if (!p.log_var.per_row || last < 0) {
      rows.read(p.log_var, j, log_s);
      for (int i = 0; i < kBlock; ++i) scale.set(i, exponential(log_s[i] * T(0.5)).exp);
    }
    if (!p.rho_logit.per_row || last <= 0 || j == 0) {
      rows.read(p.rho_logit, j, a);
      correlate(j);
      if (p.rho_logit_out) {
        for (int i = 0; i < kBlock; ++i) sinh.set(i, sinh_of(a[i]));
      }
    }
    last = j;
  }

  static constexpr T kLimit = 80;  // asinh(e sinh a) is asinh(e sinh 80) + a − 80 beyond it

 private:
  int64_t last = -1;

  static RHOVAE_INLINE V<T> sinh_of(V<T> a) {
    const V<T> m = magnitude<T>(a), limit = broadcast(kLimit);
    const V<T> expm1 = exponential(m < limit ? m : limit).expm1;
    return T(0.5) * (expm1 + expm1 / (1 + expm1));
  }

  void correlate(int64_t j) {
    // The first step has no correlation: what stands there is not looked at.
    if (j == 0) std::fill(a.at, a.at + (alone ? 1 : kLanes<T>), T(0));
    const V<T> zero = {};
    for (int i = 0; i < kBlock; ++i) {
      const V<T> logit = a[i], m = magnitude<T>(logit);
      const Exponential<T> e = exponential(-m);
      const V<T> below = e.exp * e.exp, inverse = 1 / (1 + below);
      // To half a unit near 1, and to its own digits near 0.
      const V<T> near_one = 1 - 2 * below * inverse;
      const V<T> near_zero = -e.expm1 * (1 + e.exp) * inverse;
      const V<T> correlation = below < T(0.25) ? near_one : near_zero;
      rho.set(i, logit < 0 ? -correlation : correlation);
      // The exponential of a float32 stops short of zero.
      sech.set(i, m < T(87) || sizeof(T) == 8 ? 2 * e.exp * inverse : zero);
    }
  }
};

// What a step is made of, given Λ and η behind it.
template <typename T>
struct Step {
  V<T> known, driven, informed, t, inverse_t, kept, phi, innovation;

  template <typename B>
  static RHOVAE_INLINE Step of(const B& b, int i, V<T> information, V<T> eta) {
    Step s;
    const V<T> sech = b.sech[i];
    s.known = b.w[i] + information;
    s.driven = b.w[i] * b.x[i] + eta;
    s.informed = sech * (sech * s.known);
    s.t = 1 + s.informed;
    s.inverse_t = 1 / s.t;
    s.kept = s.informed * s.inverse_t;
    s.phi = b.rho[i] * s.inverse_t;
    s.innovation = sech * (sech * s.inverse_t);
    return s;
  }
};

// m̃, s̃ and 1 − s̃.
template <typename X>
struct Moments {
  X mean, variance, lost;

  // `gained` is of the recurrence of 1 − s̃.
  RHOVAE_INLINE Moments after(X phi, X moved, X innovation, X gained) const {
    const X gate = phi * phi;
    Moments m{phi * mean + moved, gate * variance + innovation, gate * lost + gained};
    m.variance = m.lost + m.lost < 1 ? 1 - m.lost : m.variance;
    return m;
  }
};

// What both passes carry over from each block, one after the other for all blocks.
template <typename T>
struct Scratch {
  std::unique_ptr<Values<T>[]> memory;
  int64_t blocks;

  Scratch(int64_t kinds, int64_t blocks_)
      : memory(new Values<T>[size_t(kinds * blocks_)]), blocks(blocks_) {}
  Values<T>& of(int kind, int64_t block) const { return memory[kind * blocks + block]; }
};
enum Kind { kX, kW, kInformation, kEta, kMean, kVariance, kLost, kKindsForward };
enum KindBackward { kFiltered = kEta + 1, kOfMeanAfter, kOfVarianceAfter };

// A few rows, or one.
template <typename S, bool alone>
struct Passes {
  using T = Compute<S>;
  using X = typename Lanes<S, alone>::X;
  using Block = rhovae::RHOVAE_TARGET::Block<S, alone>;
  static constexpr int steps = Lanes<S, alone>::steps;

  const Smoother& p;
  const Lanes<S, alone> rows;
  const Scratch<T> scratch;
  Block b;
  V<T> k = {};

  Passes(const Smoother& p_, int64_t first, int count, int kinds)
      : p(p_), rows{first, p_.length, count}, scratch(kinds, rows.blocks()) {
    if (!p.grad_log_marginal.data) return;
    for (int r = 0; r < count; ++r) k[r] = *p.grad_log_marginal.row<T>(first + r);
    if (alone) k = broadcast(T(k[0]));
  }

  // Against time: Λ and η; the log marginal's sums, where it is asked for.
  void back() {
    RowSums<T, alone> log_marginal;
    X information = {}, eta = {};
    for (int64_t block = rows.blocks() - 1; block >= 0; --block) {
      b.read(p, rows, block * steps);
      scratch.of(kX, block) = b.x;
      scratch.of(kW, block) = b.w;
      Values<T>& all = scratch.of(kInformation, block);
      Values<T>& etas = scratch.of(kEta, block);
      for (int i = steps - 1; i >= 0; --i) {
        all.set_step(i, information);
        etas.set_step(i, eta);
        const X w = b.w.template step<X>(i), rho = b.rho.template step<X>(i);
        const X sech = b.sech.template step<X>(i), known = w + information;
        const X phi = rho / (1 + sech * (sech * known));
        information = phi * (rho * known);
        eta = phi * (w * b.x.template step<X>(i) + eta);
      }
      if (p.log_marginal_out) log_marginal.add(log_marginal_of(all, etas));
    }
    if (p.refused && b.refused) *p.refused = true;
    if (p.log_marginal_out) {
      log_marginal.template write<T>(p.log_marginal_out, rows.first, rows.count);
    }
  }

  V<T> log_marginal_of(const Values<T>& information, const Values<T>& etas) const {
    V<T> total = {};
    const V<T> zero = {};
    for (int i = 0; i < kBlock; ++i) {
      const V<T> variance = 1 / (1 + information[i]), w = b.w[i], r = b.log_r[i];
      const V<T> e = b.x[i] - etas[i] * variance, spread = 1 + w * variance;
      // r S, or s (P + 1/w), which keeps its digits where r is small.
      const V<T> log = logarithm(w > 1 ? variance + 1 / w : spread) + (w > 1 ? b.log_s[i] : r);
      const V<T> term = T(kLog2Pi) + log + e * (w / spread * e);
      total += r != std::numeric_limits<T>::infinity() ? term : zero;
    }
    return T(-0.5) * total;
  }

  // Along time: m̃, s̃ and 1 − s̃, from those of Λ and η, and the posterior.
  void forth() {
    Moments<X> m{X{}, X{} + 1, X{}};
    Values<T> phi, moved, innovation, gained;
    Step<T> made[kBlock];
    for (int64_t block = 0; block < rows.blocks(); ++block) {
      read_again(block);
      rows.read(p.mu, block * steps, b.mu);
      for (int i = 0; i < kBlock; ++i) {
        const Step<T> s = made[i] = step(block, i);
        phi.set(i, s.phi);
        moved.set(i, s.innovation * s.driven);
        innovation.set(i, s.innovation);
        gained.set(i, gained_by(s, i));
      }
      Values<T>& mean = scratch.of(kMean, block);
      Values<T>& variance = scratch.of(kVariance, block);
      Values<T>& lost = scratch.of(kLost, block);
      for (int i = 0; i < steps; ++i) {
        mean.set_step(i, m.mean);
        variance.set_step(i, m.variance);
        lost.set_step(i, m.lost);
        m = m.after(phi.template step<X>(i), moved.template step<X>(i),
                    innovation.template step<X>(i), gained.template step<X>(i));
      }
      write_posterior(block, made);
    }
  }

  // A block that `back` has read, without what only that asks for: y, log r and μ.
  void read_again(int64_t block) {
    b.read_chain(p, rows, block * steps);
    b.x = scratch.of(kX, block);
    b.w = scratch.of(kW, block);
  }

  RHOVAE_INLINE Step<T> step(int64_t block, int i) const {
    return Step<T>::of(b, i, scratch.of(kInformation, block)[i], scratch.of(kEta, block)[i]);
  }
  RHOVAE_INLINE V<T> gained_by(const Step<T>& s, int i) const {
    return s.kept * (1 + b.rho[i] * s.phi);
  }
  RHOVAE_INLINE Moments<V<T>> before(int64_t block, int i) const {
    return {scratch.of(kMean, block)[i], scratch.of(kVariance, block)[i],
            scratch.of(kLost, block)[i]};
  }
  RHOVAE_INLINE Moments<V<T>> after(const Moments<V<T>>& m, const Step<T>& s, int i) const {
    return m.after(s.phi, s.innovation * s.driven, s.innovation, gained_by(s, i));
  }

  void write_posterior(int64_t block, const Step<T>* made) {
    const int64_t j = block * steps;
    Values<T> mean, log_var, logit;
    for (int i = 0; i < kBlock; ++i) {
      const Step<T>& s = made[i];
      const Moments<V<T>> m = before(block, i), now = after(m, s, i);
      mean.set(i, b.mu[i] + b.scale[i] * now.mean);
      const V<T> zero = {};
      const auto little = now.lost < T(0.5);
      const V<T> log = little ? log1p_unit(little ? -now.lost : zero) : logarithm(now.variance);
      log_var.set(i, b.log_s[i] + log);
      logit.set(i, logit_of(s, m, now, i));
    }
    rows.write(p.mu_out, j, mean);
    rows.write(p.log_var_out, j, log_var);
    rows.write(p.rho_logit_out, j, logit);
  }

  RHOVAE_INLINE V<T> logit_of(const Step<T>& s, const Moments<V<T>>& before,
                              const Moments<V<T>>& now, int i) const {
    const V<T> a = magnitude<T>(b.a[i]), limit = broadcast(Block::kLimit), zero = {};
    const auto near = before.variance >= T(0.25) * s.t;
    const V<T> e = square_root<T>(before.variance) * square_root<T>(s.inverse_t);
    const V<T> one_minus_e2 = before.lost * s.inverse_t + s.kept;
    const V<T> rho = magnitude<T>(b.rho[i]);
    const V<T> less = rho * one_minus_e2 / (e + square_root<T>(s.t * now.variance));
    const V<T> asinh = inverse_sinh(near ? less : e * b.sinh[i]);
    const V<T> result = near ? a - asinh : asinh + (a > limit ? a - limit : zero);
    return b.a[i] < 0 ? -result : result;
  }

  // Along time: P of the step before each.
  void filter() {
    X variance = X{} + 1;
    for (int64_t block = 0; block < rows.blocks(); ++block) {
      read_again(block);
      Values<T>& before = scratch.of(kFiltered, block);
      for (int i = 0; i < steps; ++i) {
        before.set_step(i, variance);
        const X rho = b.rho.template step<X>(i), sech = b.sech.template step<X>(i);
        const X predicted = rho * (rho * variance) + sech * sech;
        variance = predicted / (1 + b.w.template step<X>(i) * predicted);
      }
    }
  }

  // Against time: λ' and β'.
  void adjoint_back() {
    Values<T> g, v, half, phi, rho2;
    X of_mean = {}, of_variance = {};  // what step j+1 adds to those of step j
    for (int64_t block = rows.blocks() - 1; block >= 0; --block) {
      const int64_t j = block * steps;
      read_again(block);
      rows.read(p.grad_mu, j, g);
      rows.read(p.grad_log_var, j, v);
      read_grad_rho_logit(j, half);
      for (int i = 0; i < kBlock; ++i) {
        const Step<T> s = step(block, i);
        const V<T> rho = b.rho[i] * met(block, i, s).of_logit;
        g.set(i, b.scale[i] * g[i]);
        half.set(i, T(0.5) * rho * half[i]);
        phi.set(i, s.phi);
        rho2.set(i, rho * rho);
      }
      Values<T>& of_means_after = scratch.of(kOfMeanAfter, block);
      Values<T>& of_variances_after = scratch.of(kOfVarianceAfter, block);
      for (int i = steps - 1; i >= 0; --i) {
        of_means_after.set_step(i, of_mean);
        of_variances_after.set_step(i, of_variance);
        of_mean = phi.template step<X>(i) * (g.template step<X>(i) + of_mean);
        of_variance = rho2.template step<X>(i) * (v.template step<X>(i) + of_variance) +
                      half.template step<X>(i);
      }
    }
  }

  // b, of which the first step has none.
  void read_grad_rho_logit(int64_t j, Values<T>& to) const {
    rows.read(p.grad_rho_logit, j, to);
    if (j == 0) std::fill(to.at, to.at + (alone ? 1 : kLanes<T>), T(0));
  }

  // Where the observations before a step and those from it on meet.
  struct Met {
    V<T> predicted, inverse, variance, of_logit;  // V, 1/T, s̃, D
  };
  RHOVAE_INLINE Met met(int64_t block, int i, const Step<T>& s) const {
    const V<T> rho = b.rho[i], sech = b.sech[i], filtered = scratch.of(kFiltered, block)[i];
    Met m;
    m.predicted = rho * (rho * filtered) + sech * sech;
    m.inverse = 1 / (1 + s.known * m.predicted);
    m.variance = m.predicted * m.inverse;
    m.of_logit = square_root<T>(filtered * s.inverse_t / m.predicted);
    return m;
  }

  // Along time: f, l, f^g and ξ', and the gradients.
  void adjoint_forth() {
    Values<T> g, v, b_logit, phi, gate, of_lost_gate, pulled, of_lost, of_pulled, spread;
    Values<T> mean_before, lost_before, of_mean_before, information_before;
    Values<T> d_y, d_log_r, d_mu, d_log_s, d_a;
    RowSums<T, alone> of_log_r, of_log_s, of_a;
    X mean = {}, lost = {}, of_mean = {}, of_information = {};
    const bool adjoint = p.has_adjoint(), likelihood = p.grad_log_marginal.data;
    for (int64_t block = 0; block < rows.blocks(); ++block) {
      const int64_t j = block * steps;
      read_again(block);
      rows.read(p.log_r, j, b.log_r, std::numeric_limits<T>::infinity());
      rows.read(p.grad_mu, j, g);
      rows.read(p.grad_log_var, j, v);
      read_grad_rho_logit(j, b_logit);
      for (int i = 0; i < kBlock; ++i) {
        const Step<T> s = step(block, i);
        const Met m = met(block, i, s);
        const V<T> rho = b.rho[i], w = b.w[i], forgetting = 1 / (1 + w * m.predicted);
        const V<T> gain = m.predicted * forgetting;
        gate.set(i, rho * forgetting);
        of_lost_gate.set(i, rho * (rho * forgetting));
        pulled.set(i, gain * (w * b.x[i]));
        of_lost.set(i, gain * w);
        if (!adjoint) continue;
        phi.set(i, s.phi);
        of_pulled.set(i, gain * (b.scale[i] * g[i]));
        spread.set(i, -m.variance * (v[i] + T(0.5) * (rho * m.of_logit) * b_logit[i]));
      }
      for (int i = 0; i < steps; ++i) {
        const X kept = gate.template step<X>(i);
        mean_before.set_step(i, mean);
        lost_before.set_step(i, lost);
        mean = kept * mean + pulled.template step<X>(i);
        lost = of_lost_gate.template step<X>(i) * lost + of_lost.template step<X>(i);
        if (!adjoint) continue;
        const X along = phi.template step<X>(i);
        of_mean_before.set_step(i, of_mean);
        information_before.set_step(i, of_information);
        of_mean = kept * of_mean + of_pulled.template step<X>(i);
        of_information = along * along * of_information + spread.template step<X>(i);
      }
      for (int i = 0; i < kBlock; ++i) {
        const Step<T> s = step(block, i);
        const Met m = met(block, i, s);
        const V<T> w = b.w[i], rho = b.rho[i], q = b.sech[i] * b.sech[i], zero = {};
        const V<T> information = scratch.of(kInformation, block)[i];
        const V<T> eta = scratch.of(kEta, block)[i], x = b.x[i];
        const V<T> alone_share = (1 + information * m.predicted) * m.inverse;
        const V<T> expected = rho * mean_before[i], rho_lost = rho * lost_before[i];
        const V<T> posterior_mean = (expected + m.predicted * s.driven) * m.inverse;
        const V<T> force = (s.driven - s.known * expected) * m.inverse;
        const V<T> residual = (x - expected + m.predicted * (information * x - eta)) * m.inverse;
        const V<T> weight = w * residual;
        V<T> of_x = {}, left = {}, log_r = {}, log_s = {}, logit = {}, of_lost_now = {};
        if (adjoint) {
          const V<T> own = b.scale[i] * g[i], of_mean_after = scratch.of(kOfMeanAfter, block)[i];
          const V<T> of_expected = rho * of_mean_before[i], of_mean_now = own + of_mean_after;
          const V<T> kappa = (of_expected + m.predicted * of_mean_now) * m.inverse;
          const V<T> of_force = (of_mean_now - s.known * of_expected) * m.inverse;
          const V<T> after = scratch.of(kOfVarianceAfter, block)[i], d = m.of_logit;
          const V<T> of_variance = v[i] + after;
          const V<T> of_known = s.phi * s.phi * information_before[i] -
                                m.variance * (T(0.5) * (rho * d) * b_logit[i]);
          of_x = w * kappa;
          left = own * alone_share - w * ((of_expected + m.predicted * of_mean_after) * m.inverse);
          log_s = v[i] * alone_share + w * (of_known - m.variance * after);
          log_s += T(0.5) * (posterior_mean * left + kappa * weight);
          log_r = w * (m.variance * of_variance - of_known) - kappa * weight;
          logit = mean_before[i] * of_force + of_mean_before[i] * force;
          logit = q * (logit - 2 * rho_lost * of_force * force) + b_logit[i] * d;
          logit += 2 * rho * s.kept * information_before[i] * (1 + s.phi * (rho * s.known));
          of_lost_now = s.informed * (rho * b_logit[i] * d) - 2 * q * (of_variance / m.predicted);
        }
        if (likelihood) {
          of_x -= k * weight;
          left += k * weight;
          log_s += T(0.5) * k * (weight * posterior_mean - w * m.variance);
          log_r += T(0.5) * k * (weight * residual - alone_share);
          logit += k * (q * force * (mean_before[i] - rho_lost * force));
          of_lost_now += k * s.informed;
        }
        const auto observed = b.log_r[i] != std::numeric_limits<T>::infinity();
        d_y.set(i, observed ? of_x / b.scale[i] : zero);
        d_mu.set(i, left / b.scale[i]);
        d_log_r.set(i, observed ? log_r : zero);
        d_log_s.set(i, log_s);
        d_a.set(i, logit + rho_lost * m.inverse * of_lost_now);
      }
      if (j == 0) std::fill(d_a.at, d_a.at + (alone ? 1 : kLanes<T>), T(0));
      rows.write(p.d_y, j, d_y);
      rows.write(p.d_mu, j, d_mu);
      finish(p.log_r, p.d_log_r, j, d_log_r, of_log_r);
      finish(p.log_var, p.d_log_var, j, d_log_s, of_log_s);
      finish(p.rho_logit, p.d_rho_logit, j, d_a, of_a);
    }
    write_sum(p.log_r, p.d_log_r, of_log_r);
    write_sum(p.log_var, p.d_log_var, of_log_s);
    write_sum(p.rho_logit, p.d_rho_logit, of_a);
  }

  // The gradient of a parameter over a block: written, or added to those of its rows.
  void finish(const Parameter& of, void* out, int64_t j, Values<T>& d, RowSums<T, alone>& sums) {
    if (!out) return;
    if (!of.per_row) return rows.write(out, j, d);
    const int whole = int(std::min<int64_t>(steps, rows.length - j)) * (alone ? 1 : kLanes<T>);
    std::fill(d.at + whole, d.at + kNumbers<T>, T(0));
    V<T> total = {};
    for (int i = 0; i < kBlock; ++i) total += d[i];
    sums.add(total);
  }

  void write_sum(const Parameter& of, void* out, const RowSums<T, alone>& sums) const {
    if (of.per_row && out) sums.template write<S>(out, rows.first, rows.count);
  }
};

template <typename S>
struct Forward {
  using T = Compute<S>;

  template <bool alone>
  static void rows(const Smoother& p, int64_t first, int count) {
    Passes<S, alone> passes(p, first, count, kKindsForward);
    passes.back();
    passes.forth();
  }
};

template <typename S>
struct Backward {
  using T = Compute<S>;

  template <bool alone>
  static void rows(const Smoother& p, int64_t first, int count) {
    const bool adjoint = p.has_adjoint();
    Passes<S, alone> passes(p, first, count, adjoint ? kOfVarianceAfter + 1 : kFiltered + 1);
    passes.back();
    passes.filter();
    if (adjoint) passes.adjoint_back();
    passes.adjoint_forth();
  }
};

}  // namespace

// Which rows are smoothed together does not depend on the number of threads.
template <typename Pass>
void run(const Smoother& p) {
  constexpr int lanes = kLanes<typename Pass::T>;
  const bool alone = p.rows < kTogetherFrom;
  const int64_t together = alone ? 1 : lanes, groups = (p.rows + together - 1) / together;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, together * p.length));
  torch::stable::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (alone) {
        Pass::template rows<true>(p, i, 1);
      } else {
        const int64_t first = i * together;
        Pass::template rows<false>(p, first, int(std::min(together, p.rows - first)));
      }
    }
  });
}

}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
