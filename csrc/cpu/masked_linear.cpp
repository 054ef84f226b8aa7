// masked_linear and its backward pass for the CPU. The letters are those of
// python_ref/masked_linear.py.
//
// y = b + x Wᵀ, ∂x = g W and ∂W = gᵀ x are products out(i,j) = Σ_k a(i,k) b(k,j) in which the
// staircase bounds k from above, or k from below, or, for each j, the i of which there is anything.
// `out` is made in lines as wide as two vectors. What a line needs of b is copied first, with zeros
// outside the staircase, so that its tiles are plain products of as many k as the line has; and
// rows of a are copied as tiles read them.

#ifndef RHOVAE_TARGET

#include <algorithm>
#include <cstring>
#include <new>
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

// So many k are summed at a time: what a line has of b for them stays in the first cache. Their sum
// is added to that of those before, which over many k rounds off less than one sum does.
constexpr int64_t kDepth = 512;
// Rows of a part: what threads share out is parts by lines. A part's rows of a are copied, panel by
// panel of as many rows as a tile has, and stay in the second cache while the lines go by.
constexpr int64_t kPart = 96;
// From so many lines on: fewer do not repay the copy.
constexpr int64_t kPacked = 8;
// What one thread should at least be given, in products, and in elements to copy.
constexpr int64_t kProducts = 1 << 18, kCopied = 1 << 15;

// Uninitialised, on a cache line of its own.
template <typename T>
struct Buffer {
  static constexpr std::align_val_t kAlignment{64};
  T* const data;
  explicit Buffer(int64_t n)
      : data(static_cast<T*>(::operator new(n * sizeof(T), kAlignment))) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete(data, kAlignment); }
};

// The first n lanes, none for n ≤ 0.
template <typename S>
RHOVAE_INLINE V<Compute<S>> load_up_to(const S* p, int64_t n) {
  return n > 0 ? load(p, int(std::min<int64_t>(n, kLanes<Compute<S>>))) : V<Compute<S>>{};
}
template <typename S>
RHOVAE_INLINE void store_up_to(S* p, V<Compute<S>> v, int64_t n) {
  if (n > 0) store(p, v, int(std::min<int64_t>(n, kLanes<Compute<S>>)));
}

// Columns j0 … j0+width−1 of out: the k that are summed over, the i from which there is anything,
// and where the copy of b for it starts.
struct Line {
  int64_t j0, width, first_k = 0, end_k, first_i = 0, start;

  Line(const Product& p, int64_t j, int64_t length, int64_t start) : j0(j), start(start) {
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

// Of rows too few for a tile, so many at a time.
constexpr int lower_than(int height) { return height > 8 ? 8 : height > 4 ? 4 : height / 2; }

// The next panel is of so many rows where `left` are left: a tile's, or at the end fewer.
int64_t panel_rows(int64_t left) {
  int height = kHeight;
  while (height > 1 && left < height) height = lower_than(height);
  return height;
}

// Lanes u … of k's `height` numbers. Beyond them lies what is written later, unless of this k.
template <typename T>
RHOVAE_INLINE void put(T* numbers, int64_t u, int64_t height, V<T> v) {
  u == 0 ? store(numbers, v) : store_up_to(numbers + u, v, height - u);
}

// a(i, k) for `rows` rows and all k, k by k of a panel, in panels one after another. Up to a vector
// is written beyond the end.
template <typename T>
void pack(const Matrix& a, int64_t top, int64_t rows, T* room) {
  for (int64_t i = 0; i < rows;) {
    const int64_t height = panel_rows(rows - i);
    const T* from = a.at<T>(top + i, 0);
    if (a.step == 1) {
      for (int64_t k = 0; k < a.columns; k += kLanes<T>) {
        const int64_t count = std::min<int64_t>(kLanes<T>, a.columns - k);
        for (int64_t u = 0; u < height; u += kLanes<T>) {
          V<T> square[kLanes<T>];
          for (int v = 0; v < kLanes<T>; ++v) {
            square[v] = u + v < height ? load_up_to(from + (u + v) * a.row_stride + k, count) : V<T>{};
          }
          transpose<T>(square);
          for (int64_t v = 0; v < count; ++v) put(room + (k + v) * height, u, height, square[v]);
        }
      }
    } else {
      for (int64_t k = 0; k < a.columns; ++k) {
        for (int64_t u = 0; u < height; u += kLanes<T>) {
          V<T> row = {};
          if (a.row_stride == 1) {
            row = load_up_to(from + u + k * a.step, a.rows - top - i - u);
          } else {
            for (int v = 0; v < kLanes<T> && u + v < height; ++v) {
              row[v] = from[(u + v) * a.row_stride + k * a.step];
            }
          }
          put(room + k * height, u, height, row);
        }
      }
    }
    room += height * a.columns, i += height;
  }
}

// sums(i, j) += Σ a(i,k) b(k,j) over `depth` of k, for `height` rows: of a panel, or as they lie in
// memory.
template <typename T, int height, bool packed>
void tile(const T* a, int64_t row, int64_t step, const T* b, int64_t depth, T* sums,
          int64_t stride) {
  if (packed) row = 1, step = height;
  V<T> sum[height][kVectors] = {};
#pragma GCC unroll 4
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
      T* at = sums + i * stride + v * kLanes<T>;
      store(at, load(at) + sum[i][v]);
    }
  }
}

// The same for `rows` rows, the k of the first from `at` on: tiles of full height, and lower ones for
// what is left.
template <typename T, bool packed, int height = kHeight>
void tiles(int64_t rows, const Matrix& a, const T* at, int64_t k, const T* b, int64_t depth,
           T* sums, int64_t stride) {
  int64_t i = 0;
  for (; i + height <= rows; i += height) {
    const T* from = packed ? at + i * a.columns + k * height : at + i * a.row_stride + k * a.step;
    tile<T, height, packed>(from, a.row_stride, a.step, b, depth, sums + i * stride, stride);
  }
  if constexpr (height > 1) {
    if (i < rows) {
      constexpr int lower = lower_than(height);
      at += i * (packed ? a.columns : a.row_stride);
      tiles<T, packed, lower>(rows - i, a, at, k, b, depth, sums + i * stride, stride);
    }
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
  const int64_t count = (p.columns + kLine<T> - 1) / kLine<T>, summed = p.a.columns;
  std::vector<Line> lines;
  lines.reserve(count);
  int64_t copied = 0;
  for (int64_t l = 0; l < count; ++l) {
    lines.emplace_back(p, l * kLine<T>, kLine<T>, copied);
    copied += std::max<int64_t>(0, lines[l].end_k - lines[l].first_k) * kLine<T>;
  }
  const bool packed = count >= kPacked;
  const Buffer<T> copies(copied);
  const int64_t lines_each = std::max<int64_t>(1, kCopied * count / std::max<int64_t>(1, copied));
  torch::stable::parallel_for(0, count, lines_each, [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      copy<S>(p, lines[l], lines[l].first_k, lines[l].end_k, copies.data + lines[l].start);
    }
  });

  const int64_t wanted = std::max<int64_t>(1, p.rows / kPart) * kHeight;
  const int64_t height = std::max<int64_t>(1, (p.rows + wanted - 1) / wanted) * kHeight;
  const int64_t parts = (p.rows + height - 1) / height;
  const int64_t products = std::max<int64_t>(1, height * kLine<T> * summed / 2);
  const int64_t grain = std::max<int64_t>(1, kProducts / products);
  S* out = static_cast<S*>(p.out.mutable_data_ptr());
  torch::stable::parallel_for(0, parts * count, grain, [&](int64_t begin, int64_t end) {
    const int64_t of_a = packed ? height * summed + kLanes<T> : 0;
    const Buffer<T> room(height * kLine<T> + of_a);
    T *const aside = room.data, *const a = aside + height * kLine<T>;
    int64_t part_there = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item / count, top = part * height;
      const int64_t rows = std::min(p.rows - top, height);
      if (packed && part_there != part) pack<T>(p.a, top, rows, a);
      part_there = part;
      // Lines have more to do from one to the next, or less. Taken as the first, the last, the
      // second, the last but one …, any run of them has its share.
      const int64_t turn = item % count, l = turn % 2 ? count - 1 - turn / 2 : turn / 2;
      const Line& line = lines[l];

      // Whole panels, from the one on that holds the first row of which there is anything.
      int64_t first = 0;
      while (first < rows && top + first + panel_rows(rows - first) <= line.first_i) {
        first += panel_rows(rows - first);
      }
      // Sums of a whole line in the type of `out` are made there.
      T* sums = aside;
      int64_t stride = kLine<T>;
      if constexpr (std::is_same_v<S, T>) {
        if (line.width == kLine<T>) sums = out + top * p.columns + line.j0, stride = p.columns;
      }
      T bias[kLine<T>] = {};
      for (int64_t j = 0; p.bias.data && j < line.width; ++j) {
        bias[j] = number(p.bias.at<S>(0, line.j0 + j));
      }
      for (int64_t i = first; i < rows; ++i) std::memcpy(sums + i * stride, bias, sizeof bias);
      const T* b = copies.data + line.start;
      for (int64_t k = line.first_k; k < line.end_k && first < rows; k += kDepth) {
        const T* of_k = b + (k - line.first_k) * kLine<T>;
        const int64_t depth = std::min(kDepth, line.end_k - k);
        T* from = sums + first * stride;
        if (packed) {
          const T* at = a + first * summed;
          tiles<T, true>(rows - first, p.a, at, k, of_k, depth, from, stride);
        } else {
          const T* at = p.a.at<T>(top + first, 0);
          tiles<T, false>(rows - first, p.a, at, k, of_k, depth, from, stride);
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        S* row = out + (top + i) * p.columns + line.j0;
        int64_t live = line.width;
        if (p.kind == Kind::kWeight) {
          live = std::clamp<int64_t>(p.prefix[top + i] - line.j0, 0, line.width);
          std::memset(row + live, 0, (line.width - live) * sizeof(S));
        }
        for (int v = 0; v < kVectors && i >= first && sums == aside; ++v) {
          const int64_t lane = v * kLanes<T>;
          store_up_to(row + lane, load(sums + i * kLine<T> + lane), live - lane);
        }
      }
    }
  });
}

}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
