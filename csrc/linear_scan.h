// linear_scan's backward pass from tokens: the states are computed again, in the type that
// arithmetic is done in, and not from what a half precision has rounded.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>
#include <vector>

namespace rhovae {

// `forward` and `backward` are linear_scan and linear_scan_backward of the device.
template <typename Forward, typename Backward, typename Tensor = torch::stable::Tensor>
std::tuple<Tensor, Tensor, Tensor> linear_scan_backward_of_tokens(
    Forward forward, Backward backward, const Tensor& grad, const Tensor& gates,
    const Tensor& tokens, const std::optional<Tensor>& initial, bool reverse,
    const std::vector<bool>& needs) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tokens.scalar_type();
  const ScalarType wide = type == ScalarType::Double ? type : ScalarType::Float;
  // x itself where it is of that type.
  const auto as = [](const Tensor& x, ScalarType t) { return torch::stable::to(x, t); };
  const Tensor a = as(gates, wide);
  std::optional<Tensor> x_0;
  if (initial) x_0 = as(*initial, wide);
  const Tensor states = forward(a, as(tokens, wide), reverse, x_0);
  const auto [d_gates, d_tokens, d_initial] =
      backward(as(grad, wide), a, states, x_0, reverse, false, needs);
  return {as(d_gates, type), as(d_tokens, type), as(d_initial, type)};
}

}  // namespace rhovae
