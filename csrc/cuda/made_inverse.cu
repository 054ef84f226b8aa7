// made_inverse and made_solve on CUDA. The letters are those of python_ref/made_inverse.py.
//
// The inversion and the solutions of J v = g and Jᵀ v = g are one walk through a network of
// staircases: step i gives new inputs, they complete some units of the first layer, those some of
// the second, and so on up to the outputs of step i+1. The transposed system is such a network too,
// of the transposed weights with rows and columns in reverse.
//
// A block takes 32 rows of the batch, one a lane, and walks alone: a unit is a line of 32 numbers in
// memory that is the block's own. Up to eight units that are due are computed at once, the entries
// that they read dealt to the warps in turn, and the warps' parts are added in order.

#include <tuple>
#include <vector>

#include "../made_inverse.h"
#include "../spline.h"
#include "platform.cuh"
#include "rows.cuh"

namespace rhovae::cuda {
namespace {

constexpr int kLine = 32;   // lanes of a line: a warp
constexpr int kUnits = 8;   // computed at once
constexpr int kMaxLayers = 16;
constexpr int kThreads = 256;  // of the blocks that turn a prefix
// A network no wider than this is walked by blocks of one warp, a wider one by blocks of eight.
constexpr int64_t kNarrow = 128;
constexpr int kManyWarps = 8;
// Warps on a multiprocessor that leave 128 registers a thread: a compiler that aims higher by itself
// spills.
constexpr int kMinWarps = 16;

// Weight (row, k) lies at weight[row·row_stride + k·step]; strides may be negative.
template <typename S>
struct Layer {
  const S* weight = nullptr;
  int64_t row_stride = 0, step = 0;
  const int32_t* prefix = nullptr;
  int64_t prefix_step = 1;
  int64_t rows = 0, columns = 0;
  const S* bias = nullptr;
  int64_t bias_step = 0;
  Rows<const S> slopes;  // of a solution
  int64_t first_line = 0, first_input_line = 0;
};

template <typename S>
struct Walk {
  using T = Compute<S>;
  int64_t batch = 0, steps = 0, lines = 0;
  int layers = 0;
  int inputs_a_step = 1, outputs_a_step = 2;
  Layer<S> layer[kMaxLayers];
  T* memory = nullptr;  // (blocks, lines, kLine)
  // Of the inversion.
  Activation activation{};
  Scale scale{};
  T bound = 0;
  Rows<const S> y, offset;
  Rows<S> x;
  T* log_det = nullptr;
  // Of the solutions.
  bool transpose = false;
  Rows<const S> g, a, heads;
  Rows<S> v;
};

template <typename T>
__device__ __forceinline__ T activated(Activation activation, T p) {
  switch (activation) {
    case Activation::kRelu:
      return p < T(0) ? T(0) : p;
    case Activation::kElu:
      return p > T(0) ? p : std::expm1(p);
    case Activation::kTanh:
      return std::tanh(p);
    default:
      return T(1) / (T(1) + std::exp(-p));
  }
}

// log(1 + eˢ).
template <typename T>
__device__ __forceinline__ T softplus(T s) {
  return (s > T(0) ? s : T(0)) + std::log1p(std::exp(-std::abs(s)));
}

// x = [u < σ(s)]; leaves −log p(x) in place of s.
template <typename T>
__device__ __forceinline__ T drawn(T u, T& s) {
  const bool x = u < T(1) / (T(1) + std::exp(-s));
  s = softplus(x ? -s : s);
  return x ? T(1) : T(0);
}

// x with a(s) x + t = y; leaves log a in place of s.
template <typename T>
__device__ __forceinline__ T inverted(Scale scale, T bound, T y, T m, T& s) {
  switch (scale) {
    case Scale::kGate: {
      const T t = m / (T(1) + std::exp(s));
      const T inverse = T(1) + std::exp(-s);
      s = -softplus(-s);
      return (y - t) * inverse;
    }
    case Scale::kSoftclip:
      s /= T(1) + std::abs(s / bound);
      return (y - m) * std::exp(-s);
    case Scale::kSoftplus: {
      const T a = softplus(s) + bound;
      s = std::log(a);
      return (y - m) / a;
    }
    default:
      return (y - m) * std::exp(-s);
  }
}

// What a unit is before its layer's input is added to it.
template <typename S, bool kSolution>
__device__ __forceinline__ Compute<S> begun(const Walk<S>& p, int l, int64_t unit, int64_t row) {
  using T = Compute<S>;
  if (kSolution || row >= p.batch) return T(0);
  return l == 0 ? T(p.offset.at(row, unit)) : T(p.layer[l].bias[unit * p.layer[l].bias_step]);
}

template <typename S, bool kSolution>
__device__ __forceinline__ Compute<S> completed(const Walk<S>& p, int l, int64_t unit, int64_t row,
                                                Compute<S> sum) {
  using T = Compute<S>;
  if (l == p.layers - 1) return sum;
  if constexpr (kSolution) {
    const Layer<S>& layer = p.layer[l];
    const int64_t counted = p.transpose ? layer.rows - 1 - unit : unit;
    return row < p.batch ? sum * T(layer.slopes.at(row, counted)) : T(0);
  } else {
    return activated(p.activation, sum);
  }
}

// Units first … first+count−1 of layer l, all of them due now that `known` of its inputs are; `done`
// says so afterwards. Ends with a barrier.
template <typename S, bool kSolution, int kWarps>
__device__ __forceinline__ void compute(const Walk<S>& p, Compute<S>* lines, int l, int64_t first,
                                        int count, int64_t known, int64_t row, int64_t* done) {
  using T = Compute<S>;
  __shared__ T parts[kWarps][kUnits][kLine];
  const int warp = threadIdx.x / kLine, lane = threadIdx.x % kLine;
  const Layer<S>& layer = p.layer[l];
  T sum[kUnits];
  int reads[kUnits], most = 0;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    sum[u] = T(0);
    reads[u] =
        u < count ? int(min(int64_t(layer.prefix[(first + u) * layer.prefix_step]), known)) : 0;
    most = max(most, reads[u]);
  }
  const T* const input = lines + layer.first_input_line * kLine + lane;
  const S* const weight = layer.weight + first * layer.row_stride;
  for (int k = warp; k < most; k += kWarps) {
    const T h = input[int64_t(k) * kLine];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (k < reads[u]) sum[u] += T(weight[u * layer.row_stride + k * layer.step]) * h;
    }
  }
#pragma unroll
  for (int u = 0; u < kUnits; ++u) parts[warp][u][lane] = sum[u];
  __syncthreads();
  for (int u = warp; u < count; u += kWarps) {
    const int64_t unit = first + u;
    T total = begun<S, kSolution>(p, l, unit, row);
    for (int w = 0; w < kWarps; ++w) total += parts[w][u][lane];
    lines[(layer.first_line + unit) * kLine + lane] =
        completed<S, kSolution>(p, l, unit, row, total);
  }
  if (threadIdx.x == 0) *done = first + count;
  __syncthreads();
}

// What a step makes of its outputs: the inputs that follow. For the lanes of one warp.
template <typename S, bool kSolution>
__device__ __forceinline__ void take_step(const Walk<S>& p, Compute<S>* lines, int64_t i,
                                          int64_t row, Compute<S>& log_det) {
  using T = Compute<S>;
  const int lane = threadIdx.x % kLine;
  const T* const outputs =
      lines + (p.layer[p.layers - 1].first_line + i * p.outputs_a_step) * kLine + lane;
  T* const inputs = lines + i * p.inputs_a_step * kLine + lane;
  const bool exists = row < p.batch;
  if constexpr (kSolution) {
    const int64_t j = p.transpose ? p.steps - 1 - i : i;
    const T g = exists ? T(p.g.at(row, j)) : T(0), a = exists ? T(p.a.at(row, j)) : T(1);
    const T even = exists ? T(p.heads.at(row, 2 * j)) : T(0);
    const T odd = exists ? T(p.heads.at(row, 2 * j + 1)) : T(0);
    T v;
    if (p.transpose) {
      v = (g - outputs[0]) / a;
      inputs[0] = odd * v;
      inputs[kLine] = even * v;
    } else {
      v = (g - even * outputs[0] - odd * outputs[kLine]) / a;
      inputs[0] = v;
    }
    if (exists) p.v.at(row, j) = S(v);
  } else {
    const T y = exists ? T(p.y.at(row, i)) : T(0);
    T s = outputs[(p.outputs_a_step - 1) * kLine];
    const T x = p.scale == Scale::kBernoulli ? drawn(y, s)
                                             : inverted(p.scale, p.bound, y, outputs[0], s);
    log_det -= s;
    inputs[0] = x;
    if (exists) p.x.at(row, i) = S(x);
  }
}

template <typename S, bool kSolution, int kWarps>
__global__ void __launch_bounds__(kWarps* kLine, kMinWarps / kWarps)
    walk(Walk<S> p) {
  using T = Compute<S>;
  __shared__ int64_t done[kMaxLayers];  // units of each layer that are complete
  T* const lines = p.memory + int64_t(blockIdx.x) * p.lines * kLine;
  const int last = p.layers - 1;
  const int64_t slices = (p.batch + kLine - 1) / kLine;
  for (int64_t slice = blockIdx.x; slice < slices; slice += gridDim.x) {
    const int64_t row = slice * kLine + threadIdx.x % kLine;
    T log_det = 0;
    static_assert(kMaxLayers <= kLine);
    if (threadIdx.x < kMaxLayers) done[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = 0; i < p.steps; ++i) {
      int64_t known = i * p.inputs_a_step;
      for (int l = 0; l < last; ++l) {
        const Layer<S>& layer = p.layer[l];
        for (;;) {
          const int64_t first = done[l];
          int count = 0;
          while (count < kUnits && first + count < layer.rows &&
                 layer.prefix[(first + count) * layer.prefix_step] <= known) {
            ++count;
          }
          if (count == 0) break;
          compute<S, kSolution, kWarps>(p, lines, l, first, count, known, row, &done[l]);
        }
        known = done[l];
      }
      compute<S, kSolution, kWarps>(p, lines, last, i * p.outputs_a_step, p.outputs_a_step, known,
                                    row, &done[last]);
      if (threadIdx.x < kLine) take_step<S, kSolution>(p, lines, i, row, log_det);
      __syncthreads();
    }
    if (!kSolution && threadIdx.x < kLine && row < p.batch) p.log_det[row] = log_det;
  }
}

// The prefix of a layer's transposed weight, rows and columns in reverse.
struct Turned {
  const int32_t* prefix;
  int64_t step, rows, columns;
  int32_t* out;  // (columns)
};

__global__ void __launch_bounds__(kThreads) turn_prefix(Turned p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.columns) return;
  const int64_t column = p.columns - 1 - i;
  int64_t least = 0, most = p.rows;  // the first row that reads the column is among these
  while (least < most) {
    const int64_t middle = (least + most) / 2;
    if (p.prefix[middle * p.step] > column) {
      most = middle;
    } else {
      least = middle + 1;
    }
  }
  p.out[i] = int32_t(p.rows - least);
}

template <typename S>
void set_layers(Walk<S>& p, const std::vector<Tensor>& weights,
                const std::vector<Tensor>& prefixes) {
  STD_TORCH_CHECK(weights.size() <= kMaxLayers, "rhovae: made_inverse takes at most ",
                  kMaxLayers - 1, " hidden layers on CUDA");
  p.layers = int(weights.size());
  for (int l = 0; l < p.layers; ++l) {
    Layer<S>& layer = p.layer[l];
    layer.weight = static_cast<const S*>(weights[l].const_data_ptr());
    layer.row_stride = weights[l].stride(0);
    layer.step = weights[l].stride(1);
    layer.prefix = static_cast<const int32_t*>(prefixes[l].const_data_ptr());
    layer.prefix_step = prefixes[l].stride(0);
    layer.rows = weights[l].size(0);
    layer.columns = weights[l].size(1);
  }
}

// The transposed network; `keep` holds its prefixes.
template <typename S>
void transpose(const Device& device, const Tensor& like, Walk<S>& p, std::vector<Tensor>& keep) {
  std::vector<Layer<S>> turned;
  for (int l = p.layers - 1; l >= 0; --l) {
    Layer<S> layer = p.layer[l];
    if (layer.rows && layer.columns) {
      layer.weight += (layer.rows - 1) * layer.row_stride + (layer.columns - 1) * layer.step;
    }
    keep.push_back(uninitialized(like, {layer.columns}, aoti_torch_dtype_int32()));
    const Turned turn{layer.prefix, layer.prefix_step, layer.rows, layer.columns,
                      static_cast<int32_t*>(keep.back().mutable_data_ptr())};
    device.launch(turn_prefix, dim3(unsigned((layer.columns + kThreads - 1) / kThreads)), kThreads,
                  turn);
    layer.prefix = turn.out;
    layer.prefix_step = 1;
    std::swap(layer.rows, layer.columns);
    std::swap(layer.row_stride, layer.step);
    layer.row_stride = -layer.row_stride;
    layer.step = -layer.step;
    layer.slopes = l > 0 ? p.layer[l - 1].slopes : Rows<const S>{};
    turned.push_back(layer);
  }
  std::copy(turned.begin(), turned.end(), p.layer);
  std::swap(p.inputs_a_step, p.outputs_a_step);
  p.transpose = true;
}

template <bool kSolution, typename S>
void launch(const Device& device, const Tensor& like, Walk<S>& p) {
  constexpr int64_t kBlocksPerMultiprocessor = 2;
  p.lines = p.steps * p.inputs_a_step;
  int64_t input = 0, widest = 0;
  for (int l = 0; l < p.layers; ++l) {
    p.layer[l].first_input_line = input;
    p.layer[l].first_line = input = p.lines;
    p.lines += p.layer[l].rows;
    widest = std::max(widest, p.layer[l].columns);
  }
  const int64_t slices = (p.batch + kLine - 1) / kLine;
  const int64_t blocks = std::min(slices, kBlocksPerMultiprocessor * device.multiprocessors());
  const Tensor memory = uninitialized(like, {blocks, p.lines, kLine * int64_t(sizeof(Compute<S>))},
                                      aoti_torch_dtype_uint8());
  p.memory = static_cast<Compute<S>*>(memory.mutable_data_ptr());
  if (widest <= kNarrow) {
    device.launch(walk<S, kSolution, 1>, dim3(unsigned(blocks)), kLine, p);
  } else {
    device.launch(walk<S, kSolution, kManyWarps>, dim3(unsigned(blocks)), kManyWarps * kLine, p);
  }
}

std::tuple<Tensor, Tensor> made_inverse(Tensor y, Tensor offset, std::vector<Tensor> weights,
                                        std::vector<Tensor> biases, std::vector<Tensor> prefixes,
                                        StringHandle activation_name, StringHandle scale_name,
                                        double bound, StringHandle tails, double min_width,
                                        double min_height, double min_derivative,
                                        double logit_scale, double clip, StringHandle slope) {
  const Activation activation = take_activation(activation_name);
  const Scale scale = take_scale(scale_name);
  // Splines are not inverted here; what there is to know of them is asked as on the CPU.
  SplineConvention::take(true, bound, tails, min_width, min_height, min_derivative, logit_scale,
                         clip, slope);
  require(scale != Scale::kSpline);
  require_bound(scale, bound);
  require_inversion(Leader(y), heads_of(scale), offset, weights, biases, prefixes);
  const Device device(y);
  Tensor x = uninitialized_like(y), log_det = uninitialized_per_row(y);
  by_storage(y, [&](auto storage) {
    using S = decltype(storage);
    Walk<S> p;
    p.batch = row_count(y);
    p.steps = y.size(y.dim() - 1);
    p.outputs_a_step = heads_of(scale);
    set_layers(p, weights, prefixes);
    for (size_t l = 0; l < biases.size(); ++l) {
      p.layer[l + 1].bias = static_cast<const S*>(biases[l].const_data_ptr());
      p.layer[l + 1].bias_step = biases[l].stride(0);
    }
    p.activation = activation;
    p.scale = scale;
    p.bound = Compute<S>(bound);
    p.y = rows_of<const S>(y);
    p.offset = rows_of<const S>(offset);
    p.x = rows_of<S>(x);
    p.log_det = static_cast<Compute<S>*>(log_det.mutable_data_ptr());
    launch<false>(device, y, p);
  });
  return {x, log_det};
}

Tensor made_solve(Tensor g, Tensor a, Tensor heads, std::vector<Tensor> slopes,
                  std::vector<Tensor> weights, std::vector<Tensor> prefixes, bool transposed) {
  require_solution(Leader(g), 2, a, heads, slopes, weights, prefixes);
  const Device device(g);
  Tensor v = uninitialized_like(g);
  by_storage(g, [&](auto storage) {
    using S = decltype(storage);
    Walk<S> p;
    p.batch = row_count(g);
    p.steps = g.size(g.dim() - 1);
    set_layers(p, weights, prefixes);
    for (size_t l = 0; l < slopes.size(); ++l) p.layer[l].slopes = rows_of<const S>(slopes[l]);
    p.g = rows_of<const S>(g);
    p.a = rows_of<const S>(a);
    p.heads = rows_of<const S>(heads);
    p.v = rows_of<S>(v);
    std::vector<Tensor> keep;
    if (transposed) transpose(device, g, p, keep);
    launch<true>(device, g, p);
  });
  return v;
}

}  // namespace

RHOVAE_CUDA_LIBRARY(m) {
  m.impl("made_inverse", TORCH_BOX(&made_inverse));
  m.impl("made_solve", TORCH_BOX(&made_solve));
}

}  // namespace rhovae::cuda
