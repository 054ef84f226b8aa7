// Tensors as rows: what every CPU kernel asks of its operands, and how work is split over threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "simd_types.h"

namespace rhovae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An operand whose leading dimensions are rows, `stride` elements apart, each contiguous (where a
// kernel says so, its elements lie a step apart).
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;

  template <typename S>
  const S* row(int64_t i) const {
    return static_cast<const S*>(data) + i * stride;
  }
};

// Whether the leading dimensions can be walked with one stride, and that stride; the elements of the
// last one are to lie `step` apart.
inline std::optional<int64_t> row_stride(const Tensor& x, int64_t trailing, int64_t step = 1) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const int64_t dims = x.dim();
  if (trailing && sizes[dims - 1] > 1 && strides[dims - 1] != step) return std::nullopt;
  std::optional<int64_t> stride;
  int64_t next = 0;
  for (int64_t i = dims - trailing - 1; i >= 0; --i) {
    if (sizes[i] == 1) continue;
    if (!stride) stride = strides[i];
    else if (strides[i] != next) return std::nullopt;
    next = strides[i] * sizes[i];
  }
  return stride.value_or(0);
}

// The rows of x: (…, n) for trailing = 1, (…) for trailing = 0. A layout that has none is copied,
// and the copy kept alive in `keep`.
inline Rows rows_of(const Tensor& x, int64_t trailing, std::vector<Tensor>& keep) {
  if (x.numel() == 0) return {};
  if (const auto stride = row_stride(x, trailing)) return {x.const_data_ptr(), *stride};
  keep.push_back(torch::stable::contiguous(x));
  return {keep.back().const_data_ptr(), *row_stride(keep.back(), trailing)};
}

inline Rows rows_of(const std::optional<Tensor>& x, int64_t trailing, std::vector<Tensor>& keep) {
  return x ? rows_of(*x, trailing, keep) : Rows{};
}

inline int64_t row_count(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i < x.dim() - 1; ++i) rows *= x.size(i);
  return rows;
}

// How many of the first columns of a matrix each of its rows holds: non-decreasing.
using Prefix = std::vector<int64_t>;

inline Prefix prefix_of(const Tensor& x, int64_t columns) {
  Prefix values(x.size(0));
  const int32_t* from = static_cast<const int32_t*>(x.const_data_ptr());
  const int64_t step = x.stride(0);
  int64_t before = 0;
  for (size_t j = 0; j < values.size(); ++j) {
    values[j] = from[j * step];
    require(before <= values[j] && values[j] <= columns);
    before = values[j];
  }
  return values;
}

// A contiguous tensor that is not filled. (new_empty asks the dispatcher, by name, at each call.)
inline Tensor empty(const int64_t* sizes, int64_t dims, ScalarType type) {
  std::vector<int64_t> strides(dims);
  int64_t stride = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= std::max<int64_t>(1, sizes[i]);
  }
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  STD_TORCH_CHECK(
      aoti_torch_empty_strided(dims, sizes, strides.data(), dtype, aoti_torch_device_type_cpu(),
                               0, &made) == AOTI_TORCH_SUCCESS,
      "rhovae: no memory for an output");
  return Tensor(made);
}

inline Tensor empty_like_rows(const Tensor& x) {
  return empty(x.sizes().data(), x.dim(), x.scalar_type());
}

// In the type of per-row results: one number a row, the shape without its last dimension; one number
// a step.
inline ScalarType per_row_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}
inline Tensor empty_per_row(const Tensor& x) {
  return empty(x.sizes().data(), x.dim() - 1, per_row_type(x));
}
inline Tensor empty_per_step(const Tensor& x) {
  return empty(x.sizes().data(), x.dim(), per_row_type(x));
}

// A gradient like x, or the empty tensor that stands for one not asked for.
inline Tensor gradient_like(const Tensor& x, bool needed) {
  const int64_t none = 0;
  return needed ? empty_like_rows(x) : empty(&none, 1, x.scalar_type());
}

template <typename F>
void with_storage(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Half:
      return f(Float16{});
    default:
      STD_TORCH_CHECK(false, "rhovae: the CPU kernels take float64, float32, bfloat16 and float16");
  }
}

// Long rows are cut into tiles; a multiple of every vector length, small enough for the first cache.
constexpr int64_t kTile = 2048;
// What one thread should at least be given, in elements: some ten microseconds of work.
constexpr int64_t kGrain = 1 << 14;

struct Tiles {
  int64_t rows, length;

  int64_t per_row() const { return std::max<int64_t>(1, (length + kTile - 1) / kTile); }
  int64_t begin(int64_t tile) const { return tile * kTile; }
  int64_t end(int64_t tile) const { return std::min(length, (tile + 1) * kTile); }
  int64_t count() const { return rows * per_row(); }

  // Rows that are long and few are split among threads: tile aggregates first, then the carries of
  // each row, then every tile. Many rows are not: each is one thread's, tile after tile.
  bool split() const {
    return per_row() > 1 && rows < 4 * int64_t(torch::stable::get_num_threads());
  }
};

// The row sums of a tile, in double so that a million terms lose nothing.
struct Sums {
  double a = 0, b = 0, c = 0;

  Sums& operator+=(Sums other) {
    a += other.a;
    b += other.b;
    c += other.c;
    return *this;
  }
};

template <typename F>
void parallel_rows(const Tiles& tiles, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, tiles.length));
  torch::stable::parallel_for(0, tiles.rows, grain, f);
}

template <typename F>
void parallel_tiles(const Tiles& tiles, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrain / kTile);
  torch::stable::parallel_for(0, tiles.count(), grain, f);
}

}  // namespace rhovae
