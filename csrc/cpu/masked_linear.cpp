// masked_linear and its backward pass for the CPU. The letters are those of
// python_ref/masked_linear.py.
//
// The products are dense ones, by the BLAS that torch was built with, over panels of the staircase:
// P of them do (P+1)/2P of the work of one over the whole matrix. A panel that the edge of the
// staircase runs through is copied first, with zeros outside.

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <limits>

#include "rows.h"

namespace rhovae {
namespace {

// Where panels begin and end: at other numbers BLAS is slower.
constexpr int64_t kAligned = 16;
int64_t aligned_down(int64_t n) { return n / kAligned * kAligned; }
int64_t aligned_up(int64_t n) { return aligned_down(n + kAligned - 1); }

// A matrix in memory that something else keeps alive.
struct Matrix {
  char* data;
  int64_t rows, columns, row_stride, column_stride;
  ScalarType type;

  int64_t element() const {
    return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  }
  char* at(int64_t i, int64_t j) const {
    // A matrix of no elements may have no memory.
    return data ? data + (i * row_stride + j * column_stride) * element() : nullptr;
  }
  Matrix block(int64_t r0, int64_t r1, int64_t c0, int64_t c1) const {
    return {at(r0, c0), r1 - r0, c1 - c0, row_stride, column_stride, type};
  }
  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride, type}; }
  // Made of its memory and not as a view, which would be recorded for autograd.
  Tensor tensor() const {
    const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    return torch::stable::from_blob(data, {sizes, 2}, {strides, 2}, cpu, type);
  }
};

// x (…,n) as rows that BLAS takes: contiguous, apart by no less than their length and by an int.
// Any other layout is copied, once for all panels, and the copy kept alive in `keep`.
Matrix matrix_of(const Tensor& x, std::vector<Tensor>& keep) {
  const int64_t rows = row_count(x), columns = x.size(x.dim() - 1);
  Rows r = rows_of(x, 1, keep);
  if (rows > 1 && (r.stride < columns || r.stride > std::numeric_limits<int32_t>::max())) {
    keep.push_back(torch::stable::contiguous(x));
    r = {keep.back().const_data_ptr(), columns};
  }
  const int64_t stride = rows > 1 ? r.stride : std::max<int64_t>(1, columns);
  return {static_cast<char*>(const_cast<void*>(r.data)), rows, columns, stride, 1, x.scalar_type()};
}

// A contiguous tensor that was made to be filled.
Matrix filled(const Tensor& x, int64_t rows, int64_t columns) {
  const int64_t stride = std::max<int64_t>(1, columns);
  return {static_cast<char*>(x.mutable_data_ptr()), rows, columns, stride, 1, x.scalar_type()};
}

// out = a b
void multiply(const Matrix& a, const Matrix& b, const Matrix& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_mm_out(out.tensor().get(), a.tensor().get(), b.tensor().get()));
}

// out = bias + a b, the bias a row
void multiply_add(const Matrix& bias, const Matrix& a, const Matrix& b, const Matrix& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(
      out.tensor().get(), bias.tensor().get(), a.tensor().get(), b.tensor().get(), 1, 1));
}

// How many of the first columns each row of a matrix holds.
using Prefix = std::vector<int64_t>;

// The values are those of the argument: they were checked, or are made such that nothing outside
// the matrix is read.
Prefix prefix_of(const Tensor& prefix, int64_t columns) {
  Prefix values(prefix.size(0));
  const int32_t* from = static_cast<const int32_t*>(prefix.const_data_ptr());
  int64_t before = 0;
  for (size_t j = 0; j < values.size(); ++j) {
    before = std::min(columns, std::max<int64_t>(before, from[j * prefix.stride(0)]));
    values[j] = before;
  }
  return values;
}

// Zeros from the staircase's edge on, in rows r0 … of a matrix with contiguous rows.
void clear_outside(const Matrix& m, const Prefix& prefix, int64_t r0) {
  parallel_rows({m.rows, m.columns}, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t inside = std::min(prefix[r0 + i], m.columns);
      std::memset(m.at(i, inside), 0, (m.columns - inside) * m.element());
    }
  });
}

// Rows r0 … r1 and columns c0 … c1 of the weight, zero outside the staircase: itself where all of it
// is inside, else a copy in `room`.
Matrix inside(const Matrix& weight, const Prefix& prefix, int64_t r0, int64_t r1, int64_t c0,
              int64_t c1, void* room) {
  const Matrix from = weight.block(r0, r1, c0, c1);
  if (r0 == r1 || prefix[r0] >= c1) return from;
  const Matrix to{static_cast<char*>(room), r1 - r0, c1 - c0, c1 - c0, 1, weight.type};
  parallel_rows({to.rows, to.columns}, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t live = std::min(std::max<int64_t>(prefix[r0 + i] - c0, 0), to.columns);
      std::memcpy(to.at(i, 0), from.at(i, 0), live * to.element());
      std::memset(to.at(i, live), 0, (to.columns - live) * to.element());
    }
  });
  return to;
}

// How many units wide a panel is, of `units` outputs or inputs: a choice of the shape alone. In
// narrower ones BLAS is slower by more than the work they save, and in smaller matrices the calls;
// more of them are no faster, and have threads meet more often.
int64_t panel_width(const Matrix& weight, int64_t units) {
  const int64_t most = weight.rows * weight.columns < (1 << 16) ? 1 : 8;
  const int64_t panels = std::max<int64_t>(1, std::min(most, units / 128));
  return std::max<int64_t>(kAligned, aligned_up((units + panels - 1) / panels));
}

Tensor empty(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}

std::vector<int64_t> with_last(const Tensor& x, int64_t last) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = last;
  return sizes;
}

// The type that products are taken in. Those of float16, and without AVX-512 of bfloat16, are slow.
bool widened(ScalarType type) {
  return type == ScalarType::Half ||
         (type == ScalarType::BFloat16 && cpu_target() != Target::kAvx512);
}
Tensor wide(const Tensor& x) { return torch::stable::to(x, ScalarType::Float); }

Tensor masked_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Tensor& prefix) {
  const ScalarType type = x.scalar_type();
  if (widened(type)) {
    const auto wide_bias = bias ? std::optional<Tensor>(wide(*bias)) : std::nullopt;
    return torch::stable::to(masked_linear(wide(x), wide(weight), wide_bias, prefix), type);
  }
  std::vector<Tensor> keep;
  const Matrix from = matrix_of(x, keep), w = matrix_of(weight, keep);
  const int64_t rows = from.rows, in = w.columns, out = w.rows;
  Tensor y = empty(x, with_last(x, out));
  const Matrix to = filled(y, rows, out);
  const Prefix reads = prefix_of(prefix, in);
  const int64_t width = panel_width(w, out);
  const Tensor room = empty(weight, {std::min(width, out) * in});
  for (int64_t r0 = 0; r0 < out; r0 += width) {
    const int64_t r1 = std::min(out, r0 + width), c1 = std::min(in, aligned_up(reads[r1 - 1]));
    const Matrix a = from.block(0, rows, 0, c1), into = to.block(0, rows, r0, r1);
    const Matrix b = inside(w, reads, r0, r1, 0, c1, room.mutable_data_ptr()).transposed();
    if (bias) {
      const int64_t step = bias->stride(0);
      char* first = static_cast<char*>(const_cast<void*>(bias->const_data_ptr()));
      multiply_add(Matrix{first, 1, out, 1, step, type}.block(0, 1, r0, r1), a, b, into);
    } else {
      multiply(a, b, into);
    }
  }
  return y;
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(const Tensor& grad, const Tensor& x,
                                                          const Tensor& weight,
                                                          const Tensor& prefix,
                                                          const std::vector<bool>& needs) {
  const ScalarType type = x.scalar_type();
  if (widened(type)) {
    const auto [d_x, d_weight, d_bias] =
        masked_linear_backward(wide(grad), wide(x), wide(weight), prefix, needs);
    using torch::stable::to;
    return {to(d_x, type), to(d_weight, type), to(d_bias, type)};
  }
  std::vector<Tensor> keep;
  const Matrix g = matrix_of(grad, keep), from = matrix_of(x, keep), w = matrix_of(weight, keep);
  const int64_t rows = from.rows, in = w.columns, out = w.rows;
  const Prefix reads = prefix_of(prefix, in);

  // ∂x by panels of inputs, each read by the outputs from some one on.
  Tensor d_x = gradient_like(x, needs[0]);
  if (needs[0]) {
    const Matrix to = filled(d_x, rows, in);
    const int64_t width = panel_width(w, in);
    const Tensor room = empty(weight, {out * std::min(width, in)});
    for (int64_t c0 = 0; c0 < in; c0 += width) {
      const int64_t c1 = std::min(in, c0 + width);
      const auto first = std::upper_bound(reads.begin(), reads.end(), c0);
      const int64_t r0 = aligned_down(first - reads.begin());
      const Matrix b = inside(w, reads, r0, out, c0, c1, room.mutable_data_ptr());
      multiply(g.block(0, rows, r0, out), b, to.block(0, rows, c0, c1));
    }
  }

  // ∂W by panels of outputs, zero from the edge on.
  Tensor d_weight = gradient_like(weight, needs[1]);
  if (needs[1]) {
    const Matrix to = filled(d_weight, out, in);
    const int64_t width = panel_width(w, out);
    for (int64_t r0 = 0; r0 < out; r0 += width) {
      const int64_t r1 = std::min(out, r0 + width), c1 = std::min(in, aligned_up(reads[r1 - 1]));
      multiply(g.block(0, rows, r0, r1).transposed(), from.block(0, rows, 0, c1),
               to.block(r0, r1, 0, c1));
      clear_outside(to.block(r0, r1, 0, in), reads, r0);
    }
  }

  if (!needs[2]) return {d_x, d_weight, empty(weight, {0})};
  const int64_t over_rows = 0;
  const torch::headeronly::IntHeaderOnlyArrayRef dims(&over_rows, 1);
  return {d_x, d_weight, torch::stable::sum(g.tensor(), dims)};
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&rhovae::masked_linear));
  m.impl("masked_linear_backward", TORCH_BOX(&rhovae::masked_linear_backward));
}
