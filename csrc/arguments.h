// What a kernel asks of its arguments before it takes a pointer from one of them: that their types,
// devices and shapes go together. Which of them does not, and what is wanted in its place, the op's
// front door in Python says, once a kernel has refused (rhovae_kernels/ops).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace rhovae {

inline void require(bool holds) {
  STD_TORCH_CHECK(holds, "rhovae: arguments that do not go together");
}

inline int64_t matrix_rows(const torch::stable::Tensor& x) {
  require(x.dim() == 2);
  return x.size(0);
}

// int64 [seed, offset]
inline void require_rng_state(const torch::stable::Tensor& x) {
  require(x.scalar_type() == torch::headeronly::ScalarType::Long && x.dim() == 1 && x.size(0) == 2);
}

// One flag for each gradient; the schema's bool[n] is not enforced by the dispatcher.
inline void require_flags(const std::vector<bool>& needs, size_t count) {
  require(needs.size() == count);
}

// The argument that gives an op its floating type, its device and its rows, (…,d), and what the
// others are to it. One that may be left out fits where it is.
class Leader {
  using Tensor = torch::stable::Tensor;
  using ScalarType = torch::headeronly::ScalarType;

 public:
  explicit Leader(const Tensor& x)
      : type_(x.scalar_type()), device_(device_of(x)), sizes_(x.sizes().data()), dims_(x.dim()) {
    require(dims_ > 0 && (type_ == ScalarType::Double || type_ == ScalarType::Float ||
                          type_ == ScalarType::BFloat16 || type_ == ScalarType::Half));
  }

  int64_t columns() const { return sizes_[dims_ - 1]; }

  // (…,n)
  const Leader& rows(const Tensor& x, int64_t n) const {
    require(x.scalar_type() == type_ && device_of(x) == device_ && has_rows(x, dims_) &&
            x.sizes()[dims_ - 1] == n);
    return *this;
  }
  const Leader& rows(const std::optional<Tensor>& x, int64_t n) const {
    return x ? rows(*x, n) : *this;
  }

  // (…,d)
  const Leader& like(const Tensor& x) const { return rows(x, columns()); }
  const Leader& like(const std::optional<Tensor>& x) const { return x ? like(*x) : *this; }

  // (…,1) or (…,d)
  const Leader& one_or_like(const Tensor& x) const {
    return rows(x, x.dim() == dims_ && x.sizes()[dims_ - 1] == 1 ? 1 : columns());
  }

  // (…,d,n)
  const Leader& each(const Tensor& x, int64_t n) const {
    require(x.scalar_type() == type_ && device_of(x) == device_ && x.dim() == dims_ + 1 &&
            std::equal(sizes_, sizes_ + dims_, x.sizes().data()) && x.sizes()[dims_] == n);
    return *this;
  }

  // (…), of the type of per-row results
  const Leader& per_row(const Tensor& x) const {
    require(x.scalar_type() == per_row_type() && device_of(x) == device_ &&
            has_rows(x, dims_ - 1));
    return *this;
  }
  const Leader& per_row(const std::optional<Tensor>& x) const { return x ? per_row(*x) : *this; }

  // (…,d), of the same type
  const Leader& per_step(const std::optional<Tensor>& x) const {
    require(!x || (x->scalar_type() == per_row_type() && device_of(*x) == device_ &&
                   has_rows(*x, dims_) && x->sizes()[dims_ - 1] == columns()));
    return *this;
  }

  // Parameters, which have no rows: (n) and (rows,columns)
  const Leader& vector(const Tensor& x, int64_t n) const { return vector(x, n, type_); }
  const Leader& vector(const Tensor& x, int64_t n, ScalarType type) const {
    require(x.scalar_type() == type && device_of(x) == device_ && x.dim() == 1 && x.size(0) == n);
    return *this;
  }
  const Leader& matrix(const Tensor& x, int64_t rows, int64_t columns) const {
    require(x.scalar_type() == type_ && device_of(x) == device_ && x.dim() == 2 &&
            x.size(0) == rows && x.size(1) == columns);
    return *this;
  }

  // int64 [seed, offset]
  const Leader& rng_state(const Tensor& x) const { return vector(x, 2, ScalarType::Long); }

 private:
  static int64_t device_of(const Tensor& x) {
    int32_t type, index;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &index));
    return (int64_t(type) << 32) + index;
  }

  ScalarType per_row_type() const {
    return type_ == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  // Whether x has `dims` dimensions, and the leader's rows.
  bool has_rows(const Tensor& x, int64_t dims) const {
    return x.dim() == dims && std::equal(sizes_, sizes_ + dims_ - 1, x.sizes().data());
  }

  ScalarType type_;
  int64_t device_;
  const int64_t* sizes_;
  int64_t dims_;
};

}  // namespace rhovae
