// Operands as rows of elements with any strides, read and written in chunks: the consecutive
// elements of a row that one lane holds, 16 bytes of them.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "../arguments.h"
#include "../math.h"
#include "platform.cuh"

namespace rhovae::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type that arithmetic is done in, for storage type S.
template <typename S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <typename S>
constexpr int kChunk = 16 / sizeof(S);

template <typename S>
struct alignas(16) Chunk {
  S element[kChunk<S>];
};

// One operand: element j of row i lies at data[i·row_stride + j·step]; either stride may be 0.
template <typename S>
struct Rows {
  S* data = nullptr;
  int64_t row_stride = 0;
  int64_t step = 0;
  bool wide = false;  // whole chunks are contiguous and aligned to 16 bytes in every row

  __device__ S& at(int64_t row, int64_t j) const { return data[row * row_stride + j * step]; }
};

// How many of the elements first … first+kChunk−1 a row of n has.
template <typename S>
__device__ __forceinline__ int count_in_row(int64_t first, int64_t n) {
  return first < 0 || first >= n ? 0 : int(min(n - first, int64_t(kChunk<S>)));
}

// The elements of a row from `first` on: `count` of them, and `padding` in the place of the others.
template <typename S, typename T>
__device__ __forceinline__ void load(const Rows<const S>& x, int64_t row, int64_t first, int count,
                                     T (&out)[kChunk<S>], T padding = T(0)) {
  constexpr int E = kChunk<S>;
  const S* element = x.data + (row * x.row_stride + first * x.step);
  if (x.wide && count == E) {
    const Chunk<S> chunk = *reinterpret_cast<const Chunk<S>*>(element);
#pragma unroll
    for (int e = 0; e < E; ++e) out[e] = T(chunk.element[e]);
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e, element += x.step) out[e] = e < count ? T(*element) : padding;
  }
}

template <typename S, typename T>
__device__ __forceinline__ void store(const Rows<S>& x, int64_t row, int64_t first, int count,
                                      const T (&values)[kChunk<S>]) {
  constexpr int E = kChunk<S>;
  S* element = x.data + (row * x.row_stride + first * x.step);
  if (x.wide && count == E) {
    Chunk<S> chunk;
#pragma unroll
    for (int e = 0; e < E; ++e) chunk.element[e] = S(values[e]);
    *reinterpret_cast<Chunk<S>*>(element) = chunk;
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e, element += x.step) {
      if (e < count) *element = S(values[e]);
    }
  }
}

// Calls f(S{}) with the storage type of x.
template <typename F>
auto by_storage(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::BFloat16:
      return f(torch::headeronly::BFloat16{});
    default:
      STD_TORCH_CHECK(x.scalar_type() == ScalarType::Half,
                      "rhovae: the kernels take float64, float32, bfloat16 and float16");
      return f(torch::headeronly::Half{});
  }
}

// x itself where it is contiguous: asking torch for that takes its time.
inline Tensor in_order(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// The stride from row to row where the first `leading` dimensions can be walked with one.
inline std::optional<int64_t> single_row_stride(const Tensor& x, int64_t leading) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  std::optional<int64_t> stride;
  int64_t next = 0;
  for (int64_t i = leading - 1; i >= 0; --i) {
    if (sizes[i] == 1) continue;
    if (!stride) stride = strides[i];
    else if (strides[i] != next) return std::nullopt;
    next = strides[i] * sizes[i];
  }
  return stride.value_or(0);
}

inline int64_t row_count(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i < x.dim() - 1; ++i) rows *= x.size(i);
  return rows;
}

// A tensor as rows: (…, n), or (…) where `trailing` is 0. Leading dimensions that no single stride
// walks make x a contiguous copy of itself.
template <typename S>
Rows<S> rows_of(Tensor& x, int64_t trailing = 1) {
  if (x.numel() == 0) return {};
  const int64_t leading = x.dim() - trailing;
  auto stride = single_row_stride(x, leading);
  if (!stride) {
    x = in_order(x);
    stride = single_row_stride(x, leading);
  }
  Rows<S> rows;
  if constexpr (std::is_const_v<S>) {
    rows.data = static_cast<S*>(x.const_data_ptr());
  } else {
    rows.data = static_cast<S*>(x.mutable_data_ptr());
  }
  rows.row_stride = *stride;
  rows.step = trailing == 1 && x.size(leading) > 1 ? x.stride(leading) : 1;
  rows.wide = trailing == 1 && rows.step == 1 && reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
              *stride * int64_t(sizeof(S)) % 16 == 0;
  return rows;
}

template <typename S>
Rows<S> rows_of(std::optional<Tensor>& x, int64_t trailing = 1) {
  return x ? rows_of<S>(*x, trailing) : Rows<S>{};
}

// A new contiguous tensor, not yet filled, on the device of x. (GCC 12 warns, wrongly, that a copy of
// this inlined into a caller frees what is not on the heap.)
__attribute__((noinline)) inline Tensor uninitialized(const Tensor& x, std::vector<int64_t> sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) {
    strides[i - 1] = strides[i] * (sizes[i] > 1 ? sizes[i] : 1);
  }
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                                  device_type, device_index, &handle));
  return Tensor(handle);
}

inline int32_t dtype_of(const Tensor& x) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return {sizes.begin(), sizes.end()};
}

inline Tensor uninitialized_like(const Tensor& x) {
  return uninitialized(x, sizes_of(x), dtype_of(x));
}

// One number a row, in the compute type: the shape of x without its last dimension.
inline Tensor uninitialized_per_row(const Tensor& x) {
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.pop_back();
  const bool is_double = x.scalar_type() == ScalarType::Double;
  return uninitialized(x, std::move(sizes),
                       is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

// A gradient like x, or the empty tensor that stands for one not asked for.
inline Tensor gradient_like(const Tensor& x, bool needed) {
  return needed ? uninitialized_like(x) : uninitialized(x, {0}, dtype_of(x));
}

}  // namespace rhovae::cuda
