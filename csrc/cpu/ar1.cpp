// ar1_reparam, ar1_reparam_rng, ar1_log_prob and their backward passes for the CPU.
//
// The letters are those of python_ref/ar1.py. A row is cut into tiles; between tiles travel the
// carries of its recurrences: u forwards, the adjoint λ backwards.

#ifndef RHOVAE_TARGET

#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/library.h>

#include "../math.h"
#include "../philox.h"
#include "rows.h"

namespace rhovae {
namespace {

// Everything the kernels of this file read and write. An operand that is not given, and an output
// that is not asked for, is null; outputs are contiguous.
struct Ar1 {
  Tiles tiles;
  bool scale_per_row;                            // log_var is (…,1)
  bool logit_per_row;                            // rho_logit is (…,1)
  Rows mu, log_var, rho_logit;
  Rows first;                                    // ε, or z for the density
  const int64_t* rng_state = nullptr;            // where ε is drawn from, if it is not given
  Rows grad_z, grad_per_row;                     // g; k
  void *out = nullptr, *per_row_out = nullptr;   // z; kl or log q
  void *d_first = nullptr, *d_mu = nullptr, *d_log_var = nullptr, *d_rho_logit = nullptr;
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "ar1.cpp"
#include "targets.h"

// A Pass in the storage type of the call, for one correlation a row or one a step.
#define RHOVAE_RUN_AR1(call, type, Pass)           \
  with_storage(type, [&](auto s) {                 \
    const Ar1& p = call;                           \
    if (p.logit_per_row) {                         \
      RHOVAE_RUN(p, Pass<decltype(s), true>);      \
    } else {                                       \
      RHOVAE_RUN(p, Pass<decltype(s), false>);     \
    }                                              \
  })

namespace rhovae {
namespace {

// The operands of one call, and what keeps their memory alive.
struct Call : Ar1 {
  std::vector<Tensor> keep;

  Call(const Tensor& mu_, const Tensor& log_var_, const Tensor& rho_logit_) {
    const int64_t d = mu_.size(mu_.dim() - 1);
    tiles = {row_count(mu_), d};
    scale_per_row = log_var_.size(log_var_.dim() - 1) == 1;
    logit_per_row = rho_logit_.size(rho_logit_.dim() - 1) == 1;
    mu = rows_of(mu_, 1, keep);
    log_var = rows_of(log_var_, 1, keep);
    rho_logit = rows_of(rho_logit_, 1, keep);
  }

  // The memory of an output; null stands for one that is not asked for.
  static void* memory(const Tensor& x, bool needed = true) {
    return needed ? x.mutable_data_ptr() : nullptr;
  }

  void upstream(const std::optional<Tensor>& z, const std::optional<Tensor>& per_row) {
    grad_z = rows_of(z, 1, keep);
    grad_per_row = rows_of(per_row, 0, keep);
  }
};

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Two reparam(Call& call, const Tensor& mu) {
  Tensor z = empty_like_rows(mu), kl = empty_per_row(mu);
  call.out = Call::memory(z);
  call.per_row_out = Call::memory(kl);
  RHOVAE_RUN_AR1(call, mu.scalar_type(), Reparam);
  return {z, kl};
}

Two ar1_reparam(const Tensor& mu, const Tensor& log_var, const Tensor& rho_logit,
                const Tensor& eps) {
  Leader(mu).one_or_like(log_var).one_or_like(rho_logit).like(eps);
  Call call(mu, log_var, rho_logit);
  call.first = rows_of(eps, 1, call.keep);
  return reparam(call, mu);
}

Three ar1_reparam_rng(const Tensor& mu, const Tensor& log_var, const Tensor& rho_logit,
                      const Tensor& rng_state) {
  Leader(mu).one_or_like(log_var).one_or_like(rho_logit).rng_state(rng_state);
  Call call(mu, log_var, rho_logit);
  require(call.tiles.rows < kPhiloxRows);
  Tensor used = torch::stable::clone(rng_state);
  used = torch::stable::contiguous(used);
  call.rng_state = static_cast<const int64_t*>(used.const_data_ptr());
  auto [z, kl] = reparam(call, mu);
  return {z, kl, used};
}

Three reparam_backward(Call& call, const Tensor& mu, const Tensor& log_var,
                       const Tensor& rho_logit, const std::vector<bool>& needs) {
  Tensor d_mu = gradient_like(mu, needs[0]), d_log_var = gradient_like(log_var, needs[1]),
         d_rho_logit = gradient_like(rho_logit, needs[2]);
  call.d_mu = Call::memory(d_mu, needs[0]);
  call.d_log_var = Call::memory(d_log_var, needs[1]);
  call.d_rho_logit = Call::memory(d_rho_logit, needs[2]);
  RHOVAE_RUN_AR1(call, mu.scalar_type(), ReparamBackward);
  return {d_mu, d_log_var, d_rho_logit};
}

Four ar1_reparam_backward(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                          const Tensor& mu, const Tensor& log_var, const Tensor& rho_logit,
                          const Tensor& eps, const std::vector<bool>& needs) {
  require_flags(needs, 4);
  Leader(mu).one_or_like(log_var).one_or_like(rho_logit).like(eps).like(grad_z).per_row(grad_kl);
  Call call(mu, log_var, rho_logit);
  call.upstream(grad_z, grad_kl);
  call.first = rows_of(eps, 1, call.keep);
  Tensor d_eps = gradient_like(eps, needs[3]);
  call.d_first = Call::memory(d_eps, needs[3]);
  auto [d_mu, d_log_var, d_rho_logit] = reparam_backward(call, mu, log_var, rho_logit, needs);
  return {d_mu, d_log_var, d_rho_logit, d_eps};
}

Three ar1_reparam_rng_backward(const std::optional<Tensor>& grad_z,
                               const std::optional<Tensor>& grad_kl, const Tensor& mu,
                               const Tensor& log_var, const Tensor& rho_logit,
                               const Tensor& rng_used, const std::vector<bool>& needs) {
  require_flags(needs, 3);
  Leader(mu).one_or_like(log_var).one_or_like(rho_logit).rng_state(rng_used).like(grad_z).per_row(
      grad_kl);
  Call call(mu, log_var, rho_logit);
  require(call.tiles.rows < kPhiloxRows);
  call.upstream(grad_z, grad_kl);
  const Tensor state = torch::stable::contiguous(rng_used);
  call.rng_state = static_cast<const int64_t*>(state.const_data_ptr());
  return reparam_backward(call, mu, log_var, rho_logit, needs);
}

Tensor ar1_log_prob(const Tensor& z, const Tensor& mu, const Tensor& log_var,
                    const Tensor& rho_logit) {
  Leader(z).like(mu).one_or_like(log_var).one_or_like(rho_logit);
  Call call(mu, log_var, rho_logit);
  call.first = rows_of(z, 1, call.keep);
  Tensor log_q = empty_per_row(z);
  call.per_row_out = Call::memory(log_q);
  RHOVAE_RUN_AR1(call, z.scalar_type(), LogProb);
  return log_q;
}

Four ar1_log_prob_backward(const Tensor& grad, const Tensor& z, const Tensor& mu,
                           const Tensor& log_var, const Tensor& rho_logit,
                           const std::vector<bool>& needs) {
  require_flags(needs, 4);
  Leader(z).like(mu).one_or_like(log_var).one_or_like(rho_logit).per_row(grad);
  Call call(mu, log_var, rho_logit);
  call.first = rows_of(z, 1, call.keep);
  call.grad_per_row = rows_of(grad, 0, call.keep);
  Tensor d_z = gradient_like(z, needs[0]), d_mu = gradient_like(mu, needs[1]),
         d_log_var = gradient_like(log_var, needs[2]),
         d_rho_logit = gradient_like(rho_logit, needs[3]);
  call.d_first = Call::memory(d_z, needs[0]);
  call.d_mu = Call::memory(d_mu, needs[1]);
  call.d_log_var = Call::memory(d_log_var, needs[2]);
  call.d_rho_logit = Call::memory(d_rho_logit, needs[3]);
  RHOVAE_RUN_AR1(call, z.scalar_type(), LogProbBackward);
  return {d_z, d_mu, d_log_var, d_rho_logit};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("ar1_reparam", TORCH_BOX(&rhovae::ar1_reparam));
  m.impl("ar1_reparam_backward", TORCH_BOX(&rhovae::ar1_reparam_backward));
  m.impl("ar1_reparam_rng", TORCH_BOX(&rhovae::ar1_reparam_rng));
  m.impl("ar1_reparam_rng_backward", TORCH_BOX(&rhovae::ar1_reparam_rng_backward));
  m.impl("ar1_log_prob", TORCH_BOX(&rhovae::ar1_log_prob));
  m.impl("ar1_log_prob_backward", TORCH_BOX(&rhovae::ar1_log_prob_backward));
}

#else  // RHOVAE_TARGET

#include "correlation.h"

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// What a step needs of its own ρ = tanh a, of one exponential: with m = |a|, h = e^{−m}, t = h². Of
// a = 0, ρ = 0 and σ = 1 to the bit.
template <typename T>
struct Transition {
  V<T> sign_bit, m, t;
  V<T> rho, sech, one_minus_abs_rho;
  V<T> linear, excess;  // log σ = linear + log(1 − excess), linear ≤ 0 ≤ excess ≤ 1/5

  static RHOVAE_INLINE Transition of(V<T> a) {
    const V<T> zero = {};
    Transition c;
    c.sign_bit = bits_of<T>(a, broadcast(T(-0.0)));
    c.m = flipped<T>(a, c.sign_bit);
    const Decay<T> e = decay(c.m);
    const V<T> h = e.exp, t = h * h, r = 1 / (1 + t);
    // 1 − σ = (1−h)² r keeps its digits where σ is near 1; else σ = 2h (1 − t r).
    const V<T> above = T(kLog2) - c.m;
    const auto near = above > 0;
    c.t = t;
    c.sech = (h + h) * r;
    c.one_minus_abs_rho = 2 * t * r;
    c.linear = near ? zero : above;
    c.excess = (near ? e.below_one * e.below_one : t) * r;
    const V<T> magnitude = near ? (e.below_one * h + e.below_one) * r : 1 - 2 * c.excess;
    c.rho = flipped<T>(magnitude, c.sign_bit);
    return c;
  }

  RHOVAE_INLINE V<T> cosh() const { return T(0.5) * exponential(m).exp * (1 + t); }
  // x with the sign of a
  RHOVAE_INLINE V<T> signed_as_a(V<T> x) const { return flipped<T>(x, sign_bit); }
};

// Σ log σ_j lane by lane: one logarithm for the product of four steps.
template <typename T>
class LogSech {
 public:
  RHOVAE_INLINE void add(const Transition<T>& c) {
    total_ += c.linear;
    below_one_ += c.excess * (1 - below_one_);
    if (++count_ % 4 == 0) take_logarithm();
  }

  RHOVAE_INLINE V<T> sum() {
    take_logarithm();
    return total_;
  }

 private:
  RHOVAE_INLINE void take_logarithm() {
    total_ += log1p_unit(-below_one_);
    below_one_ = V<T>{};
  }

  V<T> total_ = {}, below_one_ = {};  // 1 − Π (1 − excess)
  unsigned count_ = 0;
};

// The scalars of several rows, one a lane: `count` of them from `first` on.
template <typename S>
struct Ar1Rows {
  using T = Compute<S>;
  Correlation<V<T>> c;  // where rho_logit is one number a row
  Scale<T> s;           // where log_var is

  RHOVAE_INLINE Ar1Rows(const Ar1& p, int64_t first, int count) {
    V<T> a = {}, log_var = {};
    for (int i = 0; i < count; ++i) {
      if (p.logit_per_row) a[i] = number(p.rho_logit.row<S>(first + i));
      if (p.scale_per_row) log_var[i] = number(p.log_var.row<S>(first + i));
    }
    c = correlations(a);
    s = Scale<T>::of(log_var);
  }
};

// The scalars of one row.
template <typename S>
struct Ar1Row {
  using T = Compute<S>;
  int64_t index;
  Correlation<T> c;         // where rho_logit is one number
  T scale, expm1, log_var;  // √s, s − 1 and log s, where log_var is

  static void of(const Ar1& p, int64_t first, int count, Ar1Row* rows) {
    constexpr int lanes = kLanes<T>;
    for (int done = 0; done < count; done += lanes) {
      const int n = std::min(lanes, count - done);
      const Ar1Rows<S> all(p, first + done, n);
      const Correlation<V<T>>& c = all.c;
      for (int i = 0; i < n; ++i) {
        rows[done + i] = {first + done + i,
                          {c.sign[i], c.rho[i], c.sech[i], c.cosh[i], c.log_one_minus_rho2[i],
                           c.one_minus_abs_rho[i]},
                          all.s.scale[i],
                          all.s.expm1[i],
                          all.s.log_var[i]};
      }
    }
  }
};

// The normals begin … begin+count−1 of a row; begin is a multiple of kTile. The three steps are loops
// over blocks without branches, which vectorise.
template <typename T>
void draw_normals(int64_t seed, int64_t offset, uint32_t row, int64_t begin, int64_t count, T* out) {
  constexpr int per_block = kNormalsPerBlock<T>, chunk = 64;
  const int64_t blocks = (count + per_block - 1) / per_block;
  for (int64_t done = 0; done < blocks; done += chunk) {
    const uint32_t first = uint32_t(begin / per_block + done);
    const int here = int(std::min<int64_t>(chunk, blocks - done));
    const int whole = (here + 15) / 16 * 16;  // of vectors; chunk is one too
    uint32_t words[4][chunk];
    T normals[per_block][chunk];
    for (int b = 0; b < whole; ++b) {
      const PhiloxWords p = philox_block(seed, offset, row, first + uint32_t(b));
      for (int i = 0; i < 4; ++i) words[i][b] = p.word[i];
    }
    for (int b = 0; b < whole; ++b) {
      if constexpr (per_block == 4) {
        normal_pair(words[0][b], words[1][b], normals[0][b], normals[1][b]);
        normal_pair(words[2][b], words[3][b], normals[2][b], normals[3][b]);
      } else {
        normal_pair(uint64_t(words[0][b]) << 32 | words[1][b],
                    uint64_t(words[2][b]) << 32 | words[3][b], normals[0][b], normals[1][b]);
      }
    }
    for (int b = 0; b < here; ++b) {
      for (int i = 0; i < per_block; ++i) out[(done + b) * per_block + i] = normals[i][b];
    }
  }
}

// √s, s − 1 and log s of the lanes from j on. (What a loop reads is copied into locals like these
// first: a store to memory of unknown type would make the compiler read it again.)
template <typename S>
struct Scales {
  using T = Compute<S>;
  const bool per_row;
  const Scale<T> of_row;
  const S* const log_var;

  RHOVAE_INLINE Scales(const Ar1& p, const Ar1Row<S>& row)
      : per_row(p.scale_per_row),
        of_row{broadcast(row.scale), broadcast(row.expm1), broadcast(row.log_var)},
        log_var(per_row ? nullptr : p.log_var.row<S>(row.index)) {}

  RHOVAE_INLINE Scale<T> at(int64_t j, int n) const {
    return per_row ? of_row : Scale<T>::of(load(log_var + j, n));
  }

  RHOVAE_INLINE V<T> inverse(int64_t j, int n) const {
    if (per_row) return T(1) / of_row.scale;
    return exponential(load(log_var + j, n) * T(-0.5)).exp;
  }
};

// ε of one tile: read, or drawn into a buffer.
template <typename S>
struct Noise {
  using T = Compute<S>;
  const S* given;
  const int64_t begin;
  T drawn[kTile];

  Noise(const Ar1& p, int64_t row, int64_t j0, int64_t j1) : given(p.first.row<S>(row)), begin(j0) {
    if (!p.rng_state) return;
    given = nullptr;
    draw_normals(p.rng_state[0], p.rng_state[1], uint32_t(row), j0, j1 - j0, drawn);
  }

  RHOVAE_INLINE V<T> at(int64_t j, int n) const {
    return given ? load(given + j, n) : load(static_cast<const T*>(drawn) + (j - begin), n);
  }
};

// Short rows are computed together, one a lane: what a vector of steps costs in one row, a step
// costs in many, and nothing travels between lanes. Longer ones do not have to be turned around.
constexpr int64_t kShort = 128;

// ε of several short rows.
template <typename S>
struct ShortNoise {
  using T = Compute<S>;
  const Rows given;
  const int64_t first;
  T drawn[kLanes<T>][kShort];

  ShortNoise(const Ar1& p, int64_t first_row, int count) : given(p.first), first(first_row) {
    if (!p.rng_state) return;
    for (int r = 0; r < count; ++r) {
      draw_normals(p.rng_state[0], p.rng_state[1], uint32_t(first + r), 0, p.tiles.length, drawn[r]);
    }
  }

  RHOVAE_INLINE V<T> at(int r, int64_t j, int n) const {
    return given.data ? load(given.row<S>(first + r) + j, n)
                      : load(static_cast<const T*>(drawn[r]) + j, n);
  }
};

// u_j = ρ u_{j−1} + σ ε_j of several rows, a step at a time.
template <typename T>
struct Recurrence {
  V<T> rho, sech, u = {};

  RHOVAE_INLINE V<T> operator()(V<T> eps, int64_t j) {
    return u = j == 0 ? eps : rho * u + sech * eps;
  }
};

// a_j of the lanes from j on; 0 for the first, which is not read: ρ_1 = 0 and σ_1 = 1.
template <typename S>
RHOVAE_INLINE V<Compute<S>> logits_at(const S* row, int64_t j, int n) {
  V<Compute<S>> a = load(row + j, n);
  if (j == 0) a[0] = 0;
  return a;
}

// a_{j+1} of the lanes from j on; 0 beyond the row.
template <typename S>
RHOVAE_INLINE V<Compute<S>> next_logits_at(const S* row, int64_t j, int n, int64_t length) {
  return load_within(row, j + 1, n, length);
}

// A square of vectors: f(r) for each of `count` rows, zero for the lanes without one.
template <typename T, typename F>
RHOVAE_INLINE void for_rows(V<T>* square, int count, const F& f) {
  for (int r = 0; r < count; ++r) square[r] = f(r);
  for (int r = count; r < kLanes<T>; ++r) square[r] = V<T>{};
}

// The factors of ε_1, ε_2, …, ε_d that drive u: 1, σ, …, σ.
template <typename T>
struct Innovation {
  V<T> first, rest;

  explicit RHOVAE_INLINE Innovation(T sech) : first(broadcast(sech)), rest(broadcast(sech)) {
    first[0] = 1;
  }
  RHOVAE_INLINE V<T> operator()(V<T> eps, int64_t j) const {
    return eps * (j == 0 ? first : rest);
  }
};

// u along a row: u_j = ρ_j u_{j−1} + σ_j ε_j, a vector of steps at a time.
template <typename S, bool logit_per_row>
struct Path {
  using T = Compute<S>;
  Innovation<T> innovation;
  RowScan<T, false> scan;

  RHOVAE_INLINE Path(const Ar1&, const Ar1Row<S>& row, int64_t, int64_t, T u)
      : innovation(row.c.sech), scan(row.c.rho, u) {}

  RHOVAE_INLINE V<T> operator()(V<T> eps, int64_t j) { return scan(innovation(eps, j)); }

  // Σ log σ_j of what it has gone through; of one ρ a row, `finish` knows it.
  double log_sech() { return 0; }
};

template <typename S>
struct Path<S, false> {
  using T = Compute<S>;
  const int64_t begin;
  StepScan<T, false> scan;
  LogSech<T> sum_log_sech;
  T rho[kTile], sech[kTile];

  // ρ and σ of all steps first: their long chains of operations and those of the scan, one after the
  // other for each vector, are more than a processor looks ahead over.
  RHOVAE_INLINE Path(const Ar1& p, const Ar1Row<S>& row, int64_t begin_, int64_t end, T u)
      : begin(begin_), scan(u) {
    const S* const logits = p.rho_logit.row<S>(row.index);
    for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
      const Transition<T> c = Transition<T>::of(logits_at(logits, j, n));
      sum_log_sech.add(c);
      store(rho + (j - begin), c.rho);
      store(sech + (j - begin), c.sech);
    });
  }

  RHOVAE_INLINE V<T> operator()(V<T> eps, int64_t j) {
    return scan(load(static_cast<const T*>(rho) + (j - begin)),
                load(static_cast<const T*>(sech) + (j - begin)) * eps);
  }

  double log_sech() { return double(sum<T>(sum_log_sech.sum())); }
};

// What enters a tile; of its aggregates, also what they are multiplied by where each step has its
// own ρ.
template <typename T>
struct Ar1Carry {
  T u = 0, adjoint = 0;
  T u_gate = 0, adjoint_gate = 0;
};

// ρ over a whole tile.
template <typename T>
T tile_gate(T rho) {
  T gate = rho;
  for (int64_t steps = 1; steps < kTile; steps *= 2) gate *= gate;
  return gate;
}

// u after a tile that starts from u = 0.
template <typename S, bool logit_per_row>
void aggregate_u(const Ar1& p, const Ar1Row<S>& row, int64_t tile, Ar1Carry<Compute<S>>& carry) {
  using T = Compute<S>;
  const int64_t begin = p.tiles.begin(tile), end = p.tiles.end(tile);
  const Noise<S> noise(p, row.index, begin, end);
  if constexpr (logit_per_row) {
    const Innovation<T> innovation(row.c.sech);
    RowAggregate<T, false> aggregate(row.c.rho);
    for_vectors<T, false>(begin, end,
                          [&](int64_t j, auto n) { aggregate(innovation(noise.at(j, n), j)); });
    carry.u = aggregate.value();
  } else {
    Path<S, false> path(p, row, begin, end, T(0));
    for_vectors<T, false>(begin, end, [&](int64_t j, auto n) { path(noise.at(j, n), j); });
    carry.u = path.scan.carry[0], carry.u_gate = path.scan.gate[0];
  }
}

// λ before a tile, backwards, that starts from λ = 0.
template <typename S, bool logit_per_row>
void aggregate_adjoint(const Ar1& p, const Ar1Row<S>& row, int64_t tile,
                       Ar1Carry<Compute<S>>& carry) {
  using T = Compute<S>;
  const int64_t begin = p.tiles.begin(tile), end = p.tiles.end(tile), d = p.tiles.length;
  const S* grad = p.grad_z.row<S>(row.index);
  const Scales<S> scales(p, row);
  if constexpr (logit_per_row) {
    RowAggregate<T, true> aggregate(row.c.rho);
    for_vectors<T, true>(begin, end, [&](int64_t j, auto n) {
      aggregate(scales.at(j, n).scale * load(grad + j, n));
    });
    carry.adjoint = aggregate.value();
  } else {
    const S* logits = p.rho_logit.row<S>(row.index);
    StepScan<T, true> scan(T(0));
    for_vectors<T, true>(begin, end, [&](int64_t j, auto n) {
      const V<T> gates = Transition<T>::of(next_logits_at(logits, j, n, d)).rho;
      scan(gates, scales.at(j, n).scale * load(grad + j, n));
    });
    carry.adjoint = scan.carry[0], carry.adjoint_gate = scan.gate[0];
  }
}

template <typename S, bool logit_per_row>
void link_u(const Ar1& p, const Ar1Row<S>& row, Ar1Carry<Compute<S>>* carries) {
  using T = Compute<S>;
  const T of_row = tile_gate(row.c.rho);
  T carry = 0;
  for (int64_t t = 0; t < p.tiles.per_row(); ++t) {
    const T gate = logit_per_row ? of_row : carries[t].u_gate;
    carry = std::exchange(carries[t].u, carry) + gate * carry;
  }
}

template <typename S, bool logit_per_row>
void link_adjoint(const Ar1& p, const Ar1Row<S>& row, Ar1Carry<Compute<S>>* carries) {
  using T = Compute<S>;
  const T of_row = tile_gate(row.c.rho);
  T carry = 0;  // the last tile may be short: nothing enters it
  for (int64_t t = p.tiles.per_row() - 1; t >= 0; --t) {
    const T gate = logit_per_row ? of_row : carries[t].adjoint_gate;
    carry = std::exchange(carries[t].adjoint, carry) + gate * carry;
  }
}

template <typename S, bool logit_per_row>
struct Reparam {
  using Storage = S;
  using T = Compute<S>;
  using Row = Ar1Row<S>;
  using Carry = Ar1Carry<T>;
  static constexpr bool kCarried = true;
  static constexpr int64_t kTogether = kShort;

  static Carry aggregate(const Ar1& p, const Row& row, int64_t tile) {
    Carry carry;
    aggregate_u<S, logit_per_row>(p, row, tile, carry);
    return carry;
  }
  static void link(const Ar1& p, const Row& row, Carry* carries) {
    link_u<S, logit_per_row>(p, row, carries);
  }

  // z; sums ‖μ‖² and, of what is not one number a row, Σ(s − 1 − log s) and −Σ log(1−ρ²).
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry carry) {
    const int64_t begin = p.tiles.begin(tile), end = p.tiles.end(tile);
    const Noise<S> noise(p, row.index, begin, end);
    const S* mu = p.mu.row<S>(row.index);
    S* z = static_cast<S*>(p.out) + row.index * p.tiles.length;
    const Scales<S> scales(p, row);
    Path<S, logit_per_row> path(p, row, begin, end, carry.u);
    V<T> mu2 = {}, variance = {};
    for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
      const Scale<T> s = scales.at(j, n);
      const V<T> m = load(mu + j, n);
      store(z + j, m + s.scale * path(noise.at(j, n), j), n);
      mu2 += m * m;
      // Lanes past the end hold log s = 0, which adds nothing.
      if (!scales.per_row) variance += s.expm1 - s.log_var;
    });
    return {double(sum<T>(mu2)), double(sum<T>(variance)) - 2 * path.log_sech()};
  }

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length);
    if (p.scale_per_row) s.b += d * (double(row.expm1) - double(row.log_var));
    const double log_det = logit_per_row ? std::max(d - 1, 0.0) * double(row.c.log_one_minus_rho2)
                                         : 0.0;
    put<T>(p.per_row_out, row.index, 0.5 * (s.a + s.b - log_det));
  }

  static void together(const Ar1& p, int64_t first, int count) {
    constexpr int lanes = kLanes<T>;
    const int64_t d = p.tiles.length;
    const bool scale_per_row = p.scale_per_row;
    const Ar1Rows<S> rows(p, first, count);
    const ShortNoise<S> noise(p, first, count);
    const Rows mu = p.mu, log_var = p.log_var, rho_logit = p.rho_logit;
    S* const z = static_cast<S*>(p.out) + first * d;
    Recurrence<T> recurrence{rows.c.rho, rows.c.sech};
    LogSech<T> log_sech;
    V<T> mu2[lanes] = {}, variance[lanes] = {}, square[lanes], logits[lanes];
    for_vectors<T, false>(0, d, [&](int64_t j, auto n) {
      for_rows<T>(square, count, [&](int r) { return noise.at(r, j, n); });
      transpose<T>(square);
      if constexpr (!logit_per_row) {
        for_rows<T>(logits, count, [&](int r) {
          return logits_at(rho_logit.row<S>(first + r), j, n);
        });
        transpose<T>(logits);
      }
      for (int i = 0; i < n; ++i) {
        if constexpr (!logit_per_row) {
          const Transition<T> c = Transition<T>::of(logits[i]);
          recurrence.rho = c.rho, recurrence.sech = c.sech;
          log_sech.add(c);
        }
        const V<T> u = recurrence(square[i], j + i);
        square[i] = scale_per_row ? rows.s.scale * u : u;
      }
      transpose<T>(square);
      for (int r = 0; r < count; ++r) {
        const V<T> m = load(mu.row<S>(first + r) + j, n);
        mu2[r] += m * m;
        if (!scale_per_row) {
          const Scale<T> s = Scale<T>::of(load(log_var.row<S>(first + r) + j, n));
          square[r] *= s.scale;
          variance[r] += s.expm1 - s.log_var;
        }
        store(z + r * d + j, m + square[r], n);
      }
    });
    const V<T> spread = scale_per_row ? T(d) * (rows.s.expm1 - rows.s.log_var)
                                      : sum_each<T>(variance);
    const V<T> log_det = logit_per_row ? std::max(T(d) - 1, T(0)) * rows.c.log_one_minus_rho2
                                       : 2 * log_sech.sum();
    store(static_cast<T*>(p.per_row_out) + first,
          T(0.5) * (sum_each<T>(mu2) + spread - log_det), count);
  }
};

template <typename S, bool logit_per_row>
struct ReparamBackward {
  using Storage = S;
  using T = Compute<S>;
  using Row = Ar1Row<S>;
  using Carry = Ar1Carry<T>;
  static constexpr bool kCarried = true;
  static constexpr int64_t kTogether = kShort;

  static Carry aggregate(const Ar1& p, const Row& row, int64_t tile) {
    Carry carry;
    if (needs_u(p)) aggregate_u<S, logit_per_row>(p, row, tile, carry);
    if (needs_adjoint(p)) aggregate_adjoint<S, logit_per_row>(p, row, tile, carry);
    return carry;
  }
  static void link(const Ar1& p, const Row& row, Carry* carries) {
    link_u<S, logit_per_row>(p, row, carries);
    link_adjoint<S, logit_per_row>(p, row, carries);
  }

  // The gradients, from the end of the tile; sums Σ g √s u (log_var one number) and ∂a's (ρ one).
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry carry) {
    const int64_t begin = p.tiles.begin(tile), end = p.tiles.end(tile);
    if (!p.grad_z.data) {
      of_kl(p, row.index, begin, end);
      return {};
    }
    if constexpr (logit_per_row) return tile_of_row(p, row, begin, end, carry);
    else return tile_of_steps(p, row, begin, end, carry);
  }

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length);
    const double k = p.grad_per_row.data ? double(*p.grad_per_row.row<T>(row.index)) : 0.0;
    if (p.d_log_var && p.scale_per_row) {
      put<S>(p.d_log_var, row.index, of_log_var(s.a, k * d, double(row.expm1)));
    }
    if (p.d_rho_logit && logit_per_row) {
      put<S>(p.d_rho_logit, row.index, of_logit(s.b, k, d, double(row.c.rho)));
    }
  }

  static void together(const Ar1& p, int64_t first, int count) {
    constexpr int lanes = kLanes<T>;
    const int64_t d = p.tiles.length;
    const Ar1Rows<S> rows(p, first, count);
    const V<T> rho = rows.c.rho, sech = rows.c.sech;
    const bool wants_u = needs_u(p), scale_per_row = p.scale_per_row;
    const bool wants_steps = needs_steps(p);
    V<T> u[kShort], change[kShort], square[lanes];  // change: σ u_{j−1} − ρ ε_j
    V<T> rhos[kShort + 1], seches[kShort], logits[lanes];  // of the steps, where each has its own
    if (wants_u || wants_steps) {
      const ShortNoise<S> noise(p, first, count);
      const Rows rho_logit = p.rho_logit;
      Recurrence<T> recurrence{rho, sech};
      for_vectors<T, false>(0, d, [&](int64_t j, auto n) {
        for_rows<T>(square, count, [&](int r) { return noise.at(r, j, n); });
        transpose<T>(square);
        if constexpr (!logit_per_row) {
          for_rows<T>(logits, count, [&](int r) {
            return logits_at(rho_logit.row<S>(first + r), j, n);
          });
          transpose<T>(logits);
        }
        for (int i = 0; i < n; ++i) {
          if constexpr (!logit_per_row) {
            const Transition<T> c = Transition<T>::of(logits[i]);
            recurrence.rho = rhos[j + i] = c.rho;
            recurrence.sech = seches[j + i] = c.sech;
          }
          change[j + i] = recurrence.sech * recurrence.u - recurrence.rho * square[i];
          u[j + i] = recurrence(square[i], j + i);
        }
      });
      rhos[d] = V<T>{};
    }

    V<T> k = {};
    if (p.grad_per_row.data) {
      for (int r = 0; r < count; ++r) k[r] = *p.grad_per_row.row<T>(first + r);
    }
    const Rows mu = p.mu, log_var = p.log_var, grad = p.grad_z;
    S* const d_mu = row_of<S>(p.d_mu, first, d);
    S* const d_eps = row_of<S>(p.d_first, first, d);
    S* const d_log_var = scale_per_row ? nullptr : row_of<S>(p.d_log_var, first, d);
    S* const d_logits = logit_per_row ? nullptr : row_of<S>(p.d_rho_logit, first, d);
    V<T> adjoint = {}, sum_log_var = {}, sum_logit = {}, expm1[lanes], spread[lanes];
    if (!grad.data) {
      for (int r = 0; r < count; ++r) of_kl(p, first + r, 0, d);
    } else {
      for_vectors<T, true>(0, d, [&](int64_t j, auto n) {
        for_rows<T>(square, count, [&](int r) -> V<T> {
          const V<T> g = load(grad.row<S>(first + r) + j, n);
          if (d_mu) {
            store(d_mu + r * d + j, g + broadcast(k[r]) * load(mu.row<S>(first + r) + j, n), n);
          }
          if (scale_per_row) return broadcast(rows.s.scale[r]) * g;
          const Scale<T> s = Scale<T>::of(load(log_var.row<S>(first + r) + j, n));
          expm1[r] = s.expm1;
          return s.scale * g;
        });
        transpose<T>(square);
        for (int i = n - 1; i >= 0; --i) {
          const int64_t t = j + i;
          const V<T> driven = square[i];
          if constexpr (logit_per_row) {
            adjoint = driven + rho * adjoint;
            square[i] = t == 0 ? adjoint : sech * adjoint;
          } else if (wants_steps) {
            adjoint = driven + rhos[t + 1] * adjoint;
            square[i] = seches[t] * adjoint;
          }
          if (!wants_u) continue;
          spread[i] = driven * u[t];
          sum_log_var += spread[i];
          if constexpr (logit_per_row) {
            if (t > 0) sum_logit += square[i] * change[t];
          } else {
            logits[i] = t > 0 ? square[i] * change[t] + k * rhos[t] : V<T>{};
          }
        }
        if (d_eps) {
          transpose<T>(square);
          for (int r = 0; r < count; ++r) store(d_eps + r * d + j, square[r], n);
        }
        if (d_log_var) {
          for (int i = n; i < lanes; ++i) spread[i] = V<T>{};
          transpose<T>(spread);
          for (int r = 0; r < count; ++r) {
            store(d_log_var + r * d + j, of_log_var(spread[r], broadcast(k[r]), expm1[r]), n);
          }
        }
        if (d_logits) {
          for (int i = n; i < lanes; ++i) logits[i] = V<T>{};
          transpose<T>(logits);
          for (int r = 0; r < count; ++r) store(d_logits + r * d + j, logits[r], n);
        }
      });
    }
    if (p.d_log_var && scale_per_row) {
      store(row_of<S>(p.d_log_var, first, 1), of_log_var(sum_log_var, k * T(d), rows.s.expm1),
            count);
    }
    if (p.d_rho_logit && logit_per_row) {
      store(row_of<S>(p.d_rho_logit, first, 1), of_logit(sum_logit, k, T(d), rho), count);
    }
  }

 private:
  // What one row's gradients are made of and written to, whatever its ρ.
  struct Operands {
    const S *mu, *grad;
    S *d_mu, *d_eps, *d_log_var, *d_rho_logit;  // null: not asked for, or one number a row
    const V<T> k;

    Operands(const Ar1& p, int64_t row)
        : mu(p.mu.row<S>(row)),
          grad(p.grad_z.row<S>(row)),
          d_mu(row_of<S>(p.d_mu, row, p.tiles.length)),
          d_eps(row_of<S>(p.d_first, row, p.tiles.length)),
          d_log_var(p.scale_per_row ? nullptr : row_of<S>(p.d_log_var, row, p.tiles.length)),
          d_rho_logit(logit_per_row ? nullptr : row_of<S>(p.d_rho_logit, row, p.tiles.length)),
          k(broadcast(p.grad_per_row.data ? *p.grad_per_row.row<T>(row) : T(0))) {}
  };

  static Sums tile_of_row(const Ar1& p, const Row& row, int64_t begin, int64_t end, Carry carry) {
    constexpr int lanes = kLanes<T>;
    const Noise<S> noise(p, row.index, begin, end);
    const Innovation<T> innovation(row.c.sech);
    T buffer[lanes + kTile];  // u before the tile, u of the tile
    T* const u = buffer + lanes - begin;
    if (needs_u(p)) {
      u[begin - 1] = carry.u;
      RowScan<T, false> scan(row.c.rho, carry.u);
      for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
        store(u + j, scan(innovation(noise.at(j, n), j)));
      });
    }

    const Scales<S> scales(p, row);
    const Operands o(p, row.index);
    const bool sums_log_var = scales.per_row && p.d_log_var, sums_logit = p.d_rho_logit;
    const V<T> rho = broadcast(row.c.rho), sech = broadcast(row.c.sech);
    RowScan<T, true> scan(row.c.rho, carry.adjoint);
    V<T> sum_log_var = {}, sum_logit = {};
    for_vectors<T, true>(begin, end, [&](int64_t j, auto n) {
      const Scale<T> s = scales.at(j, n);
      const V<T> g = load(o.grad + j, n);
      const V<T> adjoint = scan(s.scale * g);
      if (o.d_mu) store(o.d_mu + j, g + o.k * load(o.mu + j, n), n);
      if (o.d_eps) store(o.d_eps + j, innovation(adjoint, j), n);
      const V<T> u_here = load(static_cast<const T*>(u) + j);
      if (sums_log_var) sum_log_var += first_lanes<T>(g * s.scale * u_here, n);
      if (o.d_log_var) store(o.d_log_var + j, of_log_var(g * s.scale * u_here, o.k, s.expm1), n);
      if (sums_logit) {
        // Not a load at j − 1: that would wait for two stores.
        const V<T> u_before = slide_up<T, 1>(u_here, broadcast(u[j - 1]));
        V<T> term = adjoint * sech * (sech * u_before - rho * noise.at(j, n));
        if (j == 0) term[0] = 0;
        sum_logit += first_lanes<T>(term, n);
      }
    });
    return {double(sum<T>(sum_log_var)), double(sum<T>(sum_logit))};
  }

  static Sums tile_of_steps(const Ar1& p, const Row& row, int64_t begin, int64_t end,
                            Carry carry) {
    constexpr int lanes = kLanes<T>;
    // Of each step u, ρ, σ and σ u_{j−1} − ρ ε_j; ρ of the one after the tile too.
    T u_of[kTile], rho_of[kTile + lanes], sech_of[kTile], change_of[kTile];
    T *const u = u_of - begin, *const rho = rho_of - begin;
    T *const sech = sech_of - begin, *const change = change_of - begin;
    const bool wants_u = needs_u(p), wants_steps = needs_steps(p);
    if (wants_u || wants_steps) {
      const Noise<S> noise(p, row.index, begin, end);
      const S* const logits = p.rho_logit.row<S>(row.index);
      for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
        const Transition<T> c = Transition<T>::of(logits_at(logits, j, n));
        store(rho + j, c.rho);
        store(sech + j, c.sech);
      });
      StepScan<T, false> scan(carry.u);
      for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
        const V<T> gate = load(static_cast<const T*>(rho) + j);
        const V<T> sigma = load(static_cast<const T*>(sech) + j);
        const V<T> eps = noise.at(j, n), before = scan.carry;
        const V<T> here = scan(gate, sigma * eps);
        store(u + j, here);
        store(change + j, sigma * slide_up<T, 1>(here, before) - gate * eps);
      });
      store(rho + end,
            Transition<T>::of(next_logits_at(logits, end - 1, 1, p.tiles.length)).rho);
    }

    const Scales<S> scales(p, row);
    const Operands o(p, row.index);
    const bool sums_log_var = scales.per_row && p.d_log_var;
    StepScan<T, true> scan(carry.adjoint);
    V<T> sum_log_var = {};
    for_vectors<T, true>(begin, end, [&](int64_t j, auto n) {
      const Scale<T> s = scales.at(j, n);
      const V<T> g = load(o.grad + j, n), driven = s.scale * g;
      if (o.d_mu) store(o.d_mu + j, g + o.k * load(o.mu + j, n), n);
      if (wants_u) {
        const V<T> term = driven * load(static_cast<const T*>(u) + j);
        if (sums_log_var) sum_log_var += first_lanes<T>(term, n);
        if (o.d_log_var) store(o.d_log_var + j, of_log_var(term, o.k, s.expm1), n);
      }
      if (wants_steps) {
        const V<T> adjoint = scan(load(static_cast<const T*>(rho) + j + 1), driven);
        const V<T> of_noise = load(static_cast<const T*>(sech) + j) * adjoint;
        if (o.d_eps) store(o.d_eps + j, of_noise, n);
        if (o.d_rho_logit) {
          V<T> term = of_noise * load(static_cast<const T*>(change) + j) +
                      o.k * load(static_cast<const T*>(rho) + j);
          if (j == 0) term[0] = 0;
          store(o.d_rho_logit + j, term, n);
        }
      }
    });
    return {double(sum<T>(sum_log_var)), 0.0};
  }

  // The gradients of the KL alone, which no λ is in, whatever the parameters hold.
  static void of_kl(const Ar1& p, int64_t row, int64_t begin, int64_t end) {
    const Operands o(p, row);
    const S *log_var = p.log_var.row<S>(row), *logits = p.rho_logit.row<S>(row);
    for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
      const V<T> zero = {};
      if (o.d_mu) store(o.d_mu + j, zero + o.k * load(o.mu + j, n), n);
      if (o.d_eps) store(o.d_eps + j, zero, n);
      if (o.d_log_var) {
        const V<T> expm1 = Scale<T>::of(load(log_var + j, n)).expm1;
        store(o.d_log_var + j, of_log_var(zero, o.k, expm1), n);
      }
      if (o.d_rho_logit) {
        V<T> term = o.k * Transition<T>::of(logits_at(logits, j, n)).rho;
        if (j == 0) term[0] = 0;
        store(o.d_rho_logit + j, term, n);
      }
    });
  }

  // ½ Σ g √s u + ½ k (s − 1), for one element or the sum over a row
  template <typename X>
  static RHOVAE_INLINE X of_log_var(X sum, X k, X expm1) {
    if constexpr (std::is_same_v<X, double>) return 0.5 * (sum + k * expm1);
    else return T(0.5) * (sum + k * expm1);
  }

  // Σ_{j≥2} λ_j σ (σ u_{j−1} − ρ ε_j) + k (d−1) ρ
  template <typename X, typename D>
  static RHOVAE_INLINE X of_logit(X sum, X k, D d, X rho) {
    return sum + k * std::max(d - 1, D(0)) * rho;
  }

  static bool needs_u(const Ar1& p) { return p.grad_z.data && (p.d_log_var || p.d_rho_logit); }
  static bool needs_adjoint(const Ar1& p) { return p.grad_z.data && (p.d_first || p.d_rho_logit); }
  // Where each step has its own ρ, and the adjoint is asked for.
  static bool needs_steps(const Ar1& p) { return !logit_per_row && needs_adjoint(p); }
};

// u = (z − μ)/√s of a tile and one element on either side, and the ε it whitens to; both indexed
// by the element of the row.
template <typename S, bool logit_per_row>
struct Whitened {
  using T = Compute<S>;
  static constexpr int kPad = kLanes<T>;
  T u_buffer[kTile + 3 * kPad], eps_buffer[kTile + 2 * kPad];
  T *u, *eps;

  // Where each step has its own ρ, calls each(j, transition, cosh a_j, ε_j, u_{j−1}) on the way.
  template <typename F>
  Whitened(const Ar1& p, const Ar1Row<S>& row, int64_t tile, const F& each) {
    const int64_t d = p.tiles.length, begin = p.tiles.begin(tile);
    const int64_t end = p.tiles.end(tile), with_next = std::min(d, end + 1);
    u = u_buffer + kPad - begin;
    eps = eps_buffer - begin;
    const S* z = p.first.row<S>(row.index);
    const S* mu = p.mu.row<S>(row.index);
    const S* logits = p.rho_logit.row<S>(row.index);
    const Scales<S> scales(p, row);
    const V<T> sign = broadcast(row.c.sign), cosh = broadcast(row.c.cosh);
    const V<T> one_minus_abs_rho = broadcast(row.c.one_minus_abs_rho);
    const auto u_at = [&](int64_t j, auto n) -> V<T> {
      return (load(z + j, n) - load(mu + j, n)) * scales.inverse(j, n);
    };
    u[begin - 1] = begin > 0 ? u_at(begin - 1, 1)[0] : T(0);
    for_vectors<T, false>(begin, with_next,
                          [&](int64_t j, auto n) { store(u + j, u_at(j, n)); });
    for_vectors<T, false>(begin, with_next, [&](int64_t j, auto n) {
      const V<T> here = load(static_cast<const T*>(u) + j);
      const V<T> before = load(static_cast<const T*>(u) + j - 1);
      if constexpr (logit_per_row) {
        const V<T> previous = before * sign;
        V<T> e = cosh * ((here - previous) + one_minus_abs_rho * previous);
        if (j == 0) e[0] = here[0];
        store(eps + j, e);
      } else {
        const Transition<T> c = Transition<T>::of(logits_at(logits, j, n));
        const V<T> previous = c.signed_as_a(before), grown = c.cosh();
        const V<T> e = grown * ((here - previous) + c.one_minus_abs_rho * previous);
        store(eps + j, e);
        each(j, c, grown, e, before);
      }
    });
    if (with_next == end) eps[end] = 0;
  }
};

// Nothing travels between the tiles of a density.
template <typename S>
struct LogProbBase {
  using Storage = S;
  using T = Compute<S>;
  using Row = Ar1Row<S>;
  using Carry = Ar1Carry<T>;
  static constexpr bool kCarried = false;
  static constexpr int64_t kTogether = 0;
  static Carry aggregate(const Ar1&, const Row&, int64_t) { return {}; }
  static void link(const Ar1&, const Row&, Carry*) {}
};

template <typename S, bool logit_per_row>
struct LogProb : LogProbBase<S> {
  using typename LogProbBase<S>::T;
  using typename LogProbBase<S>::Row;
  using typename LogProbBase<S>::Carry;

  // Sums what log det has of steps, Σ log s_j and Σ log(1−ρ_j²), and ‖ε‖².
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry) {
    const int64_t end = p.tiles.end(tile);
    LogSech<T> log_sech;
    const Whitened<S, logit_per_row> w(
        p, row, tile, [&](int64_t j, const Transition<T>& c, V<T>, V<T>, V<T>) {
          if (j < end) log_sech.add(c);
        });
    const S* log_var = p.scale_per_row ? nullptr : p.log_var.row<S>(row.index);
    V<T> log_s = {}, squares = {};
    for_vectors<T, false>(p.tiles.begin(tile), end, [&](int64_t j, auto n) {
      const V<T> e = load(static_cast<const T*>(w.eps) + j, n);
      squares += e * e;
      if (log_var) log_s += load(log_var + j, n);
    });
    const double of_steps = logit_per_row ? 0.0 : 2 * double(sum<T>(log_sech.sum()));
    return {double(sum<T>(log_s)) + of_steps, double(sum<T>(squares))};
  }

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length);
    if (p.scale_per_row) s.a += d * double(row.log_var);
    if (logit_per_row) s.a += std::max(d - 1, 0.0) * double(row.c.log_one_minus_rho2);
    put<T>(p.per_row_out, row.index, -0.5 * (d * kLog2Pi + s.a + s.b));
  }
};

template <typename S, bool logit_per_row>
struct LogProbBackward : LogProbBase<S> {
  using typename LogProbBase<S>::T;
  using typename LogProbBase<S>::Row;
  using typename LogProbBase<S>::Carry;

  // The gradients; sums Σ u γ (log_var one number) and Σ ε_j (ρ ε_j − σ u_{j−1}) (ρ one).
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry) {
    const int64_t d = p.tiles.length, begin = p.tiles.begin(tile), end = p.tiles.end(tile);
    constexpr int64_t size = kTile + kLanes<T>;
    // Where each step has its own ρ: cosh a_j ε_j, ρ_j times it, and ρ_j − ε_j (ρ_j ε_j − σ_j u_{j−1}).
    T driven_of[size], led_of[size], logit_of[size];
    T *const driven = driven_of - begin, *const led = led_of - begin;
    T *const of_logit = logit_of - begin;
    const Whitened<S, logit_per_row> w(
        p, row, tile, [&](int64_t j, const Transition<T>& c, V<T> grown, V<T> e, V<T> before) {
          store(driven + j, grown * e);
          store(led + j, c.rho * grown * e);
          store(of_logit + j, c.rho - e * (c.rho * e - c.sech * before));
        });
    if (end == d) led[end] = 0;
    const T* const eps = w.eps;
    const T* const u_at = w.u;
    const Scales<S> scales(p, row);
    S* d_z = row_of<S>(p.d_first, row.index, d);
    S* d_mu = row_of<S>(p.d_mu, row.index, d);
    S* d_log_var = scales.per_row ? nullptr : row_of<S>(p.d_log_var, row.index, d);
    S* d_rho_logit = logit_per_row ? nullptr : row_of<S>(p.d_rho_logit, row.index, d);
    const bool sums_log_var = scales.per_row && p.d_log_var;
    const bool sums_logit = logit_per_row && p.d_rho_logit;
    const V<T> k = broadcast(*p.grad_per_row.row<T>(row.index));
    const V<T> rho = broadcast(row.c.rho), sech = broadcast(row.c.sech);
    const V<T> cosh = broadcast(row.c.cosh);
    V<T> sum_log_var = {}, sum_logit = {};
    for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
      const V<T> e = load(eps + j, n), e_next = load(eps + j + 1, n);
      const V<T> u = load(u_at + j, n), u_before = load(u_at + j - 1, n);
      V<T> gamma;
      if constexpr (logit_per_row) {
        gamma = cosh * (rho * e_next - e);
        if (j == 0) gamma[0] = cosh[0] * rho[0] * e_next[0] - e[0];
      } else {
        gamma = load(static_cast<const T*>(led) + j + 1, n) -
                load(static_cast<const T*>(driven) + j, n);
      }
      if (d_z || d_mu) {
        const V<T> g = k * gamma * scales.inverse(j, n);
        if (d_z) store(d_z + j, g, n);
        if (d_mu) store(d_mu + j, -g, n);
      }
      if (sums_log_var) sum_log_var += u * gamma;
      if (d_log_var) store(d_log_var + j, T(-0.5) * k * (u * gamma + T(1)), n);
      if (sums_logit) {
        V<T> term = e * (rho * e - sech * u_before);
        if (j == 0) term[0] = 0;
        sum_logit += term;
      }
      if (d_rho_logit) {
        V<T> term = k * load(static_cast<const T*>(of_logit) + j, n);
        if (j == 0) term[0] = 0;
        store(d_rho_logit + j, term, n);
      }
    });
    return {double(sum<T>(sum_log_var)), double(sum<T>(sum_logit))};
  }

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length), k = double(*p.grad_per_row.row<T>(row.index));
    if (p.d_log_var && p.scale_per_row) put<S>(p.d_log_var, row.index, -0.5 * k * (d + s.a));
    if (p.d_rho_logit && logit_per_row) {
      put<S>(p.d_rho_logit, row.index, k * (std::max(d - 1, 0.0) * double(row.c.rho) - s.b));
    }
  }
};

}  // namespace
}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
