// linear_scan and its backward pass for the CPU. The letters are those of python_ref/linear_scan.py.

#ifndef RHOVAE_TARGET

#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../linear_scan.h"
#include "rows.h"

namespace rhovae {
namespace {

// x_t = a_{t+shift} x_{t∓1} + b_t over rows; the backward pass is the same scan, the other way, over
// gates shifted by one, with ∂a and ∂x_0 on top.
struct Scan {
  Tiles tiles;
  bool gate_per_row;       // gates are (…,1)
  int64_t shift = 0;       // of the gates
  Rows gates, tokens;
  Rows states;             // of the forward scan, for ∂a
  void *out = nullptr;     // states, or ∂b
  void *d_gates = nullptr;
  bool with_initial = false;  // there is an x_0 that counts, or its gradient is asked for
  Rows entering;              // x_0, in the forward pass
  Rows initial;               // x_0, in the backward one, for ∂a
  void *d_initial = nullptr;
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "linear_scan.cpp"
#include "targets.h"

namespace rhovae {
namespace {

template <bool reverse, bool with_initial>
void run_scan(const Scan& p, ScalarType type) {
  with_storage(type, [&](auto s) {
    using S = decltype(s);
    if (p.gate_per_row) {
      RHOVAE_RUN(p, ScanPass<S, reverse, true, with_initial>);
    } else {
      RHOVAE_RUN(p, ScanPass<S, reverse, false, with_initial>);
    }
  });
}

void run_scan(const Scan& p, ScalarType type, bool reverse) {
  if (p.with_initial) {
    if (reverse) run_scan<true, true>(p, type);
    else run_scan<false, true>(p, type);
  } else {
    if (reverse) run_scan<true, false>(p, type);
    else run_scan<false, false>(p, type);
  }
}

Scan scan_of(const Tensor& gates, const Tensor& tokens, std::vector<Tensor>& keep) {
  Scan p{};
  p.tiles = {row_count(tokens), tokens.size(tokens.dim() - 1)};
  p.gate_per_row = gates.size(gates.dim() - 1) == 1;
  p.gates = rows_of(gates, 1, keep);
  p.tokens = rows_of(tokens, 1, keep);
  return p;
}

Tensor linear_scan(const Tensor& gates, const Tensor& tokens, bool reverse,
                   const std::optional<Tensor>& initial) {
  Leader(tokens).one_or_like(gates).rows(initial, 1);
  std::vector<Tensor> keep;
  Scan p = scan_of(gates, tokens, keep);
  p.entering = rows_of(initial, 1, keep);
  p.with_initial = initial.has_value();
  Tensor states = empty_like_rows(tokens);
  p.out = states.mutable_data_ptr();
  run_scan(p, tokens.scalar_type(), reverse);
  return states;
}

// A gradient of shape (…,1), or the empty tensor that stands for one not asked for.
Tensor column_like(const Tensor& x, bool needed) {
  const auto of_x = x.sizes();
  std::vector<int64_t> sizes(of_x.begin(), of_x.end());
  sizes.back() = 1;
  if (!needed) sizes = {0};
  return empty(sizes.data(), int64_t(sizes.size()), x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> linear_scan_backward(const Tensor& grad, const Tensor& gates,
                                                        const Tensor& kept,
                                                        const std::optional<Tensor>& initial,
                                                        bool reverse, bool recompute,
                                                        const std::vector<bool>& needs) {
  require_flags(needs, 3);
  Leader(kept).like(grad).one_or_like(gates).rows(initial, 1);
  if (recompute && needs[0]) {
    return linear_scan_backward_of_tokens(linear_scan, linear_scan_backward, grad, gates, kept,
                                          initial, reverse, needs);
  }
  std::vector<Tensor> keep;
  Scan p = scan_of(gates, grad, keep);
  p.shift = reverse ? -1 : 1;
  p.states = rows_of(kept, 1, keep);
  p.initial = rows_of(initial, 1, keep);
  p.with_initial = (initial && needs[0]) || needs[2];
  Tensor d_gates = gradient_like(gates, needs[0]), d_tokens = gradient_like(grad, needs[1]);
  Tensor d_initial = column_like(grad, needs[2]);
  p.d_gates = needs[0] ? d_gates.mutable_data_ptr() : nullptr;
  p.out = needs[1] ? d_tokens.mutable_data_ptr() : nullptr;
  p.d_initial = needs[2] ? d_initial.mutable_data_ptr() : nullptr;
  run_scan(p, grad.scalar_type(), !reverse);
  return {d_gates, d_tokens, d_initial};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("linear_scan", TORCH_BOX(&rhovae::linear_scan));
  m.impl("linear_scan_backward", TORCH_BOX(&rhovae::linear_scan_backward));
}

#else  // RHOVAE_TARGET

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

template <typename S, bool reverse, bool gate_per_row, bool with_initial>
struct ScanPass {
  using T = Compute<S>;
  static constexpr bool kCarried = true;
  static constexpr int64_t kTogether = 0;

  struct Row {
    int64_t index;
    T gate;

    static void of(const Scan& p, int64_t first, int count, Row* rows) {
      for (int i = 0; i < count; ++i) {
        rows[i].index = first + i;
        rows[i].gate = gate_per_row ? number(p.gates.row<S>(first + i)) : T(0);
      }
    }
  };

  struct Carry {
    T state = 0, gate = 0;
  };

  static std::conditional_t<gate_per_row, RowScan<T, reverse>, StepScan<T, reverse>> scan_from(
      const Row& row, T carry) {
    if constexpr (gate_per_row) return {row.gate, carry};
    else return StepScan<T, reverse>(carry);
  }

  // What one row reads, copied out of the arguments: a store to memory of unknown type would make
  // the compiler read those again.
  struct Input {
    const S *tokens, *gates;
    int64_t shift, length;

    Input(const Scan& p, const Row& row)
        : tokens(p.tokens.row<S>(row.index)),
          gates(p.gates.row<S>(row.index)),
          shift(p.shift),
          length(p.tiles.length) {}

    template <typename Scanner, typename N>
    RHOVAE_INLINE V<T> step(Scanner& scan, int64_t j, N n) const {
      V<T> b = load(tokens + j, n);
      // Reversed, a short vector comes first, and in it the lanes that hold no step: the state
      // enters by the last of those.
      if constexpr (with_initial && reverse && std::is_same_v<N, int>) {
        b[n] = scan.carry[0];
        scan.carry = V<T>{};
      }
      if constexpr (gate_per_row) return scan(b);
      else return scan(load_within(gates, j + shift, n, length), b);
    }
  };

  // The state that enters a tile: x_0, where it is the first that the scan takes.
  static T entering(const Scan& p, const Row& row, int64_t tile, T carry) {
    if constexpr (with_initial) {
      const int64_t first = reverse ? p.tiles.per_row() - 1 : 0;
      if (p.entering.data && tile == first) return number(p.entering.row<S>(row.index));
    }
    return carry;
  }

  static Carry aggregate(const Scan& p, const Row& row, int64_t tile) {
    const Input input(p, row);
    auto scan = scan_from(row, entering(p, row, tile, T(0)));
    for_vectors<T, reverse>(p.tiles.begin(tile), p.tiles.end(tile),
                            [&](int64_t j, auto n) { input.step(scan, j, n); });
    if constexpr (gate_per_row) {
      T gate = row.gate;
      for (int64_t steps = 1; steps < kTile; steps *= 2) gate *= gate;
      return {scan.carry[0], gate};
    } else {
      return {scan.carry[0], scan.gate[0]};
    }
  }

  static void link(const Scan& p, const Row&, Carry* carries) {
    T carry = 0;
    const int64_t per_row = p.tiles.per_row();
    for (int64_t i = 0; i < per_row; ++i) {
      Carry& c = carries[reverse ? per_row - 1 - i : i];
      carry = std::exchange(c.state, carry) + c.gate * carry;
    }
  }

  // ∂x_0 = a_1 λ_1, and ∂a_1 = λ_1 x_0: of the tile that is the last here, and holds the forward
  // scan's first step.
  static void add_initial(const Scan& p, const Row& row, T adjoint, S* d_gates, Sums& sums) {
    const int64_t first = reverse ? 0 : p.tiles.length - 1;
    if (d_gates && p.initial.data) {
      const T d_gate = adjoint * number(p.initial.row<S>(row.index));
      if constexpr (gate_per_row) sums.a += d_gate;
      else put<S>(d_gates, first, d_gate);
    }
    sums.b = adjoint * (gate_per_row ? row.gate : number(p.gates.row<S>(row.index) + first));
  }

  // The states; sums ∂a where the gate is one number, and ∂x_0.
  static Sums tile(const Scan& p, const Row& row, int64_t tile, Carry carry) {
    const Input input(p, row);
    const int64_t length = p.tiles.length, shift = p.shift;
    const S* before_row = p.states.row<S>(row.index);
    S* out = p.out ? static_cast<S*>(p.out) + row.index * length : nullptr;
    S* d_gates = p.d_gates ? static_cast<S*>(p.d_gates) + row.index * length : nullptr;
    auto scan = scan_from(row, entering(p, row, tile, carry.state));
    V<T> sum_gate = {};
    T after_rest = 0;  // the state after a short vector that is the last
    for_vectors<T, reverse>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const V<T> states = input.step(scan, j, n);
      if constexpr (with_initial && std::is_same_v<decltype(n), int>) after_rest = states[n - 1];
      if (out) store(out + j, states, n);
      if (d_gates) {
        // ∂a_t = λ_t x_{t−1}: of the forward scan, which ran the other way.
        const V<T> before = load_within(before_row, j - shift, n, length);
        if constexpr (gate_per_row) sum_gate += states * before;
        else store(d_gates + j, states * before, n);
      }
    });
    Sums sums{double(sum<T>(sum_gate)), 0.0};
    const int64_t last = reverse ? 0 : p.tiles.per_row() - 1;
    if (with_initial && p.shift && tile == last && length > 0) {
      const bool has_rest = !reverse && length % kLanes<T>;
      add_initial(p, row, has_rest ? after_rest : scan.carry[0], d_gates, sums);
    }
    return sums;
  }

  static void finish(const Scan& p, const Row& row, Sums sums) {
    if (gate_per_row && p.d_gates) put<S>(p.d_gates, row.index, sums.a);
    if (with_initial && p.d_initial) put<S>(p.d_initial, row.index, sums.b);
  }
};

}  // namespace
}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
