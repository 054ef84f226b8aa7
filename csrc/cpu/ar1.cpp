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

namespace rhovae {
namespace {

// The operands of one call, and what keeps their memory alive.
struct Call : Ar1 {
  std::vector<Tensor> keep;

  Call(const Tensor& mu_, const Tensor& log_var_, const Tensor& rho_logit_) {
    const int64_t d = mu_.size(mu_.dim() - 1);
    tiles = {row_count(mu_), d};
    scale_per_row = log_var_.size(log_var_.dim() - 1) == 1;
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
  with_storage(mu.scalar_type(), [&](auto s) {
    RHOVAE_RUN(static_cast<const Ar1&>(call), Reparam<decltype(s)>);
  });
  return {z, kl};
}

Two ar1_reparam(const Tensor& mu, const Tensor& log_var, const Tensor& rho_logit,
                const Tensor& eps) {
  Call call(mu, log_var, rho_logit);
  call.first = rows_of(eps, 1, call.keep);
  return reparam(call, mu);
}

Three ar1_reparam_rng(const Tensor& mu, const Tensor& log_var, const Tensor& rho_logit,
                      const Tensor& rng_state) {
  Call call(mu, log_var, rho_logit);
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
  with_storage(mu.scalar_type(), [&](auto s) {
    RHOVAE_RUN(static_cast<const Ar1&>(call), ReparamBackward<decltype(s)>);
  });
  return {d_mu, d_log_var, d_rho_logit};
}

Four ar1_reparam_backward(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                          const Tensor& mu, const Tensor& log_var, const Tensor& rho_logit,
                          const Tensor& eps, const std::vector<bool>& needs) {
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
  Call call(mu, log_var, rho_logit);
  call.upstream(grad_z, grad_kl);
  const Tensor state = torch::stable::contiguous(rng_used);
  call.rng_state = static_cast<const int64_t*>(state.const_data_ptr());
  return reparam_backward(call, mu, log_var, rho_logit, needs);
}

Tensor ar1_log_prob(const Tensor& z, const Tensor& mu, const Tensor& log_var,
                    const Tensor& rho_logit) {
  Call call(mu, log_var, rho_logit);
  call.first = rows_of(z, 1, call.keep);
  Tensor log_q = empty_per_row(z);
  call.per_row_out = Call::memory(log_q);
  with_storage(z.scalar_type(), [&](auto s) {
    RHOVAE_RUN(static_cast<const Ar1&>(call), LogProb<decltype(s)>);
  });
  return log_q;
}

Four ar1_log_prob_backward(const Tensor& grad, const Tensor& z, const Tensor& mu,
                           const Tensor& log_var, const Tensor& rho_logit,
                           const std::vector<bool>& needs) {
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
  with_storage(z.scalar_type(), [&](auto s) {
    RHOVAE_RUN(static_cast<const Ar1&>(call), LogProbBackward<decltype(s)>);
  });
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

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// log(1+x) for x in [0, 1], as 2 artanh(x/(2+x)) by its series.
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

// The scalars of one row.
template <typename S>
struct Ar1Row {
  using T = Compute<S>;
  int64_t index;
  Correlation<T> c;
  T scale, expm1, log_var;  // √s, s − 1 and log s, where log_var is one number

  static void of(const Ar1& p, int64_t first, int count, Ar1Row* rows) {
    for (int64_t i = 0; i < count; ++i) {
      rows[i].index = first + i;
      rows[i].log_var = p.scale_per_row ? number(p.log_var.row<S>(first + i)) : T(0);
    }
    if constexpr (sizeof(T) == sizeof(double)) {
      for (int i = 0; i < count; ++i) {
        rows[i].c = Correlation<T>::of(*p.rho_logit.row<S>(first + i));
        rows[i].scale = std::exp(rows[i].log_var / 2);
        rows[i].expm1 = std::expm1(rows[i].log_var);
      }
    } else {
      constexpr int lanes = kLanes<T>;
      for (int done = 0; done < count; done += lanes) {
        const int n = std::min(lanes, count - done);
        V<T> a = {}, log_var = {};
        for (int i = 0; i < n; ++i) {
          a[i] = number(p.rho_logit.row<S>(first + done + i));
          log_var[i] = rows[done + i].log_var;
        }
        const Correlation<V<T>> c = correlations(a);
        const Exponential<T> s = exponential(log_var * T(0.5));
        const V<T> expm1 = s.expm1 * (s.expm1 + 2);
        for (int i = 0; i < n; ++i) {
          rows[done + i].c = {c.sign[i], c.rho[i],  c.sech[i],
                              c.cosh[i], c.log_one_minus_rho2[i], c.one_minus_abs_rho[i]};
          rows[done + i].scale = s.exp[i];
          rows[done + i].expm1 = expm1[i];
        }
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
template <typename T>
struct Scale {
  V<T> scale, expm1, log_var;
};

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
    if (per_row) return of_row;
    const V<T> lv = load(log_var + j, n);
    const Exponential<T> e = exponential(lv * T(0.5));
    return {e.exp, e.expm1 * (e.expm1 + 2), lv};
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

// A row of an output, null where the output is.
template <typename S>
S* row_of(void* out, int64_t row, int64_t length) {
  return out ? static_cast<S*>(out) + row * length : nullptr;
}

template <typename T>
struct Ar1Carry {
  T u = 0, adjoint = 0;
};

// ρ over a whole tile.
template <typename T>
T tile_gate(T rho) {
  T gate = rho;
  for (int64_t steps = 1; steps < kTile; steps *= 2) gate *= gate;
  return gate;
}

// u after a tile that starts from u = 0.
template <typename S>
Compute<S> aggregate_u(const Ar1& p, const Ar1Row<S>& row, int64_t tile) {
  using T = Compute<S>;
  const int64_t begin = p.tiles.begin(tile), end = p.tiles.end(tile);
  const Noise<S> noise(p, row.index, begin, end);
  const Innovation<T> innovation(row.c.sech);
  RowAggregate<T, false> aggregate(row.c.rho);
  for_vectors<T, false>(begin, end,
                        [&](int64_t j, auto n) { aggregate(innovation(noise.at(j, n), j)); });
  return aggregate.value();
}

// λ before a tile, backwards, that starts from λ = 0.
template <typename S>
Compute<S> aggregate_adjoint(const Ar1& p, const Ar1Row<S>& row, int64_t tile) {
  using T = Compute<S>;
  if (!p.grad_z.data) return 0;
  const S* grad = p.grad_z.row<S>(row.index);
  const Scales<S> scales(p, row);
  RowAggregate<T, true> aggregate(row.c.rho);
  for_vectors<T, true>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
    aggregate(scales.at(j, n).scale * load(grad + j, n));
  });
  return aggregate.value();
}

template <typename S>
void link_u(const Ar1& p, const Ar1Row<S>& row, Ar1Carry<Compute<S>>* carries) {
  using T = Compute<S>;
  const T gate = tile_gate(row.c.rho);
  T carry = 0;
  for (int64_t t = 0; t < p.tiles.per_row(); ++t) {
    carry = std::exchange(carries[t].u, carry) + gate * carry;
  }
}

template <typename S>
void link_adjoint(const Ar1& p, const Ar1Row<S>& row, Ar1Carry<Compute<S>>* carries) {
  using T = Compute<S>;
  const T gate = tile_gate(row.c.rho);
  T carry = 0;  // the last tile may be short: nothing enters it
  for (int64_t t = p.tiles.per_row() - 1; t >= 0; --t) {
    carry = std::exchange(carries[t].adjoint, carry) + gate * carry;
  }
}

template <typename S>
struct Reparam {
  using Storage = S;
  using T = Compute<S>;
  using Row = Ar1Row<S>;
  using Carry = Ar1Carry<T>;
  static constexpr bool kCarried = true;

  static Carry aggregate(const Ar1& p, const Row& row, int64_t tile) {
    return {aggregate_u(p, row, tile), T(0)};
  }
  static void link(const Ar1& p, const Row& row, Carry* carries) { link_u(p, row, carries); }

  // z; sums ‖μ‖² and Σ(s − 1 − log s).
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry carry) {
    const int64_t begin = p.tiles.begin(tile), end = p.tiles.end(tile);
    const Noise<S> noise(p, row.index, begin, end);
    const S* mu = p.mu.row<S>(row.index);
    S* z = static_cast<S*>(p.out) + row.index * p.tiles.length;
    const Scales<S> scales(p, row);
    const Innovation<T> innovation(row.c.sech);
    RowScan<T, false> scan(row.c.rho, carry.u);
    V<T> mu2 = {}, variance = {};
    for_vectors<T, false>(begin, end, [&](int64_t j, auto n) {
      const Scale<T> s = scales.at(j, n);
      const V<T> m = load(mu + j, n);
      store(z + j, m + s.scale * scan(innovation(noise.at(j, n), j)), n);
      mu2 += m * m;
      // Lanes past the end hold log s = 0, which adds nothing.
      if (!scales.per_row) variance += s.expm1 - s.log_var;
    });
    return {double(sum<T>(mu2)), double(sum<T>(variance))};
  }

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length);
    if (p.scale_per_row) s.b = d * (double(row.expm1) - double(row.log_var));
    const double log_det = std::max(d - 1, 0.0) * double(row.c.log_one_minus_rho2);
    put<T>(p.per_row_out, row.index, 0.5 * (s.a + s.b - log_det));
  }
};

template <typename S>
struct ReparamBackward {
  using Storage = S;
  using T = Compute<S>;
  using Row = Ar1Row<S>;
  using Carry = Ar1Carry<T>;
  static constexpr bool kCarried = true;

  static Carry aggregate(const Ar1& p, const Row& row, int64_t tile) {
    return {needs_u(p) ? aggregate_u(p, row, tile) : T(0), aggregate_adjoint(p, row, tile)};
  }
  static void link(const Ar1& p, const Row& row, Carry* carries) {
    link_u(p, row, carries);
    link_adjoint(p, row, carries);
  }

  // The gradients, from the end of the tile; sums Σ g √s u (log_var one number) and ∂a's.
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry carry) {
    constexpr int lanes = kLanes<T>;
    const int64_t d = p.tiles.length, begin = p.tiles.begin(tile), end = p.tiles.end(tile);
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
    const S* mu = p.mu.row<S>(row.index);
    const S* grad = p.grad_z.data ? p.grad_z.row<S>(row.index) : nullptr;
    S* d_mu = row_of<S>(p.d_mu, row.index, d);
    S* d_eps = row_of<S>(p.d_first, row.index, d);
    S* d_log_var = scales.per_row ? nullptr : row_of<S>(p.d_log_var, row.index, d);
    const bool sums_log_var = scales.per_row && p.d_log_var, sums_logit = p.d_rho_logit;
    const V<T> k = broadcast(p.grad_per_row.data ? *p.grad_per_row.row<T>(row.index) : T(0));
    const V<T> rho = broadcast(row.c.rho), sech = broadcast(row.c.sech);
    RowScan<T, true> scan(row.c.rho, carry.adjoint);
    V<T> sum_log_var = {}, sum_logit = {};
    for_vectors<T, true>(begin, end, [&](int64_t j, auto n) {
      const Scale<T> s = scales.at(j, n);
      const V<T> g = grad ? load(grad + j, n) : V<T>{};
      const V<T> adjoint = scan(s.scale * g);
      if (d_mu) store(d_mu + j, g + k * load(mu + j, n), n);
      if (d_eps) store(d_eps + j, innovation(adjoint, j), n);
      const V<T> u_here = load(static_cast<const T*>(u) + j);
      if (sums_log_var) sum_log_var += first_lanes<T>(g * s.scale * u_here, n);
      if (d_log_var) store(d_log_var + j, T(0.5) * (g * s.scale * u_here + k * s.expm1), n);
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

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length);
    const double k = p.grad_per_row.data ? double(*p.grad_per_row.row<T>(row.index)) : 0.0;
    if (p.d_log_var && p.scale_per_row) {
      put<S>(p.d_log_var, row.index, 0.5 * (s.a + k * d * double(row.expm1)));
    }
    if (p.d_rho_logit) {
      put<S>(p.d_rho_logit, row.index, s.b + k * std::max(d - 1, 0.0) * double(row.c.rho));
    }
  }

 private:
  static bool needs_u(const Ar1& p) { return p.d_log_var || p.d_rho_logit; }
};

// u = (z − μ)/√s of a tile and one element on either side, and the ε it whitens to; both indexed
// by the element of the row.
template <typename S>
struct Whitened {
  using T = Compute<S>;
  static constexpr int kPad = kLanes<T>;
  T u_buffer[kTile + 3 * kPad], eps_buffer[kTile + 2 * kPad];
  T *u, *eps;

  Whitened(const Ar1& p, const Ar1Row<S>& row, int64_t tile) {
    const int64_t d = p.tiles.length, begin = p.tiles.begin(tile);
    const int64_t end = p.tiles.end(tile), with_next = std::min(d, end + 1);
    u = u_buffer + kPad - begin;
    eps = eps_buffer - begin;
    const S* z = p.first.row<S>(row.index);
    const S* mu = p.mu.row<S>(row.index);
    const Scales<S> scales(p, row);
    const V<T> sign = broadcast(row.c.sign), cosh = broadcast(row.c.cosh);
    const V<T> one_minus_abs_rho = broadcast(row.c.one_minus_abs_rho);
    const auto u_at = [&](int64_t j, auto n) -> V<T> {
      return (load(z + j, n) - load(mu + j, n)) * scales.inverse(j, n);
    };
    u[begin - 1] = begin > 0 ? u_at(begin - 1, 1)[0] : T(0);
    for_vectors<T, false>(begin, with_next,
                          [&](int64_t j, auto n) { store(u + j, u_at(j, n)); });
    for_vectors<T, false>(begin, with_next, [&](int64_t j, auto) {
      const V<T> here = load(static_cast<const T*>(u) + j);
      const V<T> previous = load(static_cast<const T*>(u) + j - 1) * sign;
      V<T> e = cosh * ((here - previous) + one_minus_abs_rho * previous);
      if (j == 0) e[0] = here[0];
      store(eps + j, e);
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
  static Carry aggregate(const Ar1&, const Row&, int64_t) { return {}; }
  static void link(const Ar1&, const Row&, Carry*) {}
};

template <typename S>
struct LogProb : LogProbBase<S> {
  using typename LogProbBase<S>::T;
  using typename LogProbBase<S>::Row;
  using typename LogProbBase<S>::Carry;

  // Sums Σ log s and ‖ε‖².
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry) {
    const Whitened<S> w(p, row, tile);
    const S* log_var = p.scale_per_row ? nullptr : p.log_var.row<S>(row.index);
    V<T> log_s = {}, squares = {};
    for_vectors<T, false>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const V<T> e = load(static_cast<const T*>(w.eps) + j, n);
      squares += e * e;
      if (log_var) log_s += load(log_var + j, n);
    });
    return {double(sum<T>(log_s)), double(sum<T>(squares))};
  }

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length);
    if (p.scale_per_row) s.a = d * double(row.log_var);
    const double log_det = s.a + std::max(d - 1, 0.0) * double(row.c.log_one_minus_rho2);
    put<T>(p.per_row_out, row.index, -0.5 * (d * kLog2Pi + log_det + s.b));
  }
};

template <typename S>
struct LogProbBackward : LogProbBase<S> {
  using typename LogProbBase<S>::T;
  using typename LogProbBase<S>::Row;
  using typename LogProbBase<S>::Carry;

  // The gradients; sums Σ u γ (log_var one number) and Σ ε_j (ρ ε_j − σ u_{j−1}).
  static Sums tile(const Ar1& p, const Row& row, int64_t tile, Carry) {
    const int64_t d = p.tiles.length;
    const Whitened<S> w(p, row, tile);
    const T* const eps = w.eps;
    const T* const u_at = w.u;
    const Scales<S> scales(p, row);
    S* d_z = row_of<S>(p.d_first, row.index, d);
    S* d_mu = row_of<S>(p.d_mu, row.index, d);
    S* d_log_var = scales.per_row ? nullptr : row_of<S>(p.d_log_var, row.index, d);
    const bool sums_log_var = scales.per_row && p.d_log_var, sums_logit = p.d_rho_logit;
    const V<T> k = broadcast(*p.grad_per_row.row<T>(row.index));
    const V<T> rho = broadcast(row.c.rho), sech = broadcast(row.c.sech);
    const V<T> cosh = broadcast(row.c.cosh);
    V<T> sum_log_var = {}, sum_logit = {};
    for_vectors<T, false>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const V<T> e = load(eps + j, n), e_next = load(eps + j + 1, n);
      const V<T> u = load(u_at + j, n), u_before = load(u_at + j - 1, n);
      V<T> gamma = cosh * (rho * e_next - e);
      if (j == 0) gamma[0] = cosh[0] * rho[0] * e_next[0] - e[0];
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
    });
    return {double(sum<T>(sum_log_var)), double(sum<T>(sum_logit))};
  }

  static void finish(const Ar1& p, const Row& row, Sums s) {
    const double d = double(p.tiles.length), k = double(*p.grad_per_row.row<T>(row.index));
    if (p.d_log_var && p.scale_per_row) put<S>(p.d_log_var, row.index, -0.5 * k * (d + s.a));
    if (p.d_rho_logit) {
      put<S>(p.d_rho_logit, row.index, k * (std::max(d - 1, 0.0) * double(row.c.rho) - s.b));
    }
  }
};

}  // namespace
}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
