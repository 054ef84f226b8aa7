// What made_inverse and made_solve ask of their arguments, whatever they run on.
#pragma once

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "strings.h"

namespace rhovae {

enum class Activation { kRelu, kElu, kTanh, kSigmoid };
enum class Scale { kExp, kGate, kSoftclip, kSoftplus, kBernoulli, kSpline };

inline Activation take_activation(StringHandle name) {
  return Activation(take_one_of({"relu", "elu", "tanh", "sigmoid"}, name));
}

inline Scale take_scale(StringHandle name) {
  return Scale(take_one_of({"exp", "gate", "softclip", "softplus", "bernoulli", "spline"}, name));
}

// Of one dimension: m and s of an affine transform, or the logit of a Bernoulli.
inline int heads_of(Scale scale) { return scale == Scale::kBernoulli ? 1 : 2; }

// Of one dimension, by the rows of the last weight, where `require_network` finds that they fit.
inline int64_t heads_each(const Leader& leader,
                          const std::vector<torch::stable::Tensor>& weights) {
  require(!weights.empty());
  const int64_t rows = matrix_rows(weights.back());
  return leader.columns() ? std::max<int64_t>(1, rows / leader.columns()) : 1;
}

inline void require_bound(Scale scale, double bound) {
  require(scale != Scale::kSoftclip || bound > 0);
  require(scale != Scale::kSoftplus || bound >= 0);
}

// A hidden layer at least; each layer reads what the one before it gives, and the last one gives
// `heads` for each of d.
inline void require_network(const Leader& leader, int64_t heads,
                            const std::vector<torch::stable::Tensor>& weights,
                            const std::vector<torch::stable::Tensor>& prefixes) {
  require(weights.size() >= 2 && prefixes.size() == weights.size());
  int64_t read = leader.columns();
  for (size_t l = 0; l < weights.size(); ++l) {
    const bool last = l + 1 == weights.size();
    const int64_t rows = last ? heads * leader.columns() : matrix_rows(weights[l]);
    leader.matrix(weights[l], rows, read);
    leader.vector(prefixes[l], rows, torch::headeronly::ScalarType::Int);
    read = rows;
  }
}

// `offset` gives each unit of the first layer a number for each row of the leader.
inline void require_inversion(const Leader& y, int64_t heads, const torch::stable::Tensor& offset,
                              const std::vector<torch::stable::Tensor>& weights,
                              const std::vector<torch::stable::Tensor>& biases,
                              const std::vector<torch::stable::Tensor>& prefixes) {
  require_network(y, heads, weights, prefixes);
  require(biases.size() + 1 == weights.size());
  y.rows(offset, weights[0].size(0));
  for (size_t l = 0; l < biases.size(); ++l) y.vector(biases[l], weights[l + 1].size(0));
}

// `count` numbers in `heads` for each of g; `slopes` are of each hidden unit and row.
inline void require_solution(const Leader& g, int64_t count, const torch::stable::Tensor& a,
                             const torch::stable::Tensor& heads,
                             const std::vector<torch::stable::Tensor>& slopes,
                             const std::vector<torch::stable::Tensor>& weights,
                             const std::vector<torch::stable::Tensor>& prefixes) {
  require_network(g, count, weights, prefixes);
  require(slopes.size() + 1 == weights.size());
  g.like(a).rows(heads, count * g.columns());
  for (size_t l = 0; l < slopes.size(); ++l) g.rows(slopes[l], weights[l].size(0));
}

}  // namespace rhovae
