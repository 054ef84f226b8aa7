// masked_linear and its backward pass for the CPU. The letters are those of
// python_ref/masked_linear.py.
//
// y = b + x Wᵀ, ∂x = g W and ∂W = gᵀ x are products out(i,j) = Σ_k a(i,k) b(k,j) in which the
// staircase bounds k from above, or k from below, or, for each j, the i of which there is anything.
// `out` is made in lines as wide as two vectors. What a line needs of b is copied first, with zeros
// outside the staircase, so that its tiles are plain products of as many k as the line has.

#ifndef RHOVAE_TARGET

#include <algorithm>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "rows.h"

namespace rhovae {
namespace {

// Element (i, j) lies at data[i·row_stride + j·step], in elements.
struct Matrix {
  const void* data = nullptr;
  int64_t rows = 0, columns = 0, row_stride = 0, step = 1;

  template <typename S>
  const S* at(int64_t i, int64_t j) const {
    return static_cast<const S*>(data) + i * row_stride + j * step;
  }
  Matrix transposed() const { return {data, columns, rows, step, row_stride}; }
};

Matrix matrix_of(const Tensor& x, std::vector<Tensor>& keep) {
  const Rows rows = rows_of(x, 1, keep);
  return {rows.data, row_count(x), x.size(x.dim() - 1), rows.stride};
}

// The same in the type that arithmetic is done in.
Matrix wide_matrix_of(const Tensor& x, std::vector<Tensor>& keep) {
  if (x.element_size() > 2) return matrix_of(x, keep);
  keep.push_back(torch::stable::to(x, ScalarType::Float));
  return matrix_of(Tensor(keep.back()), keep);
}

// The first row that holds each column.
std::vector<int64_t> first_holders(const Prefix& prefix, int64_t columns) {
  std::vector<int64_t> first(columns);
  size_t row = 0;
  for (int64_t j = 0; j < columns; ++j) {
    while (row < prefix.size() && prefix[row] <= j) ++row;
    first[j] = row;
  }
  return first;
}

enum class Kind { kOutput, kInput, kWeight };

struct Product {
  Kind kind;
  Matrix a;  // widened
  Matrix b;  // as it lies in memory: W for y and ∂x, x for ∂W
  Matrix bias;
  Tensor& out;
  int64_t rows, columns;  // of out, which is contiguous
  const Prefix& prefix;
  std::vector<int64_t> first{};  // of ∂x and ∂W: `first_holders`
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "masked_linear.cpp"
#include "targets.h"

namespace rhovae {
namespace {

void multiply(const Product& product) {
  with_storage(product.out.scalar_type(), [&](auto s) { RHOVAE_RUN(product, Tiled<decltype(s)>); });
}

Tensor masked_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& prefix) {
  const Leader leader(x);
  const int64_t units = matrix_rows(weight);
  leader.matrix(weight, units, leader.columns()).vector(prefix, units, ScalarType::Int);
  if (bias) leader.vector(*bias, units);
  std::vector<Tensor> keep;
  const Matrix a = wide_matrix_of(x, keep), w = matrix_of(weight, keep);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = w.rows;
  Tensor y = empty(sizes.data(), sizes.size(), x.scalar_type());
  Matrix row{};
  if (bias) row = {bias->const_data_ptr(), 1, w.rows, 0, bias->stride(0)};
  const Prefix reads = prefix_of(prefix, w.columns);
  multiply({Kind::kOutput, a, w, row, y, a.rows, w.rows, reads});
  return y;
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(const Tensor& grad, const Tensor& x,
                                                          const Tensor& weight,
                                                          const Tensor& prefix,
                                                          const std::vector<bool>& needs) {
  require_flags(needs, 3);
  const Leader leader(x);
  const int64_t units = matrix_rows(weight);
  leader.matrix(weight, units, leader.columns()).vector(prefix, units, ScalarType::Int);
  leader.rows(grad, units);
  std::vector<Tensor> keep;
  const Matrix g = wide_matrix_of(grad, keep), w = matrix_of(weight, keep);
  const Prefix reads = prefix_of(prefix, w.columns);
  const std::vector<int64_t> first = first_holders(reads, w.columns);
  Tensor d_x = gradient_like(x, needs[0]), d_weight = gradient_like(weight, needs[1]);
  if (needs[0]) multiply({Kind::kInput, g, w, {}, d_x, g.rows, w.columns, reads, first});
  if (needs[1]) {
    const Matrix b = matrix_of(x, keep);
    multiply({Kind::kWeight, g.transposed(), b, {}, d_weight, w.rows, w.columns, reads, first});
  }
  const int64_t sizes[] = {g.rows, w.rows}, none = 0;
  if (!needs[2]) return {d_x, d_weight, empty(&none, 1, x.scalar_type())};
  const torch::headeronly::IntHeaderOnlyArrayRef over_rows(&none, 1);
  const Tensor rows = torch::stable::reshape(grad, {sizes, 2});
  return {d_x, d_weight, torch::stable::sum(rows, over_rows)};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&rhovae::masked_linear));
  m.impl("masked_linear_backward", TORCH_BOX(&rhovae::masked_linear_backward));
}

#else  // RHOVAE_TARGET

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// `kDepth` k of a line of b are copied at a time: they stay in the second cache. Their sum is added
// to that of those before, which over many k rounds off less than one sum does.
constexpr int64_t kDepth = 512;
// Rows of a part: what threads share out is lines by parts.
constexpr int64_t kPart = 48;
// What one thread should at least be given, in products.
constexpr int64_t kProducts = 1 << 18;

// The first n lanes, none for n ≤ 0.
template <typename S>
RHOVAE_INLINE V<Compute<S>> load_up_to(const S* p, int64_t n) {
  return n > 0 ? load(p, int(std::min<int64_t>(n, kLanes<Compute<S>>))) : V<Compute<S>>{};
}
template <typename S>
RHOVAE_INLINE void store_up_to(S* p, V<Compute<S>> v, int64_t n) {
  if (n > 0) store(p, v, int(std::min<int64_t>(n, kLanes<Compute<S>>)));
}

// Columns j0 … j0+width−1 of out: the k that are summed over, the i from which there is anything.
struct Line {
  int64_t j0, width, first_k = 0, end_k, first_i = 0;

  Line(const Product& p, int64_t j, int64_t length) : j0(j) {
    width = std::min(length, p.columns - j0);
    end_k = p.kind == Kind::kOutput ? p.prefix[j0 + width - 1] : p.b.rows;
    if (p.kind == Kind::kInput) first_k = p.first[j0];
    if (p.kind == Kind::kWeight) first_i = p.first[j0];
  }
};

// b(k, j) for the line and k of [begin, end), k by k, zero outside the staircase.
template <typename S>
void copy(const Product& p, const Line& line, int64_t begin, int64_t end, Compute<S>* room) {
  using T = Compute<S>;
  if (p.kind != Kind::kOutput) {
    for (int64_t k = begin; k < end; ++k, room += kLine<T>) {
      const int64_t held = p.kind == Kind::kInput ? p.prefix[k] - line.j0 : line.width;
      const int64_t live = std::min(held, line.width);
      const S* from = p.b.at<S>(k, line.j0);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t lane = v * kLanes<T>;
        store(room + lane, live > lane ? load_up_to(from + lane, live - lane) : V<T>{});
      }
    }
    return;
  }
  // Rows of W become columns.
  for (int64_t k = begin; k < end; k += kLanes<T>, room += kLanes<T> * kLine<T>) {
    const int64_t count = std::min<int64_t>(kLanes<T>, end - k);
    for (int v = 0; v < kVectors; ++v) {
      V<T> square[kLanes<T>];
      for (int i = 0; i < kLanes<T>; ++i) {
        const int64_t j = v * kLanes<T> + i;
        const int64_t live = j < line.width ? std::min(p.prefix[line.j0 + j], end) - k : 0;
        square[i] = live > 0 ? load_up_to(p.b.at<S>(line.j0 + j, k), live) : V<T>{};
      }
      transpose<T>(square);
      for (int i = 0; i < count; ++i) store(room + i * kLine<T> + v * kLanes<T>, square[i]);
    }
  }
}

// sums(i, j) += Σ a(i,k) b(k,j) over `depth` of k, for `height` rows.
template <typename T, int height>
void tile(const T* a, int64_t row, int64_t step, const T* b, int64_t depth, T* sums) {
  V<T> sum[height][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k, a += step, b += kLine<T>) {
    V<T> line[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) line[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 12
    for (int i = 0; i < height; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += line[v] * a[i * row];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < height; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      T* at = sums + i * kLine<T> + v * kLanes<T>;
      store(at, load(at) + sum[i][v]);
    }
  }
}

// The same for `rows` rows: tiles of full height, and lower ones for what is left.
template <typename T, int height = kHeight>
void tiles(int64_t rows, const T* a, int64_t row, int64_t step, const T* b, int64_t depth, T* sums) {
  int64_t i = 0;
  for (; i + height <= rows; i += height) {
    tile<T, height>(a + i * row, row, step, b, depth, sums + i * kLine<T>);
  }
  if constexpr (height > 1) {
    constexpr int lower = height > 8 ? 8 : height > 4 ? 4 : height / 2;
    if (i < rows) tiles<T, lower>(rows - i, a + i * row, row, step, b, depth, sums + i * kLine<T>);
  }
}

template <typename S>
struct Tiled {
  using Storage = S;
};

}  // namespace

template <typename Pass>
void run(const Product& p) {
  using S = typename Pass::Storage;
  using T = Compute<S>;
  const int64_t lines = (p.columns + kLine<T> - 1) / kLine<T>;
  const int64_t summed = p.kind == Kind::kOutput ? p.b.columns : p.b.rows;
  const int64_t wanted = std::max<int64_t>(1, p.rows / kPart) * kHeight;
  const int64_t height = std::max<int64_t>(1, (p.rows + wanted - 1) / wanted) * kHeight;
  const int64_t parts = (p.rows + height - 1) / height;
  const int64_t products = std::max<int64_t>(1, height * kLine<T> * summed / 2);
  const int64_t grain = std::max<int64_t>(1, kProducts / products);
  S* out = static_cast<S*>(p.out.mutable_data_ptr());
  torch::stable::parallel_for(0, lines * parts, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> room(new T[std::min(summed, kDepth) * kLine<T>]);
    const std::unique_ptr<T[]> sums(new T[height * kLine<T>]);
    int64_t line_there = -1, k_there = -1;
    for (int64_t item = begin; item < end; ++item) {
      // Lines have more to do from one to the next, or less. Taken as the first, the last, the
      // second, the last but one …, any run of them has its share.
      const int64_t turn = item / parts;
      const int64_t number_of_line = turn % 2 ? lines - 1 - turn / 2 : turn / 2;
      const Line line(p, number_of_line * kLine<T>, kLine<T>);
      const int64_t top = item % parts * height, bottom = std::min(p.rows, top + height);
      const int64_t first = std::clamp(line.first_i, top, bottom);

      T bias[kLine<T>] = {};
      for (int64_t j = 0; p.bias.data && j < line.width; ++j) {
        bias[j] = number(p.bias.at<S>(0, line.j0 + j));
      }
      for (int64_t i = 0; i < bottom - first; ++i) {
        std::memcpy(sums.get() + i * kLine<T>, bias, sizeof bias);
      }
      for (int64_t k = line.first_k; k < line.end_k && first < bottom; k += kDepth) {
        const int64_t depth = std::min(kDepth, line.end_k - k);
        if (line_there != number_of_line || k_there != k) {
          copy<S>(p, line, k, k + depth, room.get());
        }
        line_there = number_of_line, k_there = k;
        tiles<T>(bottom - first, p.a.at<T>(first, k), p.a.row_stride, p.a.step, room.get(), depth,
                 sums.get());
      }
      for (int64_t i = top; i < bottom; ++i) {
        S* row = out + i * p.columns + line.j0;
        int64_t live = line.width;
        if (p.kind == Kind::kWeight) {
          live = std::clamp<int64_t>(p.prefix[i] - line.j0, 0, line.width);
          std::memset(row + live, 0, (line.width - live) * sizeof(S));
        }
        for (int v = 0; v < kVectors && i >= first; ++v) {
          const int64_t lane = v * kLanes<T>;
          store_up_to(row + lane, load(sums.get() + (i - first) * kLine<T> + lane), live - lane);
        }
      }
    }
  });
}

}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
