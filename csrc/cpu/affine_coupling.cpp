// affine_coupling and its backward pass for the CPU. The letters are those of
// python_ref/affine_coupling.py.

#ifndef RHOVAE_TARGET

#include <cmath>
#include <cstring>
#include <type_traits>

#include <torch/csrc/stable/library.h>

#include "../math.h"
#include "../strings.h"
#include "rows.h"

namespace rhovae {
namespace {

// An integer as wide as T.
template <typename T>
using Flag = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Everything the kernels of this file read and write. An operand that is not given, and an output
// that is not asked for, is null; outputs are contiguous.
struct Coupling {
  Tiles tiles;
  bool inverse, bounded;  // by tanh
  Rows x, log_scale, shift;
  const void* mask = nullptr;            // a Flag for each column, and true for a vector beyond them
  int64_t live_begin = 0, live_end = 0;  // outside, the mask is true
  Rows grad_out, grad_log_det;
  void *out = nullptr, *log_det = nullptr;
  void *d_x = nullptr, *d_log_scale = nullptr, *d_shift = nullptr;
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "affine_coupling.cpp"
#include "targets.h"

namespace rhovae {
namespace {

struct Call : Coupling {
  std::vector<Tensor> keep;
  std::vector<char> flags;

  Call(const Tensor& x_, const Tensor& log_scale_, const Tensor& shift_, const Tensor& mask_,
       bool inverse_, StringHandle bound) {
    bounded = take_one_of({"none", "tanh"}, bound) == 1;
    const Leader leader(x_);
    const int64_t d = leader.columns();
    leader.like(log_scale_).like(shift_).vector(mask_, d, ScalarType::Bool);
    tiles = {row_count(x_), d};
    inverse = inverse_;
    x = rows_of(x_, 1, keep);
    log_scale = rows_of(log_scale_, 1, keep);
    shift = rows_of(shift_, 1, keep);
    const Tensor passes = torch::stable::contiguous(mask_);
    const bool* const pass = static_cast<const bool*>(passes.const_data_ptr());
    // Half a mask, as most layers have, is half the work.
    for (live_end = d; live_end > 0 && pass[live_end - 1];) --live_end;
    for (; live_begin < live_end && pass[live_begin];) ++live_begin;
    // Bytes would have to be widened to the lanes of a vector, for each vector of each row.
    if (x_.scalar_type() == ScalarType::Double) widen_mask<double>(pass, d);
    else widen_mask<float>(pass, d);
  }

 private:
  template <typename T>
  void widen_mask(const bool* pass, int64_t d) {
    constexpr int64_t most_lanes = 16, size = sizeof(Flag<T>);
    flags.assign((d + most_lanes) * size, -1);
    for (int64_t j = live_begin; j < live_end; ++j) {
      const Flag<T> flag = -Flag<T>(pass[j]);
      std::memcpy(flags.data() + j * size, &flag, size);
    }
    mask = flags.data();
  }
};

std::tuple<Tensor, Tensor> affine_coupling(const Tensor& x, const Tensor& log_scale,
                                           const Tensor& shift, const Tensor& mask, bool inverse,
                                           StringHandle bound) {
  Call call(x, log_scale, shift, mask, inverse, bound);
  Tensor out = empty_like_rows(x), log_det = empty_per_row(x);
  call.out = out.mutable_data_ptr();
  call.log_det = log_det.mutable_data_ptr();
  with_storage(x.scalar_type(), [&](auto storage) {
    RHOVAE_RUN(static_cast<const Coupling&>(call), CouplingPass<decltype(storage)>);
  });
  return {out, log_det};
}

std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward(
    const std::optional<Tensor>& grad_out, const std::optional<Tensor>& grad_log_det,
    const Tensor& x, const Tensor& log_scale, const Tensor& shift, const Tensor& mask,
    bool inverse, StringHandle bound, const std::vector<bool>& needs) {
  require_flags(needs, 3);
  Leader(x).like(grad_out).per_row(grad_log_det);
  Call call(x, log_scale, shift, mask, inverse, bound);
  call.grad_out = rows_of(grad_out, 1, call.keep);
  call.grad_log_det = rows_of(grad_log_det, 0, call.keep);
  Tensor d_x = gradient_like(x, needs[0]), d_log_scale = gradient_like(log_scale, needs[1]),
         d_shift = gradient_like(shift, needs[2]);
  call.d_x = needs[0] ? d_x.mutable_data_ptr() : nullptr;
  call.d_log_scale = needs[1] ? d_log_scale.mutable_data_ptr() : nullptr;
  call.d_shift = needs[2] ? d_shift.mutable_data_ptr() : nullptr;
  with_storage(x.scalar_type(), [&](auto storage) {
    RHOVAE_RUN(static_cast<const Coupling&>(call), CouplingBackward<decltype(storage)>);
  });
  return {d_x, d_log_scale, d_shift};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("affine_coupling", TORCH_BOX(&rhovae::affine_coupling));
  m.impl("affine_coupling_backward", TORCH_BOX(&rhovae::affine_coupling_backward));
}

#else  // RHOVAE_TARGET

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// e^s for |s| ≤ 1, by its series to s¹¹/11!, whose remainder is 2e-9: with no range to reduce, and in
// three chains side by side, half the work of `exponential` and a third of its latency.
RHOVAE_INLINE V<float> exp_unit(V<float> s) {
  const V<float> s2 = s * s, s4 = s2 * s2;
  const V<float> low = (s * (1.0f / 6) + 1.0f / 2) * s2 + (s + 1.0f);
  const V<float> middle = (s * (1.0f / 5040) + 1.0f / 720) * s2 + (s * (1.0f / 120) + 1.0f / 24);
  const V<float> high = (s * (1.0f / 39916800) + 1.0f / 3628800) * s2 +
                        (s * (1.0f / 362880) + 1.0f / 40320);
  return (high * s4 + middle) * s4 + low;
}

RHOVAE_INLINE V<double> exp_unit(V<double> s) { return exponential(s).exp; }

template <bool bounded, typename T>
RHOVAE_INLINE V<T> exp_of_scale(V<T> s) {
  if constexpr (bounded) return exp_unit(s);
  else return exponential(s).exp;
}

// s and ds/dlog_scale.
template <bool bounded, typename T>
RHOVAE_INLINE Tanh<V<T>> scale_of(V<T> log_scale) {
  if constexpr (bounded) return hyperbolic_tangent<T>(log_scale);
  else return {log_scale, broadcast(T(1))};
}

template <typename T>
RHOVAE_INLINE bool passes(const Coupling& p, int64_t j) {
  return static_cast<const Flag<T>*>(p.mask)[j] != 0;
}

// What one row reads, copied out of the arguments: a store to memory of unknown type would make the
// compiler read those again.
template <typename S>
struct Operands {
  using T = Compute<S>;
  using Flags = typename Vector<T>::bits;
  const S *x, *log_scale, *shift;
  const Flag<T>* mask;
  const int64_t live_begin, live_end;

  Operands(const Coupling& p, int64_t row)
      : x(p.x.row<S>(row)),
        log_scale(p.log_scale.row<S>(row)),
        shift(p.shift.row<S>(row)),
        mask(static_cast<const Flag<T>*>(p.mask)),
        live_begin(p.live_begin),
        live_end(p.live_end) {}

  RHOVAE_INLINE bool pass(int64_t j, int n) const { return j + n <= live_begin || j >= live_end; }

  RHOVAE_INLINE Flags mask_at(int64_t j) const {
    Flags flags;
    __builtin_memcpy(&flags, mask + j, sizeof flags);
    return flags;
  }

  // s and ds/dlog_scale; s is 0 where the mask is true, and past the end of the row.
  template <bool bounded>
  RHOVAE_INLINE Tanh<V<T>> scale_at(int64_t j, int n, Flags masked) const {
    const V<T> u = load(log_scale + j, n);
    return scale_of<bounded, T>(masked ? V<T>{} : u);
  }
};

// Of so few columns a row does not fill a vector: many rows do, a column at a time.
constexpr int64_t kNarrow = 4;

// Calls f(inverse, bounded), both constants of the compiler.
template <typename F>
RHOVAE_INLINE auto with_direction(const Coupling& p, const F& f) {
  constexpr std::true_type yes{};
  constexpr std::false_type no{};
  if (p.inverse) return p.bounded ? f(yes, yes) : f(yes, no);
  return p.bounded ? f(no, yes) : f(no, no);
}

// y of what is transformed.
template <bool inverse, bool bounded, typename T>
RHOVAE_INLINE V<T> transformed(V<T> x, V<T> s, V<T> t) {
  if constexpr (inverse) return (x - t) * exp_of_scale<bounded, T>(-s);
  else return x * exp_of_scale<bounded, T>(s) + t;
}

// Forward: ∂x = g e^s; ∂t = g; ∂s = g x e^s + k
// Inverse: ∂x = g e^−s; ∂t = −∂x; ∂s = −∂x (x − t) − k
template <bool inverse, bool bounded, typename T>
RHOVAE_INLINE V<T> gradient_of_x(V<T> g, V<T> s) {
  return g * exp_of_scale<bounded, T>(inverse ? -s : s);
}
template <bool inverse, typename T>
RHOVAE_INLINE V<T> gradient_of_shift(V<T> g, V<T> d_x) {
  return inverse ? -d_x : g;
}
template <bool inverse, typename T>
RHOVAE_INLINE V<T> gradient_of_s(V<T> d_x, V<T> x, V<T> t, V<T> k) {
  if constexpr (inverse) return -d_x * (x - t) - k;
  else return d_x * x + k;
}

// A column of some rows, one a lane.
template <typename S>
RHOVAE_INLINE V<Compute<S>> load_column(const Rows& rows, int64_t first, int count, int64_t j) {
  const S* const p = rows.row<S>(first) + j;
  if (rows.stride == 1) return load(p, count);
  S buffer[kLanes<Compute<S>>] = {};
  for (int r = 0; r < count; ++r) buffer[r] = p[r * rows.stride];
  return load(static_cast<const S*>(buffer));
}
template <typename S>
RHOVAE_INLINE void store_column(S* rows, int64_t d, int count, int64_t j, V<Compute<S>> v) {
  if (d == 1) return store(rows, v, count);
  S buffer[kLanes<Compute<S>>];
  store(static_cast<S*>(buffer), v);
  for (int r = 0; r < count; ++r) rows[r * d + j] = buffer[r];
}

template <typename S>
struct CouplingPass : Elementwise {
  using T = Compute<S>;
  static constexpr int64_t kTogether = kNarrow;

  // y; sums s.
  static Sums tile(const Coupling& p, const Row& row, int64_t tile, Carry) {
    return with_direction(p, [&](auto inverse, auto bounded) {
      return tile_of<inverse(), bounded()>(p, row, tile);
    });
  }

  template <bool inverse, bool bounded>
  static Sums tile_of(const Coupling& p, const Row& row, int64_t tile) {
    const Operands<S> in(p, row.index);
    S* out = row_of<S>(p.out, row.index, p.tiles.length);
    V<T> log_det = {};
    for_vectors<T, false>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const V<T> x = load(in.x + j, n);
      if (in.pass(j, n)) return store(out + j, x, n);
      const auto masked = in.mask_at(j);
      const V<T> s = in.template scale_at<bounded>(j, n, masked).tanh, t = load(in.shift + j, n);
      store(out + j, masked ? x : transformed<inverse, bounded, T>(x, s, t), n);
      log_det += s;
    });
    const T total = sum<T>(log_det);
    return {double(inverse ? -total : total), 0.0};
  }

  static void finish(const Coupling& p, const Row& row, Sums sums) {
    put<T>(p.log_det, row.index, sums.a);
  }

  static void together(const Coupling& p, int64_t first, int count) {
    with_direction(p, [&](auto inverse, auto bounded) {
      together_of<inverse(), bounded()>(p, first, count);
    });
  }

  template <bool inverse, bool bounded>
  static void together_of(const Coupling& p, int64_t first, int count) {
    const int64_t d = p.tiles.length;
    S* const out = row_of<S>(p.out, first, d);
    V<T> log_det = {};
    for (int64_t j = 0; j < d; ++j) {
      V<T> y = load_column<S>(p.x, first, count, j);
      if (!passes<T>(p, j)) {
        const V<T> s = scale_of<bounded, T>(load_column<S>(p.log_scale, first, count, j)).tanh;
        y = transformed<inverse, bounded, T>(y, s, load_column<S>(p.shift, first, count, j));
        log_det += s;
      }
      store_column(out, d, count, j, y);
    }
    store(static_cast<T*>(p.log_det) + first, inverse ? -log_det : log_det, count);
  }
};

template <typename S>
struct CouplingBackward : Elementwise {
  using T = Compute<S>;
  static constexpr int64_t kTogether = kNarrow;

  static Sums tile(const Coupling& p, const Row& row, int64_t tile, Carry) {
    return with_direction(p, [&](auto inverse, auto bounded) {
      return tile_of<inverse(), bounded()>(p, row, tile);
    });
  }

  template <bool inverse, bool bounded>
  static Sums tile_of(const Coupling& p, const Row& row, int64_t tile) {
    const int64_t d = p.tiles.length;
    const Operands<S> in(p, row.index);
    const S* grad = p.grad_out.data ? p.grad_out.row<S>(row.index) : nullptr;
    S* d_x = row_of<S>(p.d_x, row.index, d);
    S* d_log_scale = row_of<S>(p.d_log_scale, row.index, d);
    S* d_shift = row_of<S>(p.d_shift, row.index, d);
    const V<T> zero = {};
    const V<T> k = broadcast(p.grad_log_det.data ? *p.grad_log_det.row<T>(row.index) : T(0));
    for_vectors<T, false>(p.tiles.begin(tile), p.tiles.end(tile), [&](int64_t j, auto n) {
      const V<T> g = grad ? load(grad + j, n) : zero;
      if (in.pass(j, n)) {
        if (d_x) store(d_x + j, g, n);
        if (d_log_scale) store(d_log_scale + j, zero, n);
        if (d_shift) store(d_shift + j, zero, n);
        return;
      }
      const auto masked = in.mask_at(j);
      const Tanh<V<T>> s = in.template scale_at<bounded>(j, n, masked);
      const V<T> through = gradient_of_x<inverse, bounded, T>(g, s.tanh);
      if (d_x) store(d_x + j, masked ? g : through, n);
      if (d_shift) {
        store(d_shift + j, masked ? zero : gradient_of_shift<inverse, T>(g, through), n);
      }
      if (d_log_scale) {
        const V<T> x = load(in.x + j, n), t = inverse ? load(in.shift + j, n) : zero;
        const V<T> d_s = gradient_of_s<inverse, T>(through, x, t, k);
        store(d_log_scale + j, masked ? zero : d_s * s.sech2, n);
      }
    });
    return {};
  }

  static void finish(const Coupling&, const Row&, Sums) {}

  static void together(const Coupling& p, int64_t first, int count) {
    with_direction(p, [&](auto inverse, auto bounded) {
      together_of<inverse(), bounded()>(p, first, count);
    });
  }

  template <bool inverse, bool bounded>
  static void together_of(const Coupling& p, int64_t first, int count) {
    const int64_t d = p.tiles.length;
    S* const d_x = row_of<S>(p.d_x, first, d);
    S* const d_log_scale = row_of<S>(p.d_log_scale, first, d);
    S* const d_shift = row_of<S>(p.d_shift, first, d);
    const V<T> zero = {};
    const V<T> k = p.grad_log_det.data ? load_column<T>(p.grad_log_det, first, count, 0) : zero;
    for (int64_t j = 0; j < d; ++j) {
      const V<T> g = p.grad_out.data ? load_column<S>(p.grad_out, first, count, j) : zero;
      if (passes<T>(p, j)) {
        if (d_x) store_column(d_x, d, count, j, g);
        if (d_log_scale) store_column(d_log_scale, d, count, j, zero);
        if (d_shift) store_column(d_shift, d, count, j, zero);
        continue;
      }
      const Tanh<V<T>> s = scale_of<bounded, T>(load_column<S>(p.log_scale, first, count, j));
      const V<T> through = gradient_of_x<inverse, bounded, T>(g, s.tanh);
      if (d_x) store_column(d_x, d, count, j, through);
      if (d_shift) {
        store_column(d_shift, d, count, j, gradient_of_shift<inverse, T>(g, through));
      }
      if (d_log_scale) {
        const V<T> x = load_column<S>(p.x, first, count, j);
        const V<T> t = inverse ? load_column<S>(p.shift, first, count, j) : zero;
        store_column(d_log_scale, d, count, j,
                     gradient_of_s<inverse, T>(through, x, t, k) * s.sech2);
      }
    }
  }
};

}  // namespace
}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
