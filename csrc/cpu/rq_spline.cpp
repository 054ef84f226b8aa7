// rq_spline and its backward pass for the CPU. The letters are those of python_ref/rq_spline.py.
//
// An element has K widths and K heights of its own. A vector of elements is computed together, one a
// lane: what lies side by side in memory is transposed on its way in and out.

#ifndef RHOVAE_TARGET

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../math.h"
#include "../spline.h"
#include "rows.h"

namespace rhovae {
namespace {

// What a thread takes at a time, in elements: whole rows, or a part of a long one.
constexpr int64_t kBlock = 1024;

// The numbers of each element, (…,d,n).
struct Numbers {
  const void* data = nullptr;
  int64_t count = 0;               // n
  int64_t row_stride = 0, step = 0;  // from row to row and from element to element
  int64_t extent = 0;              // the last lies this far from the first
};

// Everything the kernels of this file read and write. An operand that is not given, and an output
// that is not asked for, is null; x, grad_out and outputs are contiguous.
struct Spline : SplineConvention {
  int64_t rows, d;
  const void *x = nullptr, *grad_out = nullptr;
  Numbers widths, heights, derivatives;
  Rows grad_log_det;
  void *out = nullptr, *log_det = nullptr;
  void *d_x = nullptr, *d_widths = nullptr, *d_heights = nullptr, *d_derivatives = nullptr;
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "rq_spline.cpp"
#include "targets.h"

namespace rhovae {
namespace {

const void* contiguous(const Tensor& x, std::vector<Tensor>& keep) {
  if (x.numel() == 0) return nullptr;
  if (x.numel() == 1 || row_stride(x, 0) == 1) return x.const_data_ptr();
  keep.push_back(torch::stable::contiguous(x));
  return keep.back().const_data_ptr();
}

Numbers numbers_of(const Tensor& x, std::vector<Tensor>& keep) {
  const int64_t dims = x.dim(), count = x.size(dims - 1);
  if (x.numel() == 0) return {nullptr, count};
  const auto stride = row_stride(x, 2);
  if (!stride) {
    keep.push_back(torch::stable::contiguous(x));
    return numbers_of(keep.back(), keep);
  }
  const int64_t d = x.size(dims - 2), step = d > 1 ? x.strides()[dims - 2] : 0;
  const int64_t rows = x.numel() / (d * count);
  return {x.const_data_ptr(), count, *stride, step, (rows - 1) * *stride + (d - 1) * step + count};
}

struct Call : Spline {
  std::vector<Tensor> keep;

  Call(const Tensor& x_, const Tensor& widths_, const Tensor& heights_, const Tensor& derivatives_,
       bool inverse_, double bound_, StringHandle tails, double min_width_, double min_height_,
       double min_derivative_, double logit_scale_, double clip_, StringHandle slope_) {
    static_cast<SplineConvention&>(*this) =
        SplineConvention::take(inverse_, bound_, tails, min_width_, min_height_, min_derivative_,
                               logit_scale_, clip_, slope_);
    require(widths_.dim() > 0);
    bins = widths_.size(widths_.dim() - 1);
    require_ranges();
    const Leader leader(x_);
    leader.each(widths_, bins).each(heights_, bins).each(derivatives_, knots());
    rows = row_count(x_), d = leader.columns();
    x = contiguous(x_, keep);
    widths = numbers_of(widths_, keep);
    heights = numbers_of(heights_, keep);
    derivatives = numbers_of(derivatives_, keep);
  }
};

std::tuple<Tensor, Tensor> rq_spline(const Tensor& x, const Tensor& widths, const Tensor& heights,
                                     const Tensor& derivatives, bool inverse, double bound,
                                     StringHandle tails, double min_width, double min_height,
                                     double min_derivative, double logit_scale, double clip,
                                     StringHandle slope) {
  Call call(x, widths, heights, derivatives, inverse, bound, tails, min_width, min_height,
            min_derivative, logit_scale, clip, slope);
  Tensor out = empty_like_rows(x), log_det = empty_per_row(x);
  call.out = out.mutable_data_ptr();
  call.log_det = log_det.mutable_data_ptr();
  with_storage(x.scalar_type(), [&](auto storage) {
    RHOVAE_RUN(static_cast<const Spline&>(call), SplinePass<decltype(storage)>);
  });
  return {out, log_det};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rq_spline_backward(
    const std::optional<Tensor>& grad_out, const std::optional<Tensor>& grad_log_det,
    const Tensor& x, const Tensor& widths, const Tensor& heights, const Tensor& derivatives,
    bool inverse, double bound, StringHandle tails, double min_width, double min_height,
    double min_derivative, double logit_scale, double clip, StringHandle slope,
    const std::vector<bool>& needs) {
  Call call(x, widths, heights, derivatives, inverse, bound, tails, min_width, min_height,
            min_derivative, logit_scale, clip, slope);
  require_flags(needs, 4);
  Leader(x).like(grad_out).per_row(grad_log_det);
  call.grad_out = grad_out ? contiguous(*grad_out, call.keep) : nullptr;
  call.grad_log_det = rows_of(grad_log_det, 0, call.keep);
  Tensor d_x = gradient_like(x, needs[0]), d_widths = gradient_like(widths, needs[1]),
         d_heights = gradient_like(heights, needs[2]),
         d_derivatives = gradient_like(derivatives, needs[3]);
  call.d_x = needs[0] ? d_x.mutable_data_ptr() : nullptr;
  call.d_widths = needs[1] ? d_widths.mutable_data_ptr() : nullptr;
  call.d_heights = needs[2] ? d_heights.mutable_data_ptr() : nullptr;
  call.d_derivatives = needs[3] ? d_derivatives.mutable_data_ptr() : nullptr;
  with_storage(x.scalar_type(), [&](auto storage) {
    RHOVAE_RUN(static_cast<const Spline&>(call), SplineBackward<decltype(storage)>);
  });
  return {d_x, d_widths, d_heights, d_derivatives};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("rq_spline", TORCH_BOX(&rhovae::rq_spline));
  m.impl("rq_spline_backward", TORCH_BOX(&rhovae::rq_spline_backward));
}

#else  // RHOVAE_TARGET

#include "spline.h"

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// Numbers are transposed in squares: as many numbers as elements at a time, `kSquares` squares side by side.
template <typename T>
constexpr int kSquare = kLanes<T> < 8 ? kLanes<T> : 8;
template <typename T>
constexpr int kSquares = kLanes<T> / kSquare<T>;

template <typename T>
RHOVAE_INLINE void transpose_squares(V<T>* square) {
  constexpr int size = kSquare<T>;
  constexpr std::make_integer_sequence<int, kLanes<T>> all{};
#pragma GCC unroll 8
  for (int i = 0; i < size; ++i) {
    if ((i & 1) == 0) exchange<T, 1>(square[i], square[i + 1], all);
  }
  if constexpr (size > 2) {
#pragma GCC unroll 8
    for (int i = 0; i < size; ++i) {
      if ((i & 2) == 0) exchange<T, 2>(square[i], square[i + 2], all);
    }
  }
  if constexpr (size > 4) {
#pragma GCC unroll 8
    for (int i = 0; i < size; ++i) {
      if ((i & 4) == 0) exchange<T, 4>(square[i], square[i + 4], all);
    }
  }
}

// n < size numbers.
template <int size, typename S>
RHOVAE_INLINE void copy_few(S* to, const S* from, int n) {
  if constexpr (size > 4) {
    if (n & 4) std::memcpy(to, from, 4 * sizeof(S)), to += 4, from += 4;
  }
  if constexpr (size > 2) {
    if (n & 2) std::memcpy(to, from, 2 * sizeof(S)), to += 2, from += 2;
  }
  if (n & 1) *to = *from;
}

// A square's width of numbers from each of `from`, one after the other.
template <typename S, int... I>
RHOVAE_INLINE V<Compute<S>> load_side_by_side(const S* const* from,
                                              std::integer_sequence<int, I...>) {
  using T = Compute<S>;
  if constexpr (kSquares<T> == 1) {
    return load(from[0]);
  } else if constexpr (sizeof(S) == 2) {
    typedef uint16_t Half __attribute__((vector_size(RHOVAE_VECTOR_BYTES / 4)));
    Half a, b;
    std::memcpy(&a, from[0], sizeof a);
    std::memcpy(&b, from[1], sizeof b);
    const HalfBits h = __builtin_shufflevector(a, b, I...);
    if constexpr (std::is_same_v<S, BFloat16>) return widen_bfloat16(h);
    else return widen_float16(h);
  } else {
    typedef T Half __attribute__((vector_size(RHOVAE_VECTOR_BYTES / 2)));
    Half a, b;
    std::memcpy(&a, from[0], sizeof a);
    std::memcpy(&b, from[1], sizeof b);
    return __builtin_shufflevector(a, b, I...);
  }
}

// The elements that are computed together, from `first` on; lanes beyond them repeat the last.
struct Elements {
  static constexpr int kMost = RHOVAE_VECTOR_BYTES / 4;
  int64_t first;
  int count;
  int64_t row[kMost], column[kMost];

  RHOVAE_INLINE Elements(int64_t first, int count, int lanes, int64_t d)
      : first(first), count(count) {
    int64_t i = first / d, j = first % d;
    for (int lane = 0; lane < lanes; ++lane) {
      row[lane] = i, column[lane] = j;
      if (lane + 1 < count && ++j == d) ++i, j = 0;
    }
  }
};

// Number j of each element, one a lane, in columns[j].
template <typename S>
RHOVAE_INLINE void load_numbers(const Numbers& numbers, const Elements& at,
                                Column<Compute<S>>* columns) {
  using T = Compute<S>;
  constexpr int size = kSquare<T>, squares = kSquares<T>;
  const S* const data = static_cast<const S*>(numbers.data);
  int64_t offsets[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) {
    offsets[i] = at.row[i] * numbers.row_stride + at.column[i] * numbers.step;
  }
  for (int64_t j = 0; j < numbers.count; j += size) {
    const int n = int(std::min<int64_t>(size, numbers.count - j));
    V<T> square[size];
#pragma GCC unroll 8
    for (int i = 0; i < size; ++i) {
      const S* from[squares];
      S few[squares][size] = {};
      for (int s = 0; s < squares; ++s) {
        const int64_t offset = offsets[i + s * size] + j;
        from[s] = data + offset;
        // What follows the numbers of an element is read with them, unless it is not the operand's.
        if (offset + size > numbers.extent) {
          copy_few<size>(few[s], data + offset, n);
          from[s] = few[s];
        }
      }
      square[i] = load_side_by_side<S>(from, std::make_integer_sequence<int, kLanes<T>>());
    }
    transpose_squares<T>(square);
    for (int i = 0; i < n; ++i) columns[j + i].set(square[i]);
  }
}

// The other way, to a contiguous (…,d,count).
template <typename S>
RHOVAE_INLINE void store_numbers(S* out, int64_t count, const Elements& at,
                                 const Column<Compute<S>>* columns) {
  using T = Compute<S>;
  constexpr int size = kSquare<T>, squares = kSquares<T>;
  for (int64_t j = 0; j < count; j += size) {
    const int n = int(std::min<int64_t>(size, count - j));
    V<T> square[size] = {};
    for (int i = 0; i < n; ++i) square[i] = columns[j + i].get();
    transpose_squares<T>(square);
#pragma GCC unroll 8
    for (int i = 0; i < size; ++i) {
      S line[kLanes<T>];
      store(line, square[i]);
      for (int s = 0; s < squares; ++s) {
        const int lane = i + s * size;
        if (lane >= at.count) continue;
        S* const to = out + (at.first + lane) * count + j;
        if (n == size) std::memcpy(to, line + s * size, size * sizeof(S));
        else copy_few<size>(to, line + s * size, n);
      }
    }
  }
}

// Sums over rows, of vectors of elements that come one after the other.
template <typename T>
class RowSums {
 public:
  RowSums(int64_t d, double* out) : d_(d), left_(d), out_(out) {}

  RHOVAE_INLINE void add(V<T> terms, int n) {
    if (n <= left_) {
      lanes_ += n == kLanes<T> ? terms : first_lanes<T>(terms, n);
      left_ -= n;
      if (left_ == 0) close();
      return;
    }
    for (int i = 0; i < n; ++i) {
      rest_ += terms[i];
      if (--left_ == 0) close();
    }
  }

  // The row that is under way, if there is one.
  void close() {
    if (left_ == d_) return;
    *out_++ = double(sum<T>(lanes_)) + rest_;
    lanes_ = V<T>{}, rest_ = 0, left_ = d_;
  }

 private:
  int64_t d_, left_;
  double* out_;
  V<T> lanes_ = {};
  double rest_ = 0;
};

// The columns of the elements that are computed together, for one thread.
template <typename T>
struct Scratch {
  std::vector<Column<T>> columns;
  Column<T>*widths, *heights, *raw, *width_rates, *height_rates;

  Scratch(const Spline& p, bool with_rates)
      : columns(p.bins * (with_rates && p.clip > 0 ? 4 : 2) + p.derivatives.count + 1) {
    widths = columns.data();
    heights = widths + p.bins;
    raw = heights + p.bins;
    const bool rates = with_rates && p.clip > 0;
    width_rates = rates ? raw + p.derivatives.count : nullptr;
    height_rates = rates ? width_rates + p.bins : nullptr;
  }
};

template <typename S, bool with_rate>
RHOVAE_INLINE Bin<Compute<S>, with_rate> bin_of(const Spline& p, const Elements& at,
                                                Scratch<Compute<S>>& scratch) {
  using T = Compute<S>;
  load_numbers<S>(p.widths, at, scratch.widths);
  load_numbers<S>(p.heights, at, scratch.heights);
  load_numbers<S>(p.derivatives, at, scratch.raw);
  const V<T> v = load(static_cast<const S*>(p.x) + at.first, at.count);
  return Bin<T, with_rate>(p, v, Sizes<T>(p, p.min_width, scratch.widths, scratch.width_rates),
                           Sizes<T>(p, p.min_height, scratch.heights, scratch.height_rates),
                           scratch.raw);
}

template <typename S>
struct SplinePass {
  using T = Compute<S>;
  static constexpr bool kBackward = false;

  static void elements(const Spline& p, const Elements& at, Scratch<T>& scratch,
                       RowSums<T>& log_det) {
    const auto b = bin_of<S, false>(p, at, scratch);
    const auto image = b.image(p);
    store(static_cast<S*>(p.out) + at.first, image.value, at.count);
    log_det.add(p.inverse ? -image.log_slope : image.log_slope, at.count);
  }
};

template <typename S>
struct SplineBackward {
  using T = Compute<S>;
  static constexpr bool kBackward = true;

  // One number a row, in the lanes of the row's elements.
  static RHOVAE_INLINE V<T> of_rows(const Rows& x, const Elements& at) {
    if (!x.data) return V<T>{};
    const T* data = static_cast<const T*>(x.data);
    if (at.row[0] == at.row[kLanes<T> - 1]) return broadcast(data[at.row[0] * x.stride]);
    T each[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) each[i] = data[at.row[i] * x.stride];
    return load(static_cast<const T*>(each));
  }

  static RHOVAE_INLINE void store_sizes(const Spline& p, const Bin<T, true>& b, const Sizes<T>& sizes,
                                        V<T> of_before, V<T> of_own, void* out,
                                        const Elements& at) {
    if (!out) return;
    const V<T> zero = {};
    const auto outside = b.outside & (p.linear ? -1 : 0);
    const auto g = sizes.gradient(of_before, of_own, T(p.logit_scale));
    for (int64_t j = 0; j < p.bins; ++j) {
      const V<T> here = b.k == T(j) ? of_own : zero;
      V<T> of = sizes.columns[j].get() * g.scale * ((b.k > T(j) ? of_before : here) - g.mean);
      if (sizes.rates) of *= sizes.rates[j].get();
      sizes.columns[j].set(outside ? zero : of);
    }
    store_numbers(static_cast<S*>(out), p.bins, at, sizes.columns);
  }

  static void elements(const Spline& p, const Elements& at, Scratch<T>& scratch, RowSums<T>&) {
    const auto b = bin_of<S, true>(p, at, scratch);
    const V<T> zero = {}, one = broadcast(T(1));
    const auto outside = b.outside & (p.linear ? -1 : 0);
    const V<T> given =
        p.grad_out ? load(static_cast<const S*>(p.grad_out) + at.first, at.count) : zero;
    V<T> g = given, k = of_rows(p.grad_log_det, at);
    const V<T> over_n = one / b.n, over_d = one / b.d, over_w = one / b.w, f = b.slope();
    const V<T> both = b.d0 + b.d1;
    V<T> along = ((b.d1 - b.sigma) * b.xi + (b.sigma - b.d0) * b.zeta) * over_n;
    along = T(2) * (along - (both - T(2) * b.sigma) * (b.zeta - b.xi) * over_d) * over_w;
    V<T> whole, of_x;
    if (p.inverse) {
      k = -k;
      whole = -g;
      of_x = (g + k * along) / f;
      g = -of_x;
    } else {
      of_x = whole = g * f + k * along;
    }
    if (p.d_x) store(static_cast<S*>(p.d_x) + at.first, outside ? given : of_x, at.count);
    const V<T> mu = g * b.h * b.m * over_d, twice = T(2) * k * b.m;
    const V<T> q = mu * (b.d1 * b.tau - b.d0 * b.rest) + twice * (b.sigma * over_n + both * over_d);
    store_sizes(p, b, b.x, -whole, -b.xi * whole - q * over_w, p.d_widths, at);
    store_sizes(p, b, b.y, g, g * b.tau + q / b.h, p.d_heights, at);
    if (!p.d_derivatives) return;
    V<T> of_d0 = (mu * b.rest + k * b.zeta * b.zeta * over_n - twice * over_d) * b.rate0;
    V<T> of_d1 = (k * b.xi * b.xi * over_n - mu * b.tau - twice * over_d) * b.rate1;
    of_d0 = outside ? zero : of_d0;
    of_d1 = outside ? zero : of_d1;
    for (int64_t j = 0; j < p.derivatives.count; ++j) {
      const T knot = T(j + p.linear);
      const V<T> begins = b.k == knot ? of_d0 : zero;
      scratch.raw[j].set(b.k == knot - 1 ? of_d1 : begins);
    }
    store_numbers(static_cast<S*>(p.d_derivatives), p.derivatives.count, at, scratch.raw);
  }
};

}  // namespace

template <typename Pass>
void run(const Spline& p) {
  using T = typename Pass::T;
  constexpr int lanes = kLanes<T>;
  const int64_t d = p.d, pieces = std::max<int64_t>(1, (d + kBlock - 1) / kBlock);
  const int64_t together = pieces > 1 ? 1 : std::max<int64_t>(1, kBlock / std::max<int64_t>(1, d));
  const int64_t blocks = (p.rows + together - 1) / together * pieces;
  std::vector<double> sums(Pass::kBackward ? 0 : p.rows * pieces);
  torch::stable::parallel_for(0, d ? blocks : 0, 1, [&](int64_t first_block, int64_t end_block) {
    Scratch<T> scratch(p, Pass::kBackward);
    for (int64_t block = first_block; block < end_block; ++block) {
      const int64_t row = block / pieces * together, piece = block % pieces;
      const int64_t begin = row * d + piece * kBlock;
      const int64_t end = pieces > 1 ? std::min(begin + kBlock, (row + 1) * d)
                                     : std::min(row + together, p.rows) * d;
      RowSums<T> row_sums(d, sums.data() + row * pieces + piece);
      for (int64_t i = begin; i < end; i += lanes) {
        const Elements at(i, int(std::min<int64_t>(lanes, end - i)), lanes, d);
        Pass::elements(p, at, scratch, row_sums);
      }
      row_sums.close();
    }
  });
  if (Pass::kBackward) return;
  for (int64_t i = 0; i < p.rows; ++i) {
    double total = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) total += sums[i * pieces + piece];
    put<T>(p.log_det, i, total);
  }
}

}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
