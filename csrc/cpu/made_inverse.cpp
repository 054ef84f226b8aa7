// made_inverse and made_solve for the CPU. The letters are those of python_ref/made_inverse.py.
//
// All three passes here, the inversion and the solutions of J v = g and Jᵀ v = g, are one walk
// through a network of staircases: step i gives new inputs, they complete some units of the first
// layer, those some of the second, and so on up to the outputs of step i+1. The transposed system is
// such a network too, of the transposed weights with rows and columns in reverse.
//
// A thread takes a slice of the batch and walks alone. The rows of its slice are the lanes of the
// vectors: a unit is a line of them, and the units lie one after another. Units are computed in
// blocks as high as the registers allow: when the first unit of a block is due, the whole block
// takes in what that unit reads; when the next is due, the block goes on from there. So a weight is
// used once, by a product of matrices, however few units a step completes.

#ifndef RHOVAE_TARGET

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../made_inverse.h"
#include "../spline.h"
#include "rows.h"

namespace rhovae {
namespace {

// Element (row, k) lies at data[row·row_stride + k·step], in elements; strides may be negative.
struct Matrix {
  const void* data = nullptr;
  int64_t row_stride = 0, step = 0;
};

struct Layer {
  int64_t rows, columns;
  Matrix weight;
  Prefix prefix;
  Matrix bias;                  // one column; none in what is linear
};

struct Network {
  int64_t batch = 0, steps = 0;
  int64_t inputs_a_step = 1, outputs_a_step = 2;
  std::vector<Layer> layers;  // the last one gives the outputs
  // Of the inversion.
  Activation activation{};
  Scale scale{};
  double bound = 0;
  SplineConvention spline;
  Rows y, offset;
  void *x = nullptr, *log_det = nullptr;
  // Of the solutions.
  bool transpose = false;
  Rows g, a, heads;
  std::vector<Rows> slopes;  // in the order of `layers`
  void* v = nullptr;
};

// A block takes in entries from … to−1 of its layer's input, upon which its units first … end−1 are
// complete; or, where layer < 0, `first` is the step whose outputs are.
struct Event {
  int layer;
  int64_t block, from, to, first, end;
};

// The order of the walk, and where things lie: the same for every slice.
struct Plan {
  std::vector<Event> events;
  std::vector<int64_t> first_unit;            // per layer, that of its input first
  std::vector<std::vector<int64_t>> packed;   // per layer and block, where its weights start
  int64_t units = 0, weights = 0;

  Plan(const Network& network, int64_t height) {
    const int last = int(network.layers.size()) - 1;
    first_unit.push_back(0);
    units = network.steps * network.inputs_a_step;
    for (const Layer& layer : network.layers) {
      first_unit.push_back(units);
      units += (layer.rows + height - 1) / height * height;
      packed.emplace_back();
      for (int64_t row = 0; row < layer.rows; row += height) {
        packed.back().push_back(weights);
        weights += height * layer.prefix[std::min(row + height, layer.rows) - 1];
      }
    }
    // Units that nothing reads are left out.
    std::vector<int64_t> needed(network.layers.size());
    needed[last] = network.layers[last].rows;
    for (int l = last; l > 0; --l) {
      needed[l - 1] = needed[l] ? network.layers[l].prefix[needed[l] - 1] : 0;
    }
    std::vector<int64_t> done(network.layers.size() + 1), reached(network.layers.size());
    const auto advance = [&](int l, int64_t until) {
      const Prefix& prefix = network.layers[l].prefix;
      int64_t& next = done[l + 1];
      while (next < until && prefix[next] <= done[l]) {
        const int64_t block = next / height, from = next % height ? reached[l] : 0;
        const int64_t block_end = std::min(until, (block + 1) * height);
        int64_t end = next + 1;
        while (end < block_end && prefix[end] == prefix[next]) ++end;
        events.push_back({l, block, from, prefix[next], next, end});
        reached[l] = prefix[next];
        next = end;
      }
    };
    for (int64_t i = 0; i < network.steps; ++i) {
      for (int l = 0; l < last; ++l) advance(l, needed[l]);
      const int64_t outputs = (i + 1) * network.outputs_a_step;
      advance(last, outputs);
      require(done[last + 1] >= outputs);  // of the first i inputs alone
      events.push_back({-1, 0, 0, 0, i, i + 1});
      done[0] += network.inputs_a_step;
    }
  }
};

}  // namespace
}  // namespace rhovae

#define RHOVAE_KERNELS "made_inverse.cpp"
#include "targets.h"

namespace rhovae {
namespace {

std::vector<Layer> layers_of(const std::vector<Tensor>& weights,
                             const std::vector<Tensor>& prefixes) {
  std::vector<Layer> layers;
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor& w = weights[l];
    const Matrix weight{w.const_data_ptr(), w.stride(0), w.stride(1)};
    layers.push_back({w.size(0), w.size(1), weight, prefix_of(prefixes[l], w.size(1)), {}});
  }
  return layers;
}

// The transposed weights, their rows and columns in reverse: staircases again.
Layer reversed(const Layer& layer, int64_t element_bytes) {
  Layer turned{layer.columns, layer.rows, {}, {}, {}};
  const Matrix& w = layer.weight;
  const int64_t last = (layer.rows - 1) * w.row_stride + (layer.columns - 1) * w.step;
  if (layer.rows && layer.columns) {
    turned.weight.data = static_cast<const char*>(w.data) + last * element_bytes;
  }
  turned.weight.row_stride = -w.step;
  turned.weight.step = -w.row_stride;
  int64_t row = layer.rows;
  for (int64_t column = layer.columns - 1; column >= 0; --column) {
    while (row > 0 && layer.prefix[row - 1] > column) --row;
    turned.prefix.push_back(layer.rows - row);
  }
  return turned;
}

std::tuple<Tensor, Tensor> made_inverse(const Tensor& y, const Tensor& offset,
                                        const std::vector<Tensor>& weights,
                                        const std::vector<Tensor>& biases,
                                        const std::vector<Tensor>& prefixes,
                                        StringHandle activation, StringHandle scale,
                                        double bound, StringHandle tails, double min_width,
                                        double min_height, double min_derivative,
                                        double logit_scale, double clip, StringHandle slope) {
  std::vector<Tensor> keep;
  Network network;
  network.activation = take_activation(activation);
  network.scale = take_scale(scale);
  network.bound = bound;
  network.spline = SplineConvention::take(true, bound, tails, min_width, min_height,
                                          min_derivative, logit_scale, clip, slope);
  require_bound(network.scale, bound);
  const bool splines = network.scale == Scale::kSpline;
  const Leader leader(y);
  if (splines) {
    network.outputs_a_step = network.spline.take_bins(heads_each(leader, weights));
    network.spline.require_ranges();
  } else {
    network.outputs_a_step = heads_of(network.scale);
  }
  require_inversion(leader, network.outputs_a_step, offset, weights, biases, prefixes);
  network.batch = row_count(y);
  network.steps = y.size(y.dim() - 1);
  network.layers = layers_of(weights, prefixes);
  for (size_t l = 0; l < biases.size(); ++l) {
    network.layers[l + 1].bias = {biases[l].const_data_ptr(), biases[l].stride(0), 0};
  }
  network.y = rows_of(y, 1, keep);
  network.offset = rows_of(offset, 1, keep);
  Tensor x = empty_like_rows(y), log_det = empty_per_row(y);
  network.x = x.mutable_data_ptr();
  network.log_det = log_det.mutable_data_ptr();
  with_storage(y.scalar_type(), [&](auto s) {
    if (splines) {
      RHOVAE_RUN(network, SplineInversion<decltype(s)>);
    } else {
      RHOVAE_RUN(network, Inversion<decltype(s)>);
    }
  });
  return {x, log_det};
}

Tensor made_solve(const Tensor& g, const Tensor& a, const Tensor& heads,
                  const std::vector<Tensor>& slopes, const std::vector<Tensor>& weights,
                  const std::vector<Tensor>& prefixes, bool transpose) {
  const Leader leader(g);
  std::vector<Tensor> keep;
  Network network;
  network.outputs_a_step = heads_each(leader, weights);
  require_solution(leader, network.outputs_a_step, a, heads, slopes, weights, prefixes);
  network.batch = row_count(g);
  network.steps = g.size(g.dim() - 1);
  network.layers = layers_of(weights, prefixes);
  network.transpose = transpose;
  network.g = rows_of(g, 1, keep);
  network.a = rows_of(a, 1, keep);
  network.heads = rows_of(heads, 1, keep);
  for (const Tensor& slope : slopes) network.slopes.push_back(rows_of(slope, 1, keep));
  if (transpose) {
    for (Layer& layer : network.layers) layer = reversed(layer, g.element_size());
    std::reverse(network.layers.begin(), network.layers.end());
    std::reverse(network.slopes.begin(), network.slopes.end());
    std::swap(network.inputs_a_step, network.outputs_a_step);
  }
  Tensor v = empty_like_rows(g);
  network.v = v.mutable_data_ptr();
  with_storage(g.scalar_type(), [&](auto s) { RHOVAE_RUN(network, Solution<decltype(s)>); });
  return v;
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) {
  m.impl("made_inverse", TORCH_BOX(&rhovae::made_inverse));
  m.impl("made_solve", TORCH_BOX(&rhovae::made_solve));
}

#else  // RHOVAE_TARGET

#include "spline.h"

namespace rhovae {
namespace RHOVAE_TARGET {
namespace {

// What one thread works on: rows `first` … first+count−1 of the batch, as lanes.
template <typename T>
struct Slice {
  const Network& network;
  const Plan& plan;
  int64_t first;
  int count;
  T* lines;    // of all units
  T* scratch;  // of the pass

  T* line(int level, int64_t unit) const {
    return lines + (plan.first_unit[level] + unit) * kLine<T>;
  }

  // Element j of every row, in lanes; those beyond the batch are zero.
  template <typename S>
  RHOVAE_INLINE void gather(const Rows& from, int64_t j, T* line) const {
    for (int i = 0; i < count; ++i) line[i] = number(from.row<S>(first + i) + j);
    for (int i = count; i < kLine<T>; ++i) line[i] = 0;
  }
};

// units(kHeight, lanes) += weights(k, kHeight)ᵀ input(k, lanes), from unit `first` on.
template <typename T>
inline void multiply(const T* weights, const T* input, int64_t k_count, T* units, int first) {
  V<T> sum[kHeight][kVectors];
#pragma GCC unroll 12
  for (int u = 0; u < kHeight; ++u) {
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) sum[u][i] = load(units + u * kLine<T> + i * kLanes<T>);
  }
  for (int64_t k = 0; k < k_count; ++k) {
    V<T> in[kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) in[i] = load(input + k * kLine<T> + i * kLanes<T>);
#pragma GCC unroll 12
    for (int u = 0; u < kHeight; ++u) {
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) sum[u][i] += in[i] * weights[k * kHeight + u];
    }
  }
  // Units before `first` are complete: their lines hold activations by now.
#pragma GCC unroll 12
  for (int u = 0; u < kHeight; ++u) {
    if (u < first) continue;
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) store(units + u * kLine<T> + i * kLanes<T>, sum[u][i]);
  }
}

// The weights of a block, entry by entry for all its units, zeros for units that do not read it.
template <typename S>
void pack(const Layer& layer, int64_t block, Compute<S>* out) {
  using T = Compute<S>;
  const int64_t first = block * kHeight, end = std::min(first + kHeight, layer.rows);
  const int64_t columns = layer.prefix[end - 1];
  const Matrix& w = layer.weight;
  for (int u = 0; u < kHeight; ++u) {
    const int64_t row = first + u, live = row < end ? layer.prefix[row] : 0;
    const S* from = static_cast<const S*>(w.data) + (live ? row * w.row_stride : 0);
    if (w.step == 1) {
      for_vectors<T, false>(0, live, [&](int64_t k, auto n) {
        const V<T> v = load(from + k, n);
        for (int i = 0; i < n; ++i) out[(k + i) * kHeight + u] = v[i];
      });
    } else {
      for (int64_t k = 0; k < live; ++k) out[k * kHeight + u] = number(from + k * w.step);
    }
    for (int64_t k = live; k < columns; ++k) out[k * kHeight + u] = 0;
  }
}

template <typename T>
V<T> activated(Activation activation, V<T> p) {
  const V<T> zero = {}, one = broadcast(T(1));
  switch (activation) {
    case Activation::kRelu:
      return p < zero ? zero : p;
    case Activation::kElu:
      return p > zero ? p : exponential(p).expm1;
    case Activation::kTanh: {
      const V<T> magnitude = p < zero ? -p : p;
      const V<T> e = exponential(magnitude * T(-2)).expm1;
      const V<T> h = -e / (e + T(2));
      return p < zero ? -h : h;
    }
    default:
      return one / (one + exponential(-p).exp);
  }
}

// log(1 + eˢ).
template <typename T>
V<T> softplus(V<T> s) {
  V<T> result;
  for (int i = 0; i < kLanes<T>; ++i) {
    result[i] = std::max(s[i], T(0)) + std::log1p(std::exp(-std::abs(s[i])));
  }
  return result;
}

// x = [u < σ(s)]; leaves −log p(x) in place of s.
template <typename T>
RHOVAE_INLINE V<T> drawn(V<T> u, V<T>& s) {
  const V<T> zero = {}, one = broadcast(T(1));
  const V<T> x = u < one / (one + exponential(-s).exp) ? one : zero;
  s = softplus<T>(x > zero ? -s : s);
  return x;
}

// x with a(s) x + t = y; leaves log a in place of s.
template <typename T>
V<T> inverted(const Network& network, V<T> y, V<T> m, V<T>& s) {
  const V<T> one = broadcast(T(1));
  switch (network.scale) {
    case Scale::kGate: {
      const V<T> t = m / (one + exponential(s).exp);
      const V<T> inverse = one + exponential(-s).exp;
      s = -softplus<T>(-s);
      return (y - t) * inverse;
    }
    case Scale::kSoftclip: {
      const V<T> ratio = s / T(network.bound);
      s /= one + (ratio < V<T>{} ? -ratio : ratio);
      return (y - m) * exponential(-s).exp;
    }
    case Scale::kSoftplus: {
      const V<T> a = softplus<T>(s) + T(network.bound);
      for (int i = 0; i < kLanes<T>; ++i) s[i] = std::log(a[i]);
      return (y - m) / a;
    }
    default:
      return (y - m) * exponential(-s).exp;
  }
}

// Each pass says what scratch it wants, how a block begins, what becomes of a complete unit, and what
// a step makes of its outputs.
template <typename S>
struct Inversion {
  using Storage = S;
  using T = Compute<S>;

  static int64_t scratch(const Network&) { return 0; }

  static void begin(const Slice<T>& slice, int l, int64_t first, int64_t end) {
    for (int64_t unit = first; unit < end; ++unit) {
      T* line = slice.line(l + 1, unit);
      if (l == 0) {
        slice.template gather<S>(slice.network.offset, unit, line);
      } else {
        const Matrix& bias = slice.network.layers[l].bias;
        const T b = number(static_cast<const S*>(bias.data) + unit * bias.row_stride);
        for (int i = 0; i < kLine<T>; ++i) line[i] = b;
      }
    }
  }

  static void complete(const Slice<T>& slice, int l, int64_t unit) {
    T* line = slice.line(l + 1, unit);
    for (int i = 0; i < kLine<T>; i += kLanes<T>) {
      store(line + i, activated<T>(slice.network.activation, load(line + i)));
    }
  }

  // Of dimension i: s, whether there is an m before it or not. A step leaves log a there.
  static int64_t last_head(const Network& network, int64_t i) {
    return (i + 1) * network.outputs_a_step - 1;
  }

  static void step(const Slice<T>& slice, int64_t i) {
    const Network& network = slice.network;
    T* x = slice.line(0, i);
    T* s = slice.line(int(network.layers.size()), last_head(network, i));
    slice.template gather<S>(network.y, i, x);
    if (network.scale == Scale::kBernoulli) {
      for (int j = 0; j < kLine<T>; j += kLanes<T>) {
        V<T> log_p = load(s + j);
        store(x + j, drawn<T>(load(x + j), log_p));
        store(s + j, log_p);
      }
      return;
    }
    const T* m = slice.line(int(network.layers.size()), 2 * i);
    for (int j = 0; j < kLine<T>; j += kLanes<T>) {
      V<T> log_a = load(s + j);
      store(x + j, inverted<T>(network, load(x + j), load(m + j), log_a));
      store(s + j, log_a);
    }
  }

  static void finish(const Slice<T>& slice) {
    const Network& network = slice.network;
    for (int j = 0; j < slice.count; ++j) {
      T log_det = 0;
      for (int64_t i = 0; i < network.steps; ++i) {
        const int64_t at = (slice.first + j) * network.steps + i;
        if constexpr (sizeof(S) == 2) put<S>(network.x, at, slice.line(0, i)[j]);
        else static_cast<S*>(network.x)[at] = slice.line(0, i)[j];
        log_det -= slice.line(int(network.layers.size()), last_head(network, i))[j];
      }
      static_cast<T*>(network.log_det)[slice.first + j] = log_det;
    }
  }
};

// x_i = f⁻¹(y_i) of a spline f; log f' is left in place of the last head.
template <typename S>
struct SplineInversion : Inversion<S> {
  using T = Compute<S>;

  // One dimension's heads, a vector of rows at a time.
  static int64_t scratch(const Network& network) {
    return network.outputs_a_step * kLanes<T>;
  }

  static void step(const Slice<T>& slice, int64_t i) {
    const Network& network = slice.network;
    const SplineConvention& f = network.spline;
    T* x = slice.line(0, i);
    const T* heads = slice.line(int(network.layers.size()), i * network.outputs_a_step);
    T* log_slope = slice.line(int(network.layers.size()), Inversion<S>::last_head(network, i));
    Column<T>* columns = reinterpret_cast<Column<T>*>(slice.scratch);
    slice.template gather<S>(network.y, i, x);
    for (int j = 0; j < kLine<T>; j += kLanes<T>) {
      for (int64_t k = 0; k < network.outputs_a_step; ++k) {
        columns[k].set(load(heads + k * kLine<T> + j));
      }
      const Sizes<T> widths(f, f.min_width, columns, nullptr);
      const Sizes<T> heights(f, f.min_height, columns + f.bins, nullptr);
      const Bin<T, false> bin(f, load(x + j), widths, heights, columns + 2 * f.bins);
      const auto image = bin.image(f);
      store(x + j, image.value);
      store(log_slope + j, image.log_slope);
    }
  }
};

template <typename S>
struct Solution {
  using Storage = S;
  using T = Compute<S>;

  // The slopes of the block that each layer is at.
  static int64_t scratch(const Network& network) {
    return int64_t(network.layers.size()) * kHeight * kLine<T>;
  }
  static T* slope_line(const Slice<T>& slice, int layer, int64_t unit) {
    return slice.scratch + (layer * kHeight + unit % kHeight) * kLine<T>;
  }

  // Dimensions and units are counted from their ends where J is transposed.
  static int64_t counted(const Network& network, int64_t i, int64_t n) {
    return network.transpose ? n - 1 - i : i;
  }

  static void begin(const Slice<T>& slice, int l, int64_t first, int64_t end) {
    const Network& network = slice.network;
    const int64_t rows = network.layers[l].rows;
    for (int64_t unit = first; unit < end; ++unit) {
      T* line = slice.line(l + 1, unit);
      for (int i = 0; i < kLine<T>; ++i) line[i] = 0;
      if (l + 1 == int(network.layers.size())) continue;
      slice.template gather<S>(network.slopes[l], counted(network, unit, rows),
                               slope_line(slice, l, unit));
    }
  }

  static void complete(const Slice<T>& slice, int l, int64_t unit) {
    T* line = slice.line(l + 1, unit);
    const T* slope = slope_line(slice, l, unit);
    for (int i = 0; i < kLine<T>; ++i) line[i] *= slope[i];
  }

  static void step(const Slice<T>& slice, int64_t i) {
    const Network& network = slice.network;
    const int64_t dimension = counted(network, i, network.steps);
    const int outputs = int(network.layers.size());
    const int64_t heads = network.transpose ? network.inputs_a_step : network.outputs_a_step;
    T v[kLine<T>], a[kLine<T>], head[kLine<T>];
    slice.template gather<S>(network.g, dimension, v);
    slice.template gather<S>(network.a, dimension, a);
    if (network.transpose) {
      const T* n = slice.line(outputs, i);
      for (int j = 0; j < slice.count; ++j) v[j] = (v[j] - n[j]) / a[j];
      for (int64_t k = 0; k < heads; ++k) {
        slice.template gather<S>(network.heads, heads * dimension + k, head);
        T* input = slice.line(0, heads * i + (heads - 1 - k));
        for (int j = 0; j < slice.count; ++j) input[j] = head[j] * v[j];
      }
    } else {
      for (int64_t k = 0; k < heads; ++k) {
        slice.template gather<S>(network.heads, heads * dimension + k, head);
        const T* n = slice.line(outputs, heads * i + k);
        for (int j = 0; j < slice.count; ++j) v[j] -= head[j] * n[j];
      }
      T* input = slice.line(0, i);
      for (int j = 0; j < slice.count; ++j) input[j] = v[j] /= a[j];
    }
    for (int j = 0; j < slice.count; ++j) {
      put<S>(network.v, (slice.first + j) * network.steps + dimension, v[j]);
    }
  }

  static void finish(const Slice<T>&) {}
};

}  // namespace

template <typename Pass>
void run(const Network& network) {
  using T = typename Pass::T;
  const Plan plan(network, kHeight);
  const int last = int(network.layers.size()) - 1;
  const std::unique_ptr<T[]> weights(new T[plan.weights]);
  for (int l = 0; l <= last; ++l) {
    const std::vector<int64_t>& packed = plan.packed[l];
    const int64_t grain = std::max<int64_t>(
        1, kGrain / (kHeight * std::max<int64_t>(1, network.layers[l].columns)));
    torch::stable::parallel_for(0, packed.size(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        pack<typename Pass::Storage>(network.layers[l], block, weights.get() + packed[block]);
      }
    });
  }
  const int64_t slices = (network.batch + kLine<T> - 1) / kLine<T>;
  torch::stable::parallel_for(0, slices, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<T[]> lines(new T[plan.units * kLine<T>]());
    const std::unique_ptr<T[]> scratch(new T[Pass::scratch(network)]);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * kLine<T>;
      const int count = int(std::min<int64_t>(kLine<T>, network.batch - first));
      const Slice<T> slice{network, plan, first, count, lines.get(), scratch.get()};
      for (const Event& event : plan.events) {
        const int l = event.layer;
        if (l < 0) {
          Pass::step(slice, event.first);
          continue;
        }
        const int64_t top = event.block * kHeight;
        if (event.first == top) {
          Pass::begin(slice, l, top, std::min(top + kHeight, network.layers[l].rows));
        }
        multiply<T>(weights.get() + plan.packed[l][event.block] + event.from * kHeight,
                    slice.line(l, event.from), event.to - event.from, slice.line(l + 1, top),
                    int(event.first - top));
        if (l == last) continue;
        for (int64_t unit = event.first; unit < event.end; ++unit) Pass::complete(slice, l, unit);
      }
      Pass::finish(slice);
    }
  });
}

}  // namespace RHOVAE_TARGET
}  // namespace rhovae

#endif
