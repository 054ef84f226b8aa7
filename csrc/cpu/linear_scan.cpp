// linear_scan and its backward pass for the CPU. The letters are those of python_ref/linear_scan.py.

#ifndef RHOVAE_TARGET

#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/library.h>

#include "rows.h"

namespace rhovae {
namespace {

// x_t = a_{t+shift} x_{t∓1} + b_t over rows; the backward pass is the same scan, the other way, over
// gates shifted by one, with ∂a on top.
struct Scan {
  Tiles tiles;
  bool gate_per_row;       // gates are (…,1)
  int64_t shift = 0;       // of the gates
  Rows gates, tokens;
  Rows states;             // of the forward scan, for ∂a
  void *out = nullptr;     // states, or ∂b
  void *d_gates = nullptr;
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "linear_scan.cpp"
#include "targets.h"

namespace rhovae {
namespace {

template <bool reverse>
void run_scan(const Scan& p, ScalarType type) {
  with_storage(type, [&](auto s) {
    using S = decltype(s);
    if (p.gate_per_row) {
      RHOVAE_RUN(p, ScanPass<S, reverse, true>);
    } else {
      RHOVAE_RUN(p, ScanPass<S, reverse, false>);
    }
  });
}

void run_scan(const Scan& p, ScalarType type, bool reverse) {
  if (reverse) run_scan<true>(p, type);
  else run_scan<false>(p, type);
}

Scan scan_of(const Tensor& gates, const Tensor& tokens, std::vector<Tensor>& keep) {
  Scan p{};
  p.tiles = {row_count(tokens), tokens.size(tokens.dim() - 1)};
  p.gate_per_row = gates.size(gates.dim() - 1) == 1;
  p.gates = rows_of(gates, 1, keep);
  p.tokens = rows_of(tokens, 1, keep);
  return p;
}

Tensor linear_scan(const Tensor& gates, const Tensor& tokens, bool reverse) {
  Leader(tokens).one_or_like(gates);
  std::vector<Tensor> keep;
  Scan p = scan_of(gates, tokens, keep);
  Tensor states = empty_like_rows(tokens);
  p.out = states.mutable_data_ptr();
  run_scan(p, tokens.scalar_type(), reverse);
  return states;
}

std::tuple<Tensor, Tensor> linear_scan_backward(const Tensor& grad, const Tensor& gates,
                                                const Tensor& states, bool reverse,
                                                const std::vector<bool>& needs) {
  require_flags(needs, 2);
  Leader(states).like(grad).one_or_like(gates);
  std::vector<Tensor> keep;
  Scan p = scan_of(gates, grad, keep);
  p.shift = reverse ? -1 : 1;
  p.states = rows_of(states, 1, keep);
  Tensor d_gates = gradient_like(gates, needs[0]), d_tokens = gradient_like(grad, needs[1]);
  p.d_gates = needs[0] ? d_gates.mutable_data_ptr() : nullptr;
  p.out = needs[1] ? d_tokens.mutable_data_ptr() : nullptr;
  run_scan(p, grad.scalar_type(), !reverse);
  return {d_gates, d_tokens};
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

template <typename S, bool reverse, bool gate_per_row>
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
      const V<T> b = load(tokens + j, n);
      if constexpr (gate_per_row) return scan(b);
      else return scan(load_within(gates, j + shift, n, length), b);
    }
  };

  static Carry aggregate(const Scan& p, const Row& row, int64_t tile) {
    const Input input(p, row);
    auto scan = scan_from(row, T(0));
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

  // The states; sums ∂a where the gate is one number.
  static Sums tile(const Scan& p, const Row& row, int64_t tile, Carry carry) {
    const Input input(p, row);
    const int64_t length = p.tiles.length, shift = p.shift;
    const S* before_row = p.states.row<S>(row.index);
    S* out = p.out ? static_cast<S*>(p.out) + row.index * length : nullptr;
    S* d_gates = p.d_gates ? static_cast<S*>(p.d_gates) + row.index * length : nullptr;
    auto scan = scan_from(row, carry.state);
    V<T> sum_gate = {};
    for_vectors<T, reverse>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const V<T> states = input.step(scan, j, n);
      if (out) store(out + j, states, n);
      if (d_gates) {
        // ∂a_t = λ_t x_{t−1}: of the forward scan, which ran the other way.
        const V<T> before = load_within(before_row, j - shift, n, length);
        if constexpr (gate_per_row) sum_gate += states * before;
        else store(d_gates + j, states * before, n);
      }
    });
    return {double(sum<T>(sum_gate)), 0.0};
  }

  static void finish(const Scan& p, const Row& row, Sums sums) {
    if (gate_per_row && p.d_gates) put<S>(p.d_gates, row.index, sums.a);
  }
};

}  // namespace
}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
