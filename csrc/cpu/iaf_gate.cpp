// iaf_gate and its backward pass for the CPU. The letters are those of python_ref/iaf_gate.py.

#ifndef RHOVAE_TARGET

#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/library.h>

#include "../math.h"
#include "rows.h"

namespace rhovae {
namespace {

// Everything the kernels of this file read and write. An operand that is not given, and an output
// that is not asked for, is null; outputs are contiguous.
struct Gate {
  Tiles tiles;
  bool interleaved = false;  // m and s are the heads of one (…,d,2): their elements lie two apart
  Rows z, m, s;
  Rows grad_out, grad_log_det;
  void *out = nullptr, *log_det = nullptr;
  void *d_z = nullptr, *d_m = nullptr, *d_s = nullptr;
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "iaf_gate.cpp"
#include "targets.h"

namespace rhovae {
namespace {

struct Call : Gate {
  std::vector<Tensor> keep;

  Call(const Tensor& z_, const Tensor& m_, const Tensor& s_) {
    tiles = {row_count(z_), z_.size(z_.dim() - 1)};
    z = rows_of(z_, 1, keep);
    const auto m_stride = row_stride(m_, 1, 2), s_stride = row_stride(s_, 1, 2);
    interleaved = tiles.length > 1 && m_stride && s_stride;
    if (interleaved) {
      m = {m_.const_data_ptr(), *m_stride};
      s = {s_.const_data_ptr(), *s_stride};
    } else {
      m = rows_of(m_, 1, keep);
      s = rows_of(s_, 1, keep);
    }
  }
};

std::tuple<Tensor, Tensor> iaf_gate(const Tensor& z, const Tensor& m, const Tensor& s) {
  Leader(z).like(m).like(s);
  Call call(z, m, s);
  Tensor out = empty_like_rows(z), log_det = empty_per_row(z);
  call.out = out.mutable_data_ptr();
  call.log_det = log_det.mutable_data_ptr();
  const Gate& p = call;
  with_storage(z.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    if (p.interleaved) {
      RHOVAE_RUN(p, GatePass<S, true>);
    } else {
      RHOVAE_RUN(p, GatePass<S, false>);
    }
  });
  return {out, log_det};
}

std::tuple<Tensor, Tensor, Tensor> iaf_gate_backward(const std::optional<Tensor>& grad_out,
                                                     const std::optional<Tensor>& grad_log_det,
                                                     const Tensor& z, const Tensor& m,
                                                     const Tensor& s,
                                                     const std::vector<bool>& needs) {
  require_flags(needs, 3);
  Leader(z).like(m).like(s).like(grad_out).per_row(grad_log_det);
  Call call(z, m, s);
  call.grad_out = rows_of(grad_out, 1, call.keep);
  call.grad_log_det = rows_of(grad_log_det, 0, call.keep);
  Tensor d_z = gradient_like(z, needs[0]), d_m = gradient_like(m, needs[1]),
         d_s = gradient_like(s, needs[2]);
  call.d_z = needs[0] ? d_z.mutable_data_ptr() : nullptr;
  call.d_m = needs[1] ? d_m.mutable_data_ptr() : nullptr;
  call.d_s = needs[2] ? d_s.mutable_data_ptr() : nullptr;
  const Gate& p = call;
  with_storage(z.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    if (p.interleaved) {
      RHOVAE_RUN(p, GateBackward<S, true>);
    } else {
      RHOVAE_RUN(p, GateBackward<S, false>);
    }
  });
  return {d_z, d_m, d_s};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("iaf_gate", TORCH_BOX(&rhovae::iaf_gate));
  m.impl("iaf_gate_backward", TORCH_BOX(&rhovae::iaf_gate_backward));
}

#else  // RHOVAE_TARGET

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// Sigmoid<T>::of (csrc/math.h) a vector at a time, by the same formulas.
template <typename T>
RHOVAE_INLINE Sigmoid<V<T>> sigmoid(V<T> s) {
  const V<T> zero = {};
  const V<T> e = exponential(s < zero ? s : -s).exp;
  const V<T> large = T(1) / (T(1) + e), small = e * large;
  return {s < zero ? small : large, s < zero ? large : small,
          (s < zero ? s : zero) - log1p_unit(e)};
}

// Elements of m or s from j on.
template <bool interleaved, typename S, typename N>
RHOVAE_INLINE V<Compute<S>> load_head(const S* row, int64_t j, N n) {
  if constexpr (interleaved) return load_every_second(row + 2 * j, n);
  else return load(row + j, n);
}

template <typename S, bool interleaved>
struct GatePass : Elementwise {
  using T = Compute<S>;

  // z' = σ(s) z + σ(−s) m; sums log σ(s).
  static Sums tile(const Gate& p, const Row& row, int64_t tile, Carry) {
    const S* z = p.z.row<S>(row.index);
    const S* m = p.m.row<S>(row.index);
    const S* s = p.s.row<S>(row.index);
    S* out = static_cast<S*>(p.out) + row.index * p.tiles.length;
    V<T> log_det = {};
    for_vectors<T, false>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const Sigmoid<V<T>> gate = sigmoid<T>(load_head<interleaved>(s, j, n));
      store(out + j, gate.kept * load(z + j, n) + gate.replaced * load_head<interleaved>(m, j, n),
            n);
      log_det += first_lanes<T>(gate.log, n);
    });
    return {double(sum<T>(log_det)), 0.0};
  }

  static void finish(const Gate& p, const Row& row, Sums sums) {
    put<T>(p.log_det, row.index, sums.a);
  }
};

template <typename S, bool interleaved>
struct GateBackward : Elementwise {
  using T = Compute<S>;

  // ∂z = σ(s) g; ∂m = σ(−s) g; ∂s = σ(s) σ(−s) (z−m) g + k σ(−s)
  static Sums tile(const Gate& p, const Row& row, int64_t tile, Carry) {
    const int64_t d = p.tiles.length;
    const S* z = p.z.row<S>(row.index);
    const S* m = p.m.row<S>(row.index);
    const S* s = p.s.row<S>(row.index);
    const S* grad = p.grad_out.data ? p.grad_out.row<S>(row.index) : nullptr;
    S* d_z = row_of<S>(p.d_z, row.index, d);
    S* d_m = row_of<S>(p.d_m, row.index, d);
    S* d_s = row_of<S>(p.d_s, row.index, d);
    const V<T> k =
        broadcast(p.grad_log_det.data ? *p.grad_log_det.row<T>(row.index) : T(0));
    for_vectors<T, false>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const Sigmoid<V<T>> gate = sigmoid<T>(load_head<interleaved>(s, j, n));
      const V<T> g = grad ? load(grad + j, n) : V<T>{};
      const V<T> kept = gate.kept * g;
      if (d_z) store(d_z + j, kept, n);
      if (d_m) store(d_m + j, gate.replaced * g, n);
      if (d_s) {
        const V<T> away = load(z + j, n) - load_head<interleaved>(m, j, n);
        store(d_s + j, gate.replaced * (kept * away + k), n);
      }
    });
    return {};
  }

  static void finish(const Gate&, const Row&, Sums) {}
};

}  // namespace
}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
