// First-order linear recurrence on CUDA: x_t = a_t x_{t−1} + b_t, from either end.
//
// A scan from the last step to the first is the same scan over chunks in reverse order, each chunk
// turned around in registers: "steps" below are numbered in the order they are taken. The backward
// pass is one more scan, the other way: λ_t = g_t + a_{t+1} λ_{t+1}; ∂b = λ; ∂a_t = λ_t x_{t−1};
// ∂x_0 = a_1 λ_1. (kInitial: there is an x_0, or its gradient is asked for.)

#include <tuple>

#include "../linear_scan.h"
#include "group.cuh"

namespace rhovae::cuda {
namespace {

// One gate per row needs one value per lane and range; gates of their own need two.
template <typename T, bool kSharedGate>
using Aggregate = std::conditional_t<kSharedGate, T, Step<T>>;

template <typename S, bool kSharedGate, bool kInitial>
struct Scan {
  using T = Compute<S>;
  Rows<const S> gates, tokens, initial;
  bool reverse = false;       // steps run from the row's end
  bool previous_gate = false;  // step i takes the gate of step i−1 (0 for the first): the adjoint's
  Aggregate<T, kSharedGate>* aggregates = nullptr;  // (rows, ranges), where rows are split
  Rows<S> states;             // none wanted: not written
  Rows<const S> inputs;       // x, for ∂a_t = λ_t x_{t−1}: t−1 is the step that follows t's here
  Rows<S> d_gates;            // per element, or
  RowSum<S> d_row_gate;       // per row
  S* d_initial = nullptr;     // (rows)
  Plan plan;
};

// A group's row, in the order of its steps.
template <typename S>
struct Row {
  using T = Compute<S>;
  static constexpr int E = kChunk<S>;
  Group group;
  int64_t index;
  int64_t length;  // 0 in a group that has no row
  int64_t chunks;
  int first_tile, end_tile;
  bool exists, reverse;

  template <typename P>
  __device__ __forceinline__ explicit Row(const P& p) : group(p.plan), index(group.row()) {
    exists = index < p.plan.rows;
    length = exists ? p.plan.length : 0;
    chunks = (length + E - 1) / E;
    reverse = p.reverse;
    first_tile = blockIdx.y * p.plan.tiles_per_range;
    end_tile = min(first_tile + p.plan.tiles_per_range, p.plan.tiles);
  }

  // The chunk, numbered along the row, that is this lane's in a tile; outside the row for padding.
  __device__ int64_t chunk(int tile) const {
    const int64_t step = int64_t(tile) * group.lanes() + group.position();
    return reverse ? chunks - 1 - step : step;
  }

  __device__ __forceinline__ void turn(T (&x)[E]) const {
    if (!reverse) return;
#pragma unroll
    for (int e = 0; e < E / 2; ++e) {
      const T other = x[e];
      x[e] = x[E - 1 - e];
      x[E - 1 - e] = other;
    }
  }

  __device__ __forceinline__ void load_steps(const Rows<const S>& x, int64_t chunk, T (&out)[E],
                                             T padding = T(0)) const {
    load(x, index, chunk * E, count_in_row<S>(chunk * E, length), out, padding);
    turn(out);
  }

  __device__ __forceinline__ void store_steps(const Rows<S>& x, int64_t chunk,
                                              T (&values)[E]) const {
    turn(values);
    store(x, index, chunk * E, count_in_row<S>(chunk * E, length), values);
    turn(values);
  }

  // Whether step e of a chunk is one, or padding.
  __device__ bool holds(int64_t chunk, int e) const {
    return (reverse ? E - 1 - e : e) < count_in_row<S>(chunk * E, length);
  }

  // Which step of a chunk is the row's last; −1: none.
  __device__ int last_step(int64_t chunk) const {
    if (length == 0 || chunk != (reverse ? 0 : chunks - 1)) return -1;
    return reverse ? E - 1 : count_in_row<S>(chunk * E, length) - 1;
  }

  // The element of the step just before a chunk's first (offset −1) or just after its last (+1).
  __device__ T beside(const Rows<const S>& x, int64_t chunk, int offset) const {
    const bool before = (offset < 0) != reverse;
    const int64_t j = before ? chunk * E - 1 : chunk * E + E;
    return j >= 0 && j < length ? T(x.at(index, j)) : T(0);
  }
};

// The gates of a lane's steps, where each has its own. Padding is gate 1, token 0.
template <typename S, bool kSharedGate, bool kInitial>
__device__ __forceinline__ void load_gates(const Scan<S, kSharedGate, kInitial>& p,
                                           const Row<S>& row, int64_t chunk,
                                           Compute<S> (&gate)[kChunk<S>]) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  row.load_steps(p.gates, chunk, gate, T(1));
  if (!p.previous_gate) return;
  T before = row.group.from_previous(gate[E - 1]);
  if (row.group.is_first()) before = row.beside(p.gates, chunk, -1);
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const T own = gate[e];
    gate[e] = before;
    before = own;
  }
}

// The state before this lane's steps.
template <typename S, bool kSharedGate>
__device__ __forceinline__ Compute<S> scan_tile(Row<S>& row, const Compute<S> (&gate)[kChunk<S>],
                                                const Compute<S> (&token)[kChunk<S>],
                                                Compute<S> chunk_gate, Compute<S>& carry) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  if constexpr (kSharedGate) {
    T end = 0;
#pragma unroll
    for (int e = 0; e < E; ++e) end = gate[e] * end + token[e];
    return row.group.template scan<false>(end, chunk_gate, carry);
  } else {
    Step<T> steps = {gate[0], token[0]};
#pragma unroll
    for (int e = 1; e < E; ++e) steps = then(steps, Step<T>{gate[e], token[e]});
    return row.group.scan(steps, carry);
  }
}

// x_0 enters by the row's first step, as b_1 + a_1 x_0: padding may come before it.
template <typename S, bool kSharedGate, bool kInitial>
__device__ __forceinline__ void enter(const Scan<S, kSharedGate, kInitial>& p, const Row<S>& row,
                                      int tile, const Compute<S> (&gate)[kChunk<S>],
                                      Compute<S> (&token)[kChunk<S>]) {
  using T = Compute<S>;
  if (!kInitial || p.previous_gate || tile != 0 || !row.group.is_leader() || !row.length) return;
  const T before = T(p.initial.at(row.index, 0));
  bool padding = true;
#pragma unroll
  for (int e = 0; e < kChunk<S>; ++e) {
    if (padding && row.holds(row.chunk(tile), e)) {
      token[e] += gate[e] * before;
      padding = false;
    }
  }
}

// A row's one gate, and its power over a chunk.
template <typename S, bool kSharedGate, bool kInitial>
__device__ __forceinline__ Compute<S> shared_gate(const Scan<S, kSharedGate, kInitial>& p,
                                                  const Row<S>& row,
                                                  Compute<S> (&gate)[kChunk<S>]) {
  using T = Compute<S>;
  const T a = kSharedGate && row.exists ? T(p.gates.at(row.index, 0)) : T(0);
  T chunk_gate = a;
#pragma unroll
  for (int reach = 1; reach < kChunk<S>; reach *= 2) chunk_gate *= chunk_gate;
#pragma unroll
  for (int e = 0; e < kChunk<S>; ++e) gate[e] = a;
  return chunk_gate;
}

// First launch over rows that are split: what each range does to a state.
template <typename S, bool kSharedGate, bool kInitial>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks)
    linear_scan_aggregates(Scan<S, kSharedGate, kInitial> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  Row<S> row(p);
  T gate[E], token[E];
  const T chunk_gate = shared_gate(p, row, gate);
  T carry = 0, product = 1;
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t chunk = row.chunk(tile);
    row.load_steps(p.tokens, chunk, token);
    if constexpr (kSharedGate) {
      enter(p, row, tile, gate, token);
      scan_tile<S, kSharedGate>(row, gate, token, chunk_gate, carry);
    } else {
      load_gates(p, row, chunk, gate);
      enter(p, row, tile, gate, token);
      scan_tile<S, kSharedGate>(row, gate, token, chunk_gate, carry);
      // The same steps without tokens: a state of `product` becomes the product of all gates.
      T none[E];
#pragma unroll
      for (int e = 0; e < E; ++e) none[e] = T(0);
      scan_tile<S, kSharedGate>(row, gate, none, chunk_gate, product);
    }
  }
  if (!row.group.is_leader()) return;
  const int64_t slot = row.index * p.plan.ranges + blockIdx.y;
  if constexpr (kSharedGate) {
    p.aggregates[slot] = carry;
  } else {
    p.aggregates[slot] = {product, carry};
  }
}

template <typename S, bool kSharedGate, bool kInitial>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks)
    linear_scan_kernel(Scan<S, kSharedGate, kInitial> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  Row<S> row(p);
  T gate[E];
  const T chunk_gate = shared_gate(p, row, gate);
  T carry = 0;
  if (p.plan.ranges > 1) {
    const auto* const aggregates = p.aggregates + row.index * p.plan.ranges;
    if constexpr (kSharedGate) {
      carry = carry_of(row.group, aggregates, 1, blockIdx.y,
                       power(chunk_gate, int64_t(p.plan.tiles_per_range) << p.plan.log2_lanes));
    } else {
      carry = carry_of(row.group, aggregates, blockIdx.y);
    }
  }
  if (kInitial && p.d_initial && row.exists && !row.length && row.group.is_leader()) {
    p.d_initial[row.index] = S(T(0));
  }
  double sum = 0;
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t chunk = row.chunk(tile);
    T state[E];
    row.load_steps(p.tokens, chunk, state);
    if constexpr (!kSharedGate) load_gates(p, row, chunk, gate);
    enter(p, row, tile, gate, state);
    T before = scan_tile<S, kSharedGate>(row, gate, state, chunk_gate, carry);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      before = gate[e] * before + state[e];
      state[e] = before;
    }
    if (p.states.data) row.store_steps(p.states, chunk, state);
    const int last = kInitial ? row.last_step(chunk) : -1;
    if (kInitial && p.d_initial && last >= 0) {
      const T a = T(p.gates.at(row.index, kSharedGate || row.reverse ? 0 : row.length - 1));
#pragma unroll
      for (int e = 0; e < E; ++e) {
        if (e == last) p.d_initial[row.index] = S(a * state[e]);
      }
    }
    if (!p.inputs.data) continue;
    T input[E], part = 0;
    row.load_steps(p.inputs, chunk, input);
    T after = row.group.from_next(input[0]);
    if (row.group.is_last()) after = row.beside(p.inputs, chunk, 1);
#pragma unroll
    for (int e = E - 1; e >= 0; --e) {
      if (kInitial && e == last && p.initial.data) after = T(p.initial.at(row.index, 0));
      state[e] *= after;
      after = input[e];
      if (row.holds(chunk, e)) part += state[e];
    }
    if constexpr (!kSharedGate) row.store_steps(p.d_gates, chunk, state);
    sum += part;
  }
  if constexpr (kSharedGate) {
    if (p.d_row_gate.out) {
      sum = row.group.sum(sum);
      if (row.group.is_leader() && row.exists) p.d_row_gate.put(row.index, sum);
    }
  }
}

template <typename S, bool kSharedGate, bool kInitial>
void run(const Device& device, const Tensor& like, Scan<S, kSharedGate, kInitial> p) {
  std::optional<Tensor> keep;
  if (p.plan.ranges > 1) {
    keep = uninitialized(like, {p.plan.rows, p.plan.ranges, int64_t(sizeof(*p.aggregates))},
                         aoti_torch_dtype_uint8());
    p.aggregates = static_cast<decltype(p.aggregates)>(keep->mutable_data_ptr());
    device.launch(linear_scan_aggregates<S, kSharedGate, kInitial>, p.plan.blocks(),
                  p.plan.threads(), p);
  }
  device.launch(linear_scan_kernel<S, kSharedGate, kInitial>, p.plan.blocks(), p.plan.threads(), p);
}

// Calls f with the storage type, with whether a row has one gate (a row of one step has), and with
// whether there is an x_0.
template <typename F>
void by_kind(const Tensor& gates, bool initial, F f) {
  const bool shared = gates.size(gates.dim() - 1) == 1;
  by_storage(gates, [&](auto storage) {
    using S = decltype(storage);
    if (shared && initial) {
      f(Scan<S, true, true>{});
    } else if (shared) {
      f(Scan<S, true, false>{});
    } else if (initial) {
      f(Scan<S, false, true>{});
    } else {
      f(Scan<S, false, false>{});
    }
  });
}

// A gradient of shape (…,1), or the empty tensor that stands for one not asked for.
Tensor column_like(const Tensor& x, bool needed) {
  if (!needed) return gradient_like(x, false);
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = 1;
  return uninitialized(x, std::move(sizes), dtype_of(x));
}

Tensor linear_scan(Tensor gates, Tensor tokens, bool reverse, std::optional<Tensor> initial) {
  Leader(tokens).one_or_like(gates).rows(initial, 1);
  const Device device(tokens);
  Tensor states = uninitialized_like(tokens);
  by_kind(gates, initial.has_value(), [&](auto p) {
    using S = typename std::remove_const_t<std::remove_pointer_t<decltype(p.states.data)>>;
    p.plan = plan_rows(device, row_count(tokens), tokens.size(tokens.dim() - 1), kChunk<S>);
    p.gates = rows_of<const S>(gates);
    p.tokens = rows_of<const S>(tokens);
    p.initial = rows_of<const S>(initial);
    p.states = rows_of<S>(states);
    p.reverse = reverse;
    run(device, tokens, p);
  });
  return states;
}

std::tuple<Tensor, Tensor, Tensor> linear_scan_backward(Tensor grad, Tensor gates, Tensor kept,
                                                        std::optional<Tensor> initial, bool reverse,
                                                        bool recompute, std::vector<bool> needs) {
  require_flags(needs, 3);
  Leader(kept).like(grad).one_or_like(gates).rows(initial, 1);
  if (recompute && needs[0]) {
    return linear_scan_backward_of_tokens(linear_scan, linear_scan_backward, grad, gates, kept,
                                          initial, reverse, needs);
  }
  const Device device(grad);
  Tensor d_gates = gradient_like(gates, needs[0]);
  Tensor d_tokens = gradient_like(kept, needs[1]);
  Tensor d_initial = column_like(kept, needs[2]);
  by_kind(gates, (initial && needs[0]) || needs[2], [&](auto p) {
    using S = typename std::remove_const_t<std::remove_pointer_t<decltype(p.states.data)>>;
    p.plan = plan_rows(device, row_count(kept), kept.size(kept.dim() - 1), kChunk<S>);
    p.gates = rows_of<const S>(gates);
    p.tokens = rows_of<const S>(grad);
    p.states = rows_of<S>(d_tokens);
    p.reverse = !reverse;
    p.previous_gate = true;
    const bool shared = gates.size(gates.dim() - 1) == 1;
    if (needs[0]) p.inputs = rows_of<const S>(kept);
    if (needs[0]) p.initial = rows_of<const S>(initial);
    if (needs[2]) p.d_initial = static_cast<S*>(d_initial.mutable_data_ptr());
    if (!shared) p.d_gates = rows_of<S>(d_gates);
    const RowSumOutput<S> sum(d_gates, needs[0] && shared, p.plan);
    p.d_row_gate = sum.parameters();
    run(device, grad, p);
    sum.finish(device);
  });
  return {d_gates, d_tokens, d_initial};
}

}  // namespace

RHOVAE_CUDA_LIBRARY(m) {
  m.impl("linear_scan", TORCH_BOX(&linear_scan));
  m.impl("linear_scan_backward", TORCH_BOX(&linear_scan_backward));
}

}  // namespace rhovae::cuda
