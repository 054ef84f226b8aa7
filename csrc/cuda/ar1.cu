// The AR(1) Gaussian N(μ, D R D) on CUDA: R[i,j] = ρ^|i−j|, D = diag(√s_1 … √s_d), ρ = tanh a.
//
// The letters are those of python_ref/ar1.py: u is the unit-variance sequence, σ = sech a, λ the
// adjoint of u, g and k the gradients that come in for z and for the row's number. Bytes are the
// limit: forward reads μ, ε and writes z, backward reads g, μ, ε and writes ∂μ; where ε is drawn,
// it is drawn again and never stored.

#include <tuple>

#include "../philox.h"
#include "group.cuh"

namespace rhovae::cuda {
namespace {

// What all kernels here take. log_var is per element, or one per row (`shared_log_var`).
template <typename S>
struct Inputs {
  Rows<const S> mu, log_var, rho_logit;
  bool shared_log_var = false;
  Plan plan;
};

// Where ε comes from: memory, or Philox.
template <typename S>
struct Noise {
  Rows<const S> eps;
  const int64_t* rng_state = nullptr;
};

// A group's row, and what the formulas need of its a.
template <typename S>
struct Row {
  using T = Compute<S>;
  Group group;
  Correlation<T> c;
  int64_t index;
  int64_t d;  // 0 in a group that has no row: it then goes along with every barrier, and masks all
  int first_tile, end_tile;
  T gate;  // of a chunk: ρ^E

  __device__ __forceinline__ explicit Row(const Inputs<S>& in)
      : group(in.plan), index(group.row()) {
    const bool exists = index < in.plan.rows;
    d = exists ? in.plan.length : 0;
    c = Correlation<T>::of(exists ? T(in.rho_logit.at(index, 0)) : T(0));
    gate = c.rho;
#pragma unroll
    for (int reach = 1; reach < kChunk<S>; reach *= 2) gate *= gate;
    first_tile = blockIdx.y * in.plan.tiles_per_range;
    end_tile = min(first_tile + in.plan.tiles_per_range, in.plan.tiles);
  }

  __device__ bool exists(const Inputs<S>& in) const { return index < in.plan.rows; }

  // The first of this lane's elements in a tile.
  __device__ int64_t element(int tile) const {
    return (int64_t(tile) * group.lanes() + group.position()) * kChunk<S>;
  }

  // How many of a lane's elements the row has.
  __device__ int count(int64_t first) const { return count_in_row<S>(first, d); }

  // ρ to the length of a range.
  __device__ T range_gate(const Plan& plan) const {
    return power(gate, int64_t(plan.tiles_per_range) << plan.log2_lanes);
  }

  // (d−1), or 0 where d is 0.
  __device__ double transitions() const { return double(d > 0 ? d - 1 : 0); }
};

// log s_j of a lane's elements, where each has its own; 0 in padding.
template <typename S>
__device__ __forceinline__ void load_log_var(const Inputs<S>& in, const Row<S>& row, int64_t first,
                                             Compute<S> (&log_var)[kChunk<S>]) {
  load(in.log_var, row.index, first, row.count(first), log_var);
}

// log s of a row whose elements share it, else 0.
template <typename S>
__device__ __forceinline__ Compute<S> load_shared_log_var(const Inputs<S>& in, const Row<S>& row) {
  using T = Compute<S>;
  return in.shared_log_var && row.exists(in) ? T(in.log_var.at(row.index, 0)) : T(0);
}

template <typename S, bool kDraw>
__device__ __forceinline__ void load_noise(const Noise<S>& noise, const Row<S>& row, int64_t first,
                                           Compute<S> (&eps)[kChunk<S>]) {
  using T = Compute<S>;
  if constexpr (kDraw) {
    constexpr int N = kNormalsPerBlock<T>;
    const int64_t seed = noise.rng_state[0], offset = noise.rng_state[1];
#pragma unroll
    for (int e = 0; e < kChunk<S>; e += N) {
      normal_block(seed, offset, uint32_t(row.index), uint32_t((first + e) / N), eps + e);
    }
    // Padding is token 0.
    const int count = row.count(first);
#pragma unroll
    for (int e = 0; e < kChunk<S>; ++e) {
      if (e >= count) eps[e] = T(0);
    }
  } else {
    load(noise.eps, row.index, first, row.count(first), eps);
  }
}

// ε_1, σ ε_2, …, σ ε_d: what drives u_j = ρ u_{j−1} + σ ε_j. Element e of a chunk that starts at
// `first`: the row's first can only be a chunk's first.
template <typename T>
__device__ __forceinline__ T innovation(const Correlation<T>& c, int64_t first, int e, T eps) {
  return e == 0 && first == 0 ? eps : c.sech * eps;
}

// u after a lane's chunk, u before it being 0.
template <typename S>
__device__ __forceinline__ Compute<S> scan_chunk(const Row<S>& row, int64_t first,
                                                 const Compute<S> (&eps)[kChunk<S>]) {
  Compute<S> u = 0;
#pragma unroll
  for (int e = 0; e < kChunk<S>; ++e) u = row.c.rho * u + innovation(row.c, first, e, eps[e]);
  return u;
}

// λ at the start of a lane's chunk, λ after it being 0.
template <typename S>
__device__ __forceinline__ Compute<S> scan_adjoint_chunk(const Row<S>& row,
                                                         const Compute<S> (&token)[kChunk<S>]) {
  Compute<S> adjoint = 0;
#pragma unroll
  for (int e = kChunk<S> - 1; e >= 0; --e) adjoint = row.c.rho * adjoint + token[e];
  return adjoint;
}

// √s g of a lane's elements.
template <typename S>
__device__ __forceinline__ void load_tokens(const Inputs<S>& in, const Rows<const S>& grad_z,
                                            const Row<S>& row, int64_t first,
                                            Compute<S> shared_scale,
                                            Compute<S> (&token)[kChunk<S>]) {
  using T = Compute<S>;
  load(grad_z, row.index, first, row.count(first), token);
  if (in.shared_log_var) {
#pragma unroll
    for (int e = 0; e < kChunk<S>; ++e) token[e] *= shared_scale;
  } else {
    T log_var[kChunk<S>];
    load_log_var(in, row, first, log_var);
#pragma unroll
    for (int e = 0; e < kChunk<S>; ++e) token[e] *= std::exp(T(0.5) * log_var[e]);
  }
}

// First launch over rows that are split: each range's u from 0 on, and its λ from 0 back.
template <typename S>
struct Aggregates {
  Inputs<S> in;
  Noise<S> noise;
  Rows<const S> grad_z;
  Compute<S>* u = nullptr;        // (rows, ranges), or none wanted
  Compute<S>* adjoint = nullptr;  // (rows, ranges), or none wanted
};

template <typename S, bool kDraw>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks) ar1_aggregates(Aggregates<S> p) {
  using T = Compute<S>;
  Row<S> row(p.in);
  const int64_t slot = row.index * p.in.plan.ranges + blockIdx.y;
  T values[kChunk<S>];
  if (p.u) {
    T u = 0;
    for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
      const int64_t first = row.element(tile);
      load_noise<S, kDraw>(p.noise, row, first, values);
      row.group.template scan<false>(scan_chunk(row, first, values), row.gate, u);
    }
    if (row.group.is_leader()) p.u[slot] = u;
  }
  if (p.adjoint) {
    const T scale = std::exp(T(0.5) * load_shared_log_var(p.in, row));
    T adjoint = 0;
    for (int tile = row.end_tile - 1; tile >= row.first_tile; --tile) {
      load_tokens(p.in, p.grad_z, row, row.element(tile), scale, values);
      row.group.template scan<true>(scan_adjoint_chunk(row, values), row.gate, adjoint);
    }
    if (row.group.is_leader()) p.adjoint[slot] = adjoint;
  }
}

// u that enters this block's range.
template <typename S>
__device__ Compute<S> u_into_range(Row<S>& row, const Plan& plan, const Compute<S>* aggregates) {
  if (plan.ranges == 1) return Compute<S>(0);
  return carry_of(row.group, aggregates + row.index * plan.ranges, 1, blockIdx.y,
                  row.range_gate(plan));
}

// λ that enters it from behind.
template <typename S>
__device__ Compute<S> adjoint_into_range(Row<S>& row, const Plan& plan,
                                         const Compute<S>* aggregates) {
  if (plan.ranges == 1) return Compute<S>(0);
  return carry_of(row.group, aggregates + row.index * plan.ranges + plan.ranges - 1, -1,
                  plan.ranges - 1 - int64_t(blockIdx.y), row.range_gate(plan));
}

template <typename S>
struct Reparam {
  Inputs<S> in;
  Noise<S> noise;
  const Compute<S>* u_aggregates = nullptr;
  Rows<S> z;
  RowSum<Compute<S>> kl;
  int64_t* rng_used = nullptr;
};

// u_1 = ε_1; u_j = ρ u_{j−1} + σ ε_j; z = μ + √s ⊙ u
// KL = ½[‖μ‖² + Σ(s_j − 1 − log s_j) − (d−1) log(1−ρ²)]
template <typename S, bool kDraw>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks) ar1_reparam_kernel(Reparam<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  if (kDraw && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < 2) {
    p.rng_used[threadIdx.x] = p.noise.rng_state[threadIdx.x];
  }
  Row<S> row(p.in);
  const T row_log_var = load_shared_log_var(p.in, row);
  const T row_scale = std::exp(T(0.5) * row_log_var);
  T carry = u_into_range(row, p.in.plan, p.u_aggregates);
  double sum = 0;
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t first = row.element(tile);
    T eps[E], mu[E], scale[E];
    load(p.in.mu, row.index, first, row.count(first), mu);
    load_noise<S, kDraw>(p.noise, row, first, eps);
    T part = 0;
    if (p.in.shared_log_var) {
#pragma unroll
      for (int e = 0; e < E; ++e) scale[e] = row_scale;
    } else {
      load_log_var(p.in, row, first, scale);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        part += std::expm1(scale[e]) - scale[e];
        scale[e] = std::exp(T(0.5) * scale[e]);
      }
    }
    T u = row.group.template scan<false>(scan_chunk(row, first, eps), row.gate, carry);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      u = row.c.rho * u + innovation(row.c, first, e, eps[e]);
      part += mu[e] * mu[e];
      mu[e] += scale[e] * u;
    }
    store(p.z, row.index, first, row.count(first), mu);
    sum += part;
  }
  sum = row.group.sum(sum);
  if (row.group.is_leader() && row.exists(p.in)) {
    if (blockIdx.y == 0) {
      sum -= row.transitions() * row.c.log_one_minus_rho2;
      if (p.in.shared_log_var) sum += double(row.d) * (std::expm1(row_log_var) - row_log_var);
    }
    p.kl.put(row.index, 0.5 * sum);
  }
}

template <typename S>
struct ReparamBackward {
  Inputs<S> in;
  Noise<S> noise;
  Rows<const S> grad_z;            // none: zero
  Rows<const Compute<S>> grad_kl;  // none: zero
  const Compute<S>* u_aggregates = nullptr;
  const Compute<S>* adjoint_aggregates = nullptr;
  bool wants_u = false;        // for ∂log_var, ∂a
  bool wants_adjoint = false;  // for ∂ε, ∂a
  Rows<S> d_mu, d_log_var, d_eps;
  RowSum<S> d_row_log_var, d_rho_logit;
};

// λ_d = √s_d g_d; λ_j = √s_j g_j + ρ λ_{j+1}
// ∂μ = g + k μ; ∂ε_1 = λ_1; ∂ε_j = σ λ_j
// ∂log_var_j = ½ g_j √s_j u_j + ½ k (s_j − 1)
// ∂a = Σ_{j≥2} λ_j σ (σ u_{j−1} − ρ ε_j) + k (d−1) ρ
template <typename S, bool kDraw>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks)
    ar1_reparam_backward_kernel(ReparamBackward<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  Row<S> row(p.in);
  const Correlation<T>& c = row.c;
  const T k = p.grad_kl.data && row.exists(p.in) ? p.grad_kl.at(row.index, 0) : T(0);
  const T row_log_var = load_shared_log_var(p.in, row);
  const T row_scale = std::exp(T(0.5) * row_log_var);

  // The tiles are walked from the last to the first, along with λ; the u that enters each of them
  // comes of a walk ahead of that.
  __shared__ T u_into_tile[kMaxTilesPerRange];
  const bool several_tiles = row.end_tile - row.first_tile > 1;
  T u_carry = p.wants_u ? u_into_range(row, p.in.plan, p.u_aggregates) : T(0);
  if (p.wants_u && several_tiles) {
    for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
      if (row.group.is_leader()) u_into_tile[tile - row.first_tile] = u_carry;
      if (tile + 1 == row.end_tile) break;
      const int64_t first = row.element(tile);
      T eps[E];
      load_noise<S, kDraw>(p.noise, row, first, eps);
      row.group.template scan<false>(scan_chunk(row, first, eps), row.gate, u_carry);
    }
    __syncthreads();
  }

  T adjoint_carry =
      p.wants_adjoint ? adjoint_into_range(row, p.in.plan, p.adjoint_aggregates) : T(0);
  double log_var_sum = 0, rho_logit_sum = 0;
  for (int tile = row.end_tile - 1; tile >= row.first_tile; --tile) {
    const int64_t first = row.element(tile);
    T g[E], eps[E], token[E];
#pragma unroll
    for (int e = 0; e < E; ++e) g[e] = T(0);
    if (p.grad_z.data) load(p.grad_z, row.index, first, row.count(first), g);
    if (p.wants_u) {
      load_noise<S, kDraw>(p.noise, row, first, eps);
    } else {
#pragma unroll
      for (int e = 0; e < E; ++e) eps[e] = T(0);
    }
    T log_var[E];  // log s_j, then k (s_j − 1), then ∂log_var_j
    if (p.in.shared_log_var) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        token[e] = row_scale * g[e];
        log_var[e] = T(0);
      }
    } else {
      load_log_var(p.in, row, first, log_var);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        token[e] = std::exp(T(0.5) * log_var[e]) * g[e];
        log_var[e] = k * std::expm1(log_var[e]);
      }
    }
    T log_var_part = 0, rho_logit_part = 0;
    if (p.grad_z.data) {
      T u_before = 0, adjoint = 0;
      if (p.wants_u) {
        if (several_tiles) u_carry = u_into_tile[tile - row.first_tile];
        u_before = row.group.template scan<false>(scan_chunk(row, first, eps), row.gate, u_carry);
      }
      if (p.wants_adjoint) {
        adjoint = row.group.template scan<true>(scan_adjoint_chunk(row, token), row.gate,
                                                adjoint_carry);
      }
      const int count = row.count(first);
      T summand[E];  // σ u_{j−1} − ρ ε_j
#pragma unroll
      for (int e = 0; e < E; ++e) {
        summand[e] = c.sech * u_before - c.rho * eps[e];
        u_before = c.rho * u_before + innovation(c, first, e, eps[e]);
        log_var[e] = T(0.5) * (token[e] * u_before + log_var[e]);
        log_var_part += log_var[e];
      }
#pragma unroll
      for (int e = E - 1; e >= 0; --e) {
        adjoint = c.rho * adjoint + token[e];
        eps[e] = innovation(c, first, e, adjoint);
        if (!(e == 0 && first == 0) && e < count) rho_logit_part += eps[e] * summand[e];
      }
    } else {
      // The KL alone, which no λ is in, whatever the parameters hold.
#pragma unroll
      for (int e = 0; e < E; ++e) {
        log_var[e] *= T(0.5);
        log_var_part += log_var[e];
        eps[e] = T(0);
      }
    }
    if (p.d_log_var.data) store(p.d_log_var, row.index, first, row.count(first), log_var);
    if (p.d_eps.data) store(p.d_eps, row.index, first, row.count(first), eps);
    if (p.d_mu.data) {
      T mu[E];
      if (p.grad_kl.data) {
        load(p.in.mu, row.index, first, row.count(first), mu);
#pragma unroll
        for (int e = 0; e < E; ++e) g[e] += k * mu[e];
      }
      store(p.d_mu, row.index, first, row.count(first), g);
    }
    log_var_sum += log_var_part;
    rho_logit_sum += rho_logit_part;
  }
  if (p.d_row_log_var.out) {
    log_var_sum = row.group.sum(log_var_sum);
    if (row.group.is_leader() && row.exists(p.in)) {
      if (blockIdx.y == 0) log_var_sum += 0.5 * double(row.d) * k * std::expm1(row_log_var);
      p.d_row_log_var.put(row.index, log_var_sum);
    }
  }
  if (p.d_rho_logit.out) {
    rho_logit_sum = row.group.sum(rho_logit_sum);
    if (row.group.is_leader() && row.exists(p.in)) {
      if (blockIdx.y == 0) rho_logit_sum += row.transitions() * k * c.rho;
      p.d_rho_logit.put(row.index, rho_logit_sum);
    }
  }
}

// Without a scan to wait for there are more loads in flight per lane, in more registers.
constexpr int kMinBlocksOfLogProb = 2;

template <typename S>
struct LogProb {
  Inputs<S> in;
  Rows<const S> z;
  RowSum<Compute<S>> log_prob;
};

// u_j = (z_j − μ_j)/√s_j of one element, 0 outside the row.
template <typename S>
__device__ Compute<S> standardized(const Inputs<S>& in, const Rows<const S>& z, const Row<S>& row,
                                   int64_t j) {
  using T = Compute<S>;
  if (j < 0 || j >= row.d) return T(0);
  const T log_var = T(in.log_var.at(row.index, in.shared_log_var ? 0 : j));
  return std::exp(T(-0.5) * log_var) * (T(z.at(row.index, j)) - T(in.mu.at(row.index, j)));
}

// A lane's u_j and 1/√s_j; adds log s_j to the sum, where each element has its own.
template <typename S>
__device__ __forceinline__ void standardize(const Inputs<S>& in, const Rows<const S>& z,
                                            const Row<S>& row, int64_t first,
                                            Compute<S> shared_inverse_scale,
                                            Compute<S> (&u)[kChunk<S>],
                                            Compute<S> (&inverse_scale)[kChunk<S>],
                                            Compute<S>& log_var_sum) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  T mu[E];
  load(z, row.index, first, row.count(first), u);
  load(in.mu, row.index, first, row.count(first), mu);
  if (in.shared_log_var) {
#pragma unroll
    for (int e = 0; e < E; ++e) inverse_scale[e] = shared_inverse_scale;
  } else {
    load_log_var(in, row, first, inverse_scale);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      log_var_sum += inverse_scale[e];
      inverse_scale[e] = std::exp(T(-0.5) * inverse_scale[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < E; ++e) u[e] = inverse_scale[e] * (u[e] - mu[e]);
}

// ε_1 = u_1; ε_j = (u_j − ρ u_{j−1})/σ, the numerator written so that it keeps its digits where ρ
// is within rounding of ±1.
template <typename T>
__device__ __forceinline__ T whiten(const Correlation<T>& c, int64_t first, int e, T u_before,
                                      T u) {
  const T previous = c.sign * u_before;
  return e == 0 && first == 0 ? u : c.cosh * ((u - previous) + c.one_minus_abs_rho * previous);
}

// The u before a lane's chunk: its neighbour's, or, at the edge of what shuffles reach, its own.
template <typename S>
__device__ __forceinline__ Compute<S> u_before_chunk(const Inputs<S>& in, const Rows<const S>& z,
                                                     const Row<S>& row, int64_t first,
                                                     Compute<S> last_u) {
  const Compute<S> neighbour = row.group.from_previous(last_u);
  return row.group.is_first() ? standardized(in, z, row, first - 1) : neighbour;
}

// log q(z) = −½[d log 2π + Σ log s_j + (d−1) log(1−ρ²) + ‖ε‖²]
template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocksOfLogProb)
    ar1_log_prob_kernel(LogProb<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  Row<S> row(p.in);
  const T row_log_var = load_shared_log_var(p.in, row);
  const T row_inverse_scale = std::exp(T(-0.5) * row_log_var);
  double sum = 0;
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t first = row.element(tile);
    T u[E], inverse_scale[E], part = 0;
    standardize(p.in, p.z, row, first, row_inverse_scale, u, inverse_scale, part);
    T before = u_before_chunk(p.in, p.z, row, first, u[E - 1]);
    const int count = row.count(first);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const T eps = whiten(row.c, first, e, before, u[e]);
      if (e < count) part += eps * eps;
      before = u[e];
    }
    sum += part;
  }
  sum = row.group.sum(sum);
  if (row.group.is_leader() && row.exists(p.in)) {
    if (blockIdx.y == 0) {
      sum += row.transitions() * row.c.log_one_minus_rho2 + double(row.d) * (kLog2Pi + row_log_var);
    }
    p.log_prob.put(row.index, -0.5 * sum);
  }
}

template <typename S>
struct LogProbBackward {
  Inputs<S> in;
  Rows<const S> z;
  Rows<const Compute<S>> grad;
  Rows<S> d_z, d_mu, d_log_var;
  RowSum<S> d_row_log_var, d_rho_logit;
};

// γ = ∂(−½‖ε‖²)/∂u: γ_1 = −ε_1 + ρ cosh a ε_2; γ_j = cosh a (ρ ε_{j+1} − ε_j); ε_{d+1} = 0
// ∂z_j = k γ_j / √s_j = −∂μ_j; ∂log_var_j = −½ k (1 + u_j γ_j)
// ∂a = k [(d−1) ρ − Σ_{j≥2} ε_j (ρ ε_j − σ u_{j−1})]
template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocksOfLogProb)
    ar1_log_prob_backward_kernel(LogProbBackward<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  Row<S> row(p.in);
  const Correlation<T>& c = row.c;
  const T k = row.exists(p.in) ? p.grad.at(row.index, 0) : T(0);
  const T row_inverse_scale = std::exp(T(-0.5) * load_shared_log_var(p.in, row));
  double log_var_sum = 0, rho_logit_sum = 0;
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t first = row.element(tile);
    T u[E], inverse_scale[E], log_var_sum_of_lane = 0;
    standardize(p.in, p.z, row, first, row_inverse_scale, u, inverse_scale, log_var_sum_of_lane);
    const T before = u_before_chunk(p.in, p.z, row, first, u[E - 1]);
    const int count = row.count(first);
    // ε of the element after this lane's: its neighbour's first, or, at the edge, its own.
    const T first_eps = count > 0 ? whiten(c, first, 0, before, u[0]) : T(0);
    T after = row.group.from_next(first_eps);
    if (row.group.is_last()) {
      after = first + E < row.d
                  ? whiten(c, first, E, u[E - 1], standardized(p.in, p.z, row, first + E))
                  : T(0);
    }
    T rho_logit_part = 0, log_var_part = 0;
#pragma unroll
    for (int e = E - 1; e >= 0; --e) {
      const bool starts_row = e == 0 && first == 0;
      const T previous = e == 0 ? before : u[e - 1];
      const T eps = e < count ? whiten(c, first, e, previous, u[e]) : T(0);
      const T gamma = c.cosh * c.rho * after - (starts_row ? T(1) : c.cosh) * eps;
      if (!starts_row) rho_logit_part -= eps * (c.rho * eps - c.sech * previous);
      after = eps;
      inverse_scale[e] *= k * gamma;
      u[e] = T(-0.5) * k * (T(1) + u[e] * gamma);
      if (e < count) log_var_part += u[e];
    }
    if (p.d_log_var.data) store(p.d_log_var, row.index, first, row.count(first), u);
    if (p.d_z.data) store(p.d_z, row.index, first, row.count(first), inverse_scale);
    if (p.d_mu.data) {
#pragma unroll
      for (int e = 0; e < E; ++e) inverse_scale[e] = -inverse_scale[e];
      store(p.d_mu, row.index, first, row.count(first), inverse_scale);
    }
    log_var_sum += log_var_part;
    rho_logit_sum += rho_logit_part;
  }
  if (p.d_row_log_var.out) {
    log_var_sum = row.group.sum(log_var_sum);
    if (row.group.is_leader() && row.exists(p.in)) p.d_row_log_var.put(row.index, log_var_sum);
  }
  if (p.d_rho_logit.out) {
    rho_logit_sum = row.group.sum(rho_logit_sum);
    if (row.group.is_leader() && row.exists(p.in)) {
      if (blockIdx.y == 0) rho_logit_sum += row.transitions() * c.rho;
      p.d_rho_logit.put(row.index, double(k) * rho_logit_sum);
    }
  }
}

// The host's side.

template <typename S>
Inputs<S> inputs_of(const Device& device, Tensor& mu, Tensor& log_var, Tensor& rho_logit) {
  Inputs<S> in;
  in.plan = plan_rows(device, row_count(mu), mu.size(mu.dim() - 1), kChunk<S>);
  in.mu = rows_of<const S>(mu);
  in.log_var = rows_of<const S>(log_var);
  in.rho_logit = rows_of<const S>(rho_logit);
  in.shared_log_var = log_var.size(log_var.dim() - 1) == 1;
  return in;
}

// Memory for one number per range of each row, where rows are split.
template <typename T>
T* aggregates(const Tensor& like, const Plan& plan, bool wanted, std::optional<Tensor>& keep) {
  if (!wanted || plan.ranges == 1) return nullptr;
  keep = uninitialized(like, {plan.rows, plan.ranges, int64_t(sizeof(T))},
                       aoti_torch_dtype_uint8());
  return static_cast<T*>(keep->mutable_data_ptr());
}

template <typename S, bool kDraw>
std::tuple<Tensor, Tensor> reparam(Tensor& mu, Tensor& log_var, Tensor& rho_logit, Noise<S> noise,
                                   int64_t* rng_used, const Device& device) {
  using T = Compute<S>;
  Tensor z = uninitialized_like(mu);
  const Tensor kl = uninitialized_per_row(mu);
  Reparam<S> p;
  p.in = inputs_of<S>(device, mu, log_var, rho_logit);
  p.noise = noise;
  p.z = rows_of<S>(z);
  p.rng_used = rng_used;
  const RowSumOutput<T> kl_sum(kl, true, p.in.plan);
  p.kl = kl_sum.parameters();
  const Plan& plan = p.in.plan;
  std::optional<Tensor> keep;
  if (T* const u = aggregates<T>(mu, plan, true, keep)) {
    Aggregates<S> first;
    first.in = p.in;
    first.noise = noise;
    first.u = u;
    device.launch(ar1_aggregates<S, kDraw>, plan.blocks(), plan.threads(), first);
    p.u_aggregates = u;
  }
  // A draw of no rows still says which state it used.
  dim3 blocks = plan.blocks();
  if (kDraw && blocks.x == 0) blocks.x = 1;
  device.launch(ar1_reparam_kernel<S, kDraw>, blocks, plan.threads(), p);
  kl_sum.finish(device);
  return {z, kl};
}

// (∂μ, ∂log_var, ∂a, ∂ε); the last is empty where ε is drawn.
template <typename S, bool kDraw>
std::tuple<Tensor, Tensor, Tensor, Tensor> reparam_backward(
    std::optional<Tensor>& grad_z, std::optional<Tensor>& grad_kl, Tensor& mu, Tensor& log_var,
    Tensor& rho_logit, Noise<S> noise, const std::vector<bool>& needs, const Device& device) {
  using T = Compute<S>;
  Tensor d_mu = gradient_like(mu, needs[0]);
  Tensor d_log_var = gradient_like(log_var, needs[1]);
  const Tensor d_rho_logit = gradient_like(rho_logit, needs[2]);
  Tensor d_eps = gradient_like(mu, !kDraw && needs[3]);
  ReparamBackward<S> p;
  p.in = inputs_of<S>(device, mu, log_var, rho_logit);
  const Plan& plan = p.in.plan;
  const bool shared = p.in.shared_log_var;
  p.noise = noise;
  p.grad_z = rows_of<const S>(grad_z);
  p.grad_kl = rows_of<const T>(grad_kl, 0);
  p.d_mu = rows_of<S>(d_mu);
  p.d_eps = rows_of<S>(d_eps);
  if (!shared) p.d_log_var = rows_of<S>(d_log_var);
  const RowSumOutput<S> log_var_sum(d_log_var, needs[1] && shared, plan);
  const RowSumOutput<S> rho_logit_sum(d_rho_logit, needs[2], plan);
  p.d_row_log_var = log_var_sum.parameters();
  p.d_rho_logit = rho_logit_sum.parameters();
  // Without g, λ is zero and ∂log_var has no use for u.
  p.wants_u = p.grad_z.data && (needs[1] || needs[2]);
  p.wants_adjoint = p.grad_z.data && (needs[2] || d_eps.numel() > 0);
  std::optional<Tensor> keep_u, keep_adjoint;
  Aggregates<S> first;
  first.u = aggregates<T>(mu, plan, p.wants_u, keep_u);
  first.adjoint = aggregates<T>(mu, plan, p.wants_adjoint, keep_adjoint);
  if (first.u || first.adjoint) {
    first.in = p.in;
    first.noise = noise;
    first.grad_z = p.grad_z;
    device.launch(ar1_aggregates<S, kDraw>, plan.blocks(), plan.threads(), first);
    p.u_aggregates = first.u;
    p.adjoint_aggregates = first.adjoint;
  }
  device.launch(ar1_reparam_backward_kernel<S, kDraw>, plan.blocks(), plan.threads(), p);
  log_var_sum.finish(device);
  rho_logit_sum.finish(device);
  return {d_mu, d_log_var, d_rho_logit, d_eps};
}

std::tuple<Tensor, Tensor> ar1_reparam(Tensor mu, Tensor log_var, Tensor rho_logit, Tensor eps) {
  Leader(mu).one_or_like(log_var).rows(rho_logit, 1).like(eps);
  const Device device(mu);
  return by_storage(mu, [&](auto storage) {
    using S = decltype(storage);
    const Noise<S> noise{rows_of<const S>(eps)};
    return reparam<S, false>(mu, log_var, rho_logit, noise, nullptr, device);
  });
}

std::tuple<Tensor, Tensor, Tensor> ar1_reparam_rng(Tensor mu, Tensor log_var, Tensor rho_logit,
                                                   Tensor rng_state) {
  Leader(mu).one_or_like(log_var).rows(rho_logit, 1).rng_state(rng_state);
  require(row_count(mu) < kPhiloxRows);
  const Device device(mu);
  const Tensor state = in_order(rng_state);
  const Tensor rng_used = uninitialized_like(state);
  return by_storage(mu, [&](auto storage) {
    using S = decltype(storage);
    const Noise<S> noise{{}, static_cast<const int64_t*>(state.const_data_ptr())};
    auto [z, kl] = reparam<S, true>(mu, log_var, rho_logit, noise,
                                    static_cast<int64_t*>(rng_used.mutable_data_ptr()), device);
    return std::tuple<Tensor, Tensor, Tensor>(z, kl, rng_used);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_reparam_backward(
    std::optional<Tensor> grad_z, std::optional<Tensor> grad_kl, Tensor mu, Tensor log_var,
    Tensor rho_logit, Tensor eps, std::vector<bool> needs) {
  require_flags(needs, 4);
  Leader(mu).one_or_like(log_var).rows(rho_logit, 1).like(eps).like(grad_z).per_row(grad_kl);
  const Device device(mu);
  return by_storage(mu, [&](auto storage) {
    using S = decltype(storage);
    const Noise<S> noise{rows_of<const S>(eps)};
    return reparam_backward<S, false>(grad_z, grad_kl, mu, log_var, rho_logit, noise, needs,
                                      device);
  });
}

std::tuple<Tensor, Tensor, Tensor> ar1_reparam_rng_backward(
    std::optional<Tensor> grad_z, std::optional<Tensor> grad_kl, Tensor mu, Tensor log_var,
    Tensor rho_logit, Tensor rng_used, std::vector<bool> needs) {
  require_flags(needs, 3);
  Leader(mu).one_or_like(log_var).rows(rho_logit, 1).rng_state(rng_used).like(grad_z).per_row(
      grad_kl);
  require(row_count(mu) < kPhiloxRows);
  const Device device(mu);
  const Tensor state = in_order(rng_used);
  return by_storage(mu, [&](auto storage) {
    using S = decltype(storage);
    const Noise<S> noise{{}, static_cast<const int64_t*>(state.const_data_ptr())};
    auto [d_mu, d_log_var, d_rho_logit, none] = reparam_backward<S, true>(
        grad_z, grad_kl, mu, log_var, rho_logit, noise, needs, device);
    return std::tuple<Tensor, Tensor, Tensor>(d_mu, d_log_var, d_rho_logit);
  });
}

Tensor ar1_log_prob(Tensor z, Tensor mu, Tensor log_var, Tensor rho_logit) {
  Leader(z).like(mu).one_or_like(log_var).rows(rho_logit, 1);
  const Device device(mu);
  const Tensor log_prob = uninitialized_per_row(mu);
  by_storage(mu, [&](auto storage) {
    using S = decltype(storage);
    LogProb<S> p;
    p.in = inputs_of<S>(device, mu, log_var, rho_logit);
    p.z = rows_of<const S>(z);
    const RowSumOutput<Compute<S>> sum(log_prob, true, p.in.plan);
    p.log_prob = sum.parameters();
    device.launch(ar1_log_prob_kernel<S>, p.in.plan.blocks(), p.in.plan.threads(), p);
    sum.finish(device);
  });
  return log_prob;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_log_prob_backward(Tensor grad, Tensor z, Tensor mu,
                                                                 Tensor log_var, Tensor rho_logit,
                                                                 std::vector<bool> needs) {
  require_flags(needs, 4);
  Leader(z).like(mu).one_or_like(log_var).rows(rho_logit, 1).per_row(grad);
  const Device device(mu);
  Tensor d_z = gradient_like(z, needs[0]);
  Tensor d_mu = gradient_like(mu, needs[1]);
  Tensor d_log_var = gradient_like(log_var, needs[2]);
  const Tensor d_rho_logit = gradient_like(rho_logit, needs[3]);
  by_storage(mu, [&](auto storage) {
    using S = decltype(storage);
    LogProbBackward<S> p;
    p.in = inputs_of<S>(device, mu, log_var, rho_logit);
    const Plan& plan = p.in.plan;
    const bool shared = p.in.shared_log_var;
    p.z = rows_of<const S>(z);
    p.grad = rows_of<const Compute<S>>(grad, 0);
    p.d_z = rows_of<S>(d_z);
    p.d_mu = rows_of<S>(d_mu);
    if (!shared) p.d_log_var = rows_of<S>(d_log_var);
    const RowSumOutput<S> log_var_sum(d_log_var, needs[2] && shared, plan);
    const RowSumOutput<S> rho_logit_sum(d_rho_logit, needs[3], plan);
    p.d_row_log_var = log_var_sum.parameters();
    p.d_rho_logit = rho_logit_sum.parameters();
    device.launch(ar1_log_prob_backward_kernel<S>, plan.blocks(), plan.threads(), p);
    log_var_sum.finish(device);
    rho_logit_sum.finish(device);
  });
  return {d_z, d_mu, d_log_var, d_rho_logit};
}

}  // namespace

RHOVAE_CUDA_LIBRARY(m) {
  m.impl("ar1_reparam", TORCH_BOX(&ar1_reparam));
  m.impl("ar1_reparam_backward", TORCH_BOX(&ar1_reparam_backward));
  m.impl("ar1_reparam_rng", TORCH_BOX(&ar1_reparam_rng));
  m.impl("ar1_reparam_rng_backward", TORCH_BOX(&ar1_reparam_rng_backward));
  m.impl("ar1_log_prob", TORCH_BOX(&ar1_log_prob));
  m.impl("ar1_log_prob_backward", TORCH_BOX(&ar1_log_prob_backward));
}

}  // namespace rhovae::cuda
