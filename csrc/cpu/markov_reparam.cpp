// markov_reparam and its backward pass for the CPU.
//
// The letters are those of python_ref/markov_reparam.py. A row is cut into tiles; between tiles
// travel the carries of its recurrences: u forwards, the adjoint λ backwards. The KL has none: a
// step's needs μ and s of the step before, and its gradient what the step after says of them.

#ifndef RHOVAE_TARGET

#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/library.h>

#include "rows.h"

namespace rhovae {
namespace {

// Everything that the two passes read and write. An operand that is not given, and an output that
// is not asked for, is null; outputs are contiguous.
struct Markov {
  Tiles tiles;
  bool scale_per_row, rho_per_row, prior_per_row;  // log_var, rho_logit, prior_rho_logit are (…,1)
  bool per_step;                                   // kl and its gradient are (…,d)
  Rows mu, log_var, rho_logit, prior, eps;
  Rows grad_z, grad_kl;                            // g; k
  void *z = nullptr, *kl = nullptr;
  void *d_mu = nullptr, *d_log_var = nullptr, *d_rho_logit = nullptr, *d_prior = nullptr;
  void* d_eps = nullptr;

  // What of the sample's gradients is asked for: u, λ.
  bool needs_u() const { return grad_z.data && (d_log_var || d_rho_logit); }
  bool needs_adjoint() const { return grad_z.data && (d_rho_logit || d_eps); }
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "markov_reparam.cpp"
#include "targets.h"

namespace rhovae {
namespace {

bool one_a_row(const Tensor& x) { return x.size(x.dim() - 1) == 1; }

Markov markov_of(const Tensor& mu, const Tensor& log_var, const Tensor& rho_logit,
                 const Tensor& prior, const Tensor& eps, bool per_step,
                 std::vector<Tensor>& keep) {
  Markov p{};
  p.tiles = {row_count(mu), mu.size(mu.dim() - 1)};
  p.scale_per_row = one_a_row(log_var);
  p.rho_per_row = one_a_row(rho_logit);
  p.prior_per_row = one_a_row(prior);
  p.per_step = per_step;
  p.mu = rows_of(mu, 1, keep);
  p.log_var = rows_of(log_var, 1, keep);
  p.rho_logit = rows_of(rho_logit, 1, keep);
  p.prior = rows_of(prior, 1, keep);
  p.eps = rows_of(eps, 1, keep);
  return p;
}

std::tuple<Tensor, Tensor> markov_reparam(const Tensor& mu, const Tensor& log_var,
                                          const Tensor& rho_logit, const Tensor& prior,
                                          const Tensor& eps, bool per_step) {
  Leader(mu).one_or_like(log_var).one_or_like(rho_logit).one_or_like(prior).like(eps);
  std::vector<Tensor> keep;
  Markov p = markov_of(mu, log_var, rho_logit, prior, eps, per_step, keep);
  Tensor z = empty_like_rows(mu), kl = per_step ? empty_per_step(mu) : empty_per_row(mu);
  p.z = z.mutable_data_ptr();
  p.kl = kl.mutable_data_ptr();
  with_storage(mu.scalar_type(), [&](auto s) { RHOVAE_RUN(p, MarkovReparam<decltype(s)>); });
  return {z, kl};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> markov_reparam_backward(
    const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl, const Tensor& mu,
    const Tensor& log_var, const Tensor& rho_logit, const Tensor& prior, const Tensor& eps,
    bool per_step, const std::vector<bool>& needs) {
  require_flags(needs, 5);
  const Leader leader(mu);
  leader.one_or_like(log_var).one_or_like(rho_logit).one_or_like(prior).like(eps).like(grad_z);
  if (per_step) leader.per_step(grad_kl);
  else leader.per_row(grad_kl);
  std::vector<Tensor> keep;
  Markov p = markov_of(mu, log_var, rho_logit, prior, eps, per_step, keep);
  p.grad_z = rows_of(grad_z, 1, keep);
  p.grad_kl = rows_of(grad_kl, per_step ? 1 : 0, keep);
  Tensor d_mu = gradient_like(mu, needs[0]), d_log_var = gradient_like(log_var, needs[1]),
         d_rho_logit = gradient_like(rho_logit, needs[2]),
         d_prior = gradient_like(prior, needs[3]), d_eps = gradient_like(eps, needs[4]);
  const auto memory = [](const Tensor& x, bool needed) {
    return needed ? x.mutable_data_ptr() : nullptr;
  };
  p.d_mu = memory(d_mu, needs[0]);
  p.d_log_var = memory(d_log_var, needs[1]);
  p.d_rho_logit = memory(d_rho_logit, needs[2]);
  p.d_prior = memory(d_prior, needs[3]);
  p.d_eps = memory(d_eps, needs[4]);
  with_storage(mu.scalar_type(), [&](auto s) {
    RHOVAE_RUN(p, MarkovReparamBackward<decltype(s)>);
  });
  return {d_mu, d_log_var, d_rho_logit, d_prior, d_eps};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("markov_reparam", TORCH_BOX(&rhovae::markov_reparam));
  m.impl("markov_reparam_backward", TORCH_BOX(&rhovae::markov_reparam_backward));
}

#else  // RHOVAE_TARGET

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// What the formulas need of ρ = tanh a, right where ρ itself has rounded to ±1: with m = |a|,
// h = e^{−m} and t = h², nothing is formed from 1 − ρ².
template <typename T>
struct Logit {
  V<T> a, sign, m, t;
  V<T> inverse;  // 1/(1+t)
  V<T> rho, sech, cosh;

  static RHOVAE_INLINE Logit of(V<T> a) {
    const V<T> one = broadcast(T(1));
    Logit x;
    x.a = a;
    x.sign = a < 0 ? -one : one;
    x.m = x.sign * a;
    const Exponential<T> h = exponential(-x.m);
    x.t = h.exp * h.exp;
    x.inverse = 1 / (1 + x.t);
    x.rho = -x.sign * (h.expm1 * (h.expm1 + 2)) * x.inverse;
    x.sech = 2 * h.exp * x.inverse;
    x.cosh = T(0.5) * exponential(x.m).exp * (1 + x.t);
    return x;
  }

  RHOVAE_INLINE V<T> one_minus_abs_rho() const { return 2 * t * inverse; }
};

// Of q's correlation and the prior's: what the KL needs of how they differ.
template <typename T>
struct Difference {
  V<T> log_ratio;  // log(1−ρ²) − log(1−ρ_p²)
  V<T> in_cosh;    // cosh b (ρ − ρ_p) = sinh(a − b) sech a

  static RHOVAE_INLINE Difference of(const Logit<T>& q, const Logit<T>& p) {
    Difference d;
    d.log_ratio = -2 * ((q.m - p.m) + log1p_unit((q.t - p.t) * p.inverse));
    // With x and y = |b| in the sign of b: (1 − e^{−2|x−y|}) e^{|x−y|−|x|} / (1+t), where the
    // exponent is written so that it does not cancel.
    const V<T> x = p.sign * q.a, y = p.m, zero = {};
    const auto above = x >= y;
    const V<T> gap = above ? y - x : x - y;
    const V<T> exponent = above ? -y : y - 2 * (x > zero ? x : zero);
    d.in_cosh = (above ? -p.sign : p.sign) * exponential(2 * gap).expm1 *
                (exponential(exponent).exp * q.inverse);
    return d;
  }
};

// eᵍ − 1 − g: by its series where the difference would cancel.
template <typename T>
RHOVAE_INLINE V<T> exponential_excess(V<T> g, V<T> expm1) {
  constexpr int terms = sizeof(T) == 4 ? 7 : 15;
  V<T> series = broadcast(T(1));
#pragma GCC unroll 15
  for (int i = terms; i > 0; --i) series = 1 + g * (T(1) / (i + 2)) * series;
  const V<T> magnitude = g < 0 ? -g : g;
  return magnitude < T(0.5) ? T(0.5) * g * g * series : expm1 - g;
}

// The steps from j on: what the sample needs, and what the KL does.
template <typename T>
struct Step {
  V<T> scale, scale_before;  // √s_j, √s_{j−1}
  Logit<T> q;
};

template <typename T>
struct Divergence {
  Logit<T> p;
  V<T> mu, mu_before;
  V<T> g, expm1_g, predicted, innovation;  // g, eᵍ − 1, P, I
};

// n elements from that before j on; zero stands before the row.
template <typename S>
RHOVAE_INLINE V<Compute<S>> load_before(const S* row, int64_t j, int n) {
  using T = Compute<S>;
  return j > 0 ? load(row + j - 1, n) : slide_up<T, 1>(load(row, n), V<T>{});
}

// The steps of one row, a vector at a time. (What a loop reads is copied into locals like these
// first: a store to memory of unknown type would make the compiler read it again.)
template <typename S>
class Steps {
  using T = Compute<S>;

 public:
  RHOVAE_INLINE Steps(const Markov& p, int64_t row, int64_t begin)
      : mu_(p.mu.row<S>(row)),
        log_var_(p.scale_per_row ? nullptr : p.log_var.row<S>(row)),
        rho_logit_(p.rho_per_row ? nullptr : p.rho_logit.row<S>(row)),
        prior_(p.prior_per_row ? nullptr : p.prior.row<S>(row)) {
    if (p.scale_per_row) {
      row_log_var_ = broadcast(number(p.log_var.row<S>(row)));
      scale_before_ = row_scale_ = exponential(row_log_var_ * T(0.5)).exp;
    } else {
      const V<T> before = begin > 0 ? load(log_var_ + begin - 1, 1) : V<T>{};
      scale_before_ = repeat<T, 0>(exponential(before * T(0.5)).exp);
    }
    if (!rho_logit_) of_row(p.rho_logit.row<S>(row), row_rho_);
    if (!prior_) of_row(p.prior.row<S>(row), row_prior_);
    if (!rho_logit_ && !prior_) {
      for (int i = 0; i < 2; ++i) row_difference_[i] = Difference<T>::of(row_rho_[i], row_prior_[i]);
    }
  }

  // In the order of the steps: the scale of the last one is kept for the next.
  RHOVAE_INLINE Step<T> at(int64_t j, int n) {
    Step<T> s;
    s.q = logit(rho_logit_, row_rho_, j, n);
    if (log_var_) {
      s.scale = exponential(load(log_var_ + j, n) * T(0.5)).exp;
      s.scale_before = slide_up<T, 1>(s.scale, scale_before_);
      scale_before_ = last<T, false>(s.scale);
    } else {
      s.scale = s.scale_before = row_scale_;
    }
    return s;
  }

  RHOVAE_INLINE Divergence<T> divergence(const Step<T>& s, int64_t j, int n) const {
    Divergence<T> d;
    d.p = logit(prior_, row_prior_, j, n);
    const Difference<T> difference =
        rho_logit_ || prior_ ? Difference<T>::of(s.q, d.p) : row_difference_[j > 0];
    const V<T> log_s = log_var_ ? load(log_var_ + j, n) : row_log_var_;
    d.g = log_s + difference.log_ratio;
    d.expm1_g = exponential(d.g).expm1;
    d.predicted = s.scale_before * difference.in_cosh;
    if (log_var_) {
      const V<T> half = T(0.5) * (log_s - load_before(log_var_, j, n));
      // √s_j − √s_{j−1}, which cancels where they are near.
      const V<T> step =
          half > T(1) ? s.scale - s.scale_before : s.scale_before * exponential(half).expm1;
      d.predicted += d.p.cosh * s.q.rho * step;
    }
    if (j == 0) d.predicted[0] = 0;
    d.mu = load(mu_ + j, n);
    d.mu_before = load_before(mu_, j, n);
    const V<T> before = d.p.sign * d.mu_before;
    d.innovation = d.p.cosh * ((d.mu - before) + d.p.one_minus_abs_rho() * before);
    return d;
  }

 private:
  // One logit a row: of the first vector, whose first step has no ρ, and of the others.
  static RHOVAE_INLINE void of_row(const S* logit, Logit<T>* first_and_rest) {
    V<T> a = broadcast(number(logit));
    first_and_rest[1] = Logit<T>::of(a);
    a[0] = 0;
    first_and_rest[0] = Logit<T>::of(a);
  }

  static RHOVAE_INLINE Logit<T> logit(const S* of_steps, const Logit<T>* of_row, int64_t j, int n) {
    if (!of_steps) return of_row[j > 0];
    V<T> a = load(of_steps + j, n);
    if (j == 0) a[0] = 0;
    return Logit<T>::of(a);
  }

  const S *const mu_, *const log_var_, *const rho_logit_, *const prior_;
  V<T> row_log_var_ = {}, row_scale_ = {}, scale_before_;
  Logit<T> row_rho_[2] = {}, row_prior_[2] = {};
  Difference<T> row_difference_[2] = {};
};

// The gates of the adjoint, ρ_{j+1}: the last step of a row has none.
template <typename S>
RHOVAE_INLINE V<Compute<S>> next_rho(const Markov& p, int64_t row, int64_t j, int n) {
  using T = Compute<S>;
  const S* logit = p.rho_logit.row<S>(row);
  if (p.rho_per_row) return Logit<T>::of(broadcast(number(logit))).rho;
  return Logit<T>::of(load_within(logit, j + 1, n, p.tiles.length)).rho;
}

template <typename S>
struct MarkovPass : Elementwise {
  using T = Compute<S>;
  static constexpr bool kCarried = true;

  // States, and the products of their gates over a tile.
  struct Carry {
    T u = 0, u_gate = 0, adjoint = 0, adjoint_gate = 0;
  };

  // u after a tile that starts from u = 0.
  static void aggregate_u(const Markov& p, int64_t row, int64_t tile, Carry& carry) {
    const int64_t begin = p.tiles.begin(tile);
    const S* eps = p.eps.row<S>(row);
    Steps<S> steps(p, row, begin);
    StepScan<T, false> scan(T(0));
    for_vectors<T, false>(begin, p.tiles.end(tile), [&](int64_t j, auto n) {
      const Logit<T> q = steps.at(j, n).q;
      scan(q.rho, q.sech * load(eps + j, n));
    });
    carry.u = scan.carry[0], carry.u_gate = scan.gate[0];
  }

  // λ before a tile, backwards, that starts from λ = 0.
  static void aggregate_adjoint(const Markov& p, int64_t row, int64_t tile, Carry& carry) {
    const S* grad = p.grad_z.row<S>(row);
    const S* log_var = p.log_var.row<S>(row);
    StepScan<T, true> scan(T(0));
    for_vectors<T, true>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const V<T> log_s = p.scale_per_row ? broadcast(number(log_var)) : load(log_var + j, n);
      const V<T> driven = exponential(log_s * T(0.5)).exp * load(grad + j, n);
      scan(next_rho<S>(p, row, j, n), first_lanes<T>(driven, n));
    });
    carry.adjoint = scan.carry[0], carry.adjoint_gate = scan.gate[0];
  }

  static void link(const Markov& p, const Row&, Carry* carries) {
    const int64_t tiles = p.tiles.per_row();
    T u = 0, adjoint = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      u = std::exchange(carries[t].u, u) + carries[t].u_gate * u;
    }
    // The last tile may be short: nothing enters it.
    for (int64_t t = tiles - 1; t >= 0; --t) {
      adjoint = std::exchange(carries[t].adjoint, adjoint) + carries[t].adjoint_gate * adjoint;
    }
  }
};

template <typename S>
struct MarkovReparam : MarkovPass<S> {
  using T = Compute<S>;
  using Row = Elementwise::Row;
  using Carry = typename MarkovPass<S>::Carry;

  static Carry aggregate(const Markov& p, const Row& row, int64_t tile) {
    Carry carry;
    MarkovPass<S>::aggregate_u(p, row.index, tile, carry);
    return carry;
  }

  // z; the KL of each step, or their sum.
  static Sums tile(const Markov& p, const Row& row, int64_t tile, Carry carry) {
    const int64_t d = p.tiles.length, begin = p.tiles.begin(tile);
    if (d == 0) return {};
    const S* eps = p.eps.row<S>(row.index);
    S* z = row_of<S>(p.z, row.index, d);
    T* kl = p.per_step ? row_of<T>(p.kl, row.index, d) : nullptr;
    Steps<S> steps(p, row.index, begin);
    StepScan<T, false> scan(carry.u);
    V<T> total = {};
    for_vectors<T, false>(begin, p.tiles.end(tile), [&](int64_t j, auto n) {
      const Step<T> s = steps.at(j, n);
      const Divergence<T> of = steps.divergence(s, j, n);
      const V<T> u = scan(s.q.rho, s.q.sech * load(eps + j, n));
      store(z + j, of.mu + s.scale * u, n);
      const V<T> kl_j = T(0.5) * (exponential_excess<T>(of.g, of.expm1_g) +
                                  of.predicted * of.predicted + of.innovation * of.innovation);
      if (kl) store(kl + j, kl_j, n);
      else total += first_lanes<T>(kl_j, n);
    });
    return {double(sum<T>(total))};
  }

  static void finish(const Markov& p, const Row& row, Sums sums) {
    if (!p.per_step) put<T>(p.kl, row.index, sums.a);
  }
};

template <typename S>
struct MarkovReparamBackward : MarkovPass<S> {
  using T = Compute<S>;
  using Row = Elementwise::Row;
  using Carry = typename MarkovPass<S>::Carry;

  static Carry aggregate(const Markov& p, const Row& row, int64_t tile) {
    Carry carry;
    if (p.needs_u()) MarkovPass<S>::aggregate_u(p, row.index, tile, carry);
    if (p.needs_adjoint()) MarkovPass<S>::aggregate_adjoint(p, row.index, tile, carry);
    return carry;
  }

  // What of the gradients of μ and log s is known at a step; the step after takes off the rest.
  struct Held {
    V<T> mu, log_var;
    V<T> from_mu, from_log_var;  // what this step takes off those of the step before
  };

  // The gradients, in the order of the steps but for those that λ is in; sums those of parameters
  // that are one number: of log s, a and b.
  static Sums tile(const Markov& p, const Row& row, int64_t tile, Carry carry) {
    constexpr int lanes = kLanes<T>;
    constexpr std::integral_constant<int, lanes> full{};
    const int64_t d = p.tiles.length, begin = p.tiles.begin(tile), end = p.tiles.end(tile);
    if (d == 0) return {};
    const int64_t i = row.index;
    const S* eps = p.eps.row<S>(i);
    const S* grad = p.grad_z.data ? p.grad_z.row<S>(i) : nullptr;
    const bool of_kl = p.grad_kl.data, needs_u = p.needs_u(), needs_adjoint = p.needs_adjoint();
    const T* k_of_steps = of_kl && p.per_step ? p.grad_kl.row<T>(i) : nullptr;
    const V<T> k_of_row = broadcast(of_kl && !p.per_step ? *p.grad_kl.row<T>(i) : T(0));
    S* d_mu = row_of<S>(p.d_mu, i, d);
    S* d_eps = row_of<S>(p.d_eps, i, d);
    S* d_log_var = p.scale_per_row ? nullptr : row_of<S>(p.d_log_var, i, d);
    S* d_rho_logit = p.rho_per_row ? nullptr : row_of<S>(p.d_rho_logit, i, d);
    S* d_prior = p.prior_per_row ? nullptr : row_of<S>(p.d_prior, i, d);
    // ρ, σ, √s g; σ_j (σ_j u_{j−1} − ρ_j ε_j), what λ_j is multiplied by in ∂a_j, and the KL's ∂a_j.
    T of_tile[5][kTile + lanes];
    T* const rho = of_tile[0] - begin;
    T* const sech = of_tile[1] - begin;
    T* const driven = of_tile[2] - begin;
    T* const change = of_tile[3] - begin;
    T* const d_logit = of_tile[4] - begin;

    V<T> sum_log_var = {}, sum_logit = {}, sum_prior = {};
    Held held = {};
    int64_t held_at = begin;
    const auto release = [&](V<T> next_mu, V<T> next_log_var, auto n) {
      if (d_mu) store(d_mu + held_at, held.mu - slide_down<T, 1>(held.from_mu, next_mu), n);
      const V<T> of = held.log_var - slide_down<T, 1>(held.from_log_var, next_log_var);
      if (d_log_var) store(d_log_var + held_at, of, n);
      else sum_log_var += first_lanes<T>(of, n);
    };

    Steps<S> steps(p, i, begin);
    StepScan<T, false> scan(carry.u);
    V<T> u_before = broadcast(carry.u);
    // Adds the KL's gradients to what is held of these steps; returns ∂a.
    const auto divergence = [&](const Step<T>& s, int64_t j, int n, Held& of) -> V<T> {
      const Divergence<T> x = steps.divergence(s, j, n);
      const V<T> k = k_of_steps ? load(k_of_steps + j, n) : k_of_row;
      const V<T> along = k * x.p.cosh * x.innovation, weighted = k * x.p.cosh * x.predicted;
      const V<T> above_one = k * x.expm1_g, reached = weighted * s.scale;
      of.mu += along;
      of.log_var += T(0.5) * (above_one + reached * s.q.rho);
      of.from_mu = first_lanes<T>(x.p.rho * along, n);
      of.from_log_var = first_lanes<T>(T(0.5) * x.p.rho * weighted * s.scale_before, n);
      if (j == end) return V<T>{};
      V<T> of_prior = x.predicted * (x.p.rho * x.predicted - x.p.sech * s.scale_before) +
                      x.innovation * (x.p.rho * x.innovation - x.p.sech * x.mu_before);
      of_prior = x.p.rho * above_one + k * of_prior;
      if (j == 0) of_prior[0] = 0;
      if (d_prior) store(d_prior + j, of_prior, n);
      else sum_prior += first_lanes<T>(of_prior, n);
      return reached * s.q.sech * s.q.sech - s.q.rho * above_one;
    };
    for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
      const Step<T> s = steps.at(j, n);
      const V<T> g = grad ? load(grad + j, n) : V<T>{}, reached = s.scale * g;
      Held here = {g, V<T>{}, V<T>{}, V<T>{}};
      V<T> moved = {};
      if (needs_u) {
        const V<T> e = load(eps + j, n), u = scan(s.q.rho, s.q.sech * e);
        here.log_var = T(0.5) * reached * u;
        moved = s.q.sech * (s.q.sech * slide_up<T, 1>(u, u_before) - s.q.rho * e);
        u_before = last<T, false>(u);
      }
      V<T> of_logit = {};
      if (of_kl) of_logit = divergence(s, j, n, here);
      else if (d_prior) store(d_prior + j, V<T>{}, n);
      if (d_eps && !grad) store(d_eps + j, V<T>{}, n);
      if (j == 0) of_logit[0] = moved[0] = 0;
      if (j > begin) release(repeat<T, 0>(here.from_mu), repeat<T, 0>(here.from_log_var), full);
      held = here, held_at = j;
      if (needs_adjoint) {
        store(rho + j, s.q.rho);
        store(sech + j, s.q.sech);
        store(driven + j, first_lanes<T>(reached, n));
        store(change + j, moved);
        store(d_logit + j, of_logit);
      } else if (d_rho_logit) {
        store(d_rho_logit + j, of_logit, n);
      } else {
        sum_logit += first_lanes<T>(of_logit, n);
      }
    });
    V<T> rho_after = {};
    Held after = {};
    if (end < d) {
      // The next tile's first step.
      const Step<T> s = steps.at(end, 1);
      rho_after = repeat<T, 0>(s.q.rho);
      if (of_kl) divergence(s, end, 1, after);
    }
    release(repeat<T, 0>(after.from_mu), repeat<T, 0>(after.from_log_var), int(end - held_at));

    if (needs_adjoint) {
      StepScan<T, true> adjoint_scan(carry.adjoint);
      for_vectors<T, true>(begin, end, [&](int64_t j, auto n) {
        const V<T> rho_here = load(static_cast<const T*>(rho) + j);
        const V<T> gate = slide_down<T, 1>(rho_here, rho_after);
        rho_after = repeat<T, 0>(rho_here);
        const V<T> adjoint = adjoint_scan(gate, load(static_cast<const T*>(driven) + j));
        if (d_eps) store(d_eps + j, adjoint * load(static_cast<const T*>(sech) + j), n);
        V<T> of_logit = adjoint * load(static_cast<const T*>(change) + j);
        if (j == 0) of_logit[0] = 0;
        of_logit += load(static_cast<const T*>(d_logit) + j);
        if (d_rho_logit) store(d_rho_logit + j, of_logit, n);
        else sum_logit += first_lanes<T>(of_logit, n);
      });
    }
    return {double(sum<T>(sum_log_var)), double(sum<T>(sum_logit)), double(sum<T>(sum_prior))};
  }

  static void finish(const Markov& p, const Row& row, Sums sums) {
    if (p.d_log_var && p.scale_per_row) put<S>(p.d_log_var, row.index, sums.a);
    if (p.d_rho_logit && p.rho_per_row) put<S>(p.d_rho_logit, row.index, sums.b);
    if (p.d_prior && p.prior_per_row) put<S>(p.d_prior, row.index, sums.c);
  }
};

}  // namespace
}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
