// made_inverse and made_solve on CUDA. The letters are those of python_ref/made_inverse.py.
//
// The inversion and the solutions of J v = g and Jᵀ v = g are one walk through a network of
// staircases: step i gives new inputs, they complete some units of the first layer, those some of
// the second, and so on up to the outputs of step i+1. The transposed system is such a network too,
// of the transposed weights with rows and columns in reverse.
//
// A block takes four rows of the batch and walks alone. A unit is a line of four numbers; the lines
// lie in the block's shared memory, or, of a network too large for it, in memory that is the
// block's own. The units that are due are dealt to the warps. A warp's lanes share the entries that
// its units read, so that weights are read in their order, each for all four rows, and their sums
// are folded into one a lane. Then a warp takes the step, a team of lanes for each row.

#include <tuple>
#include <utility>
#include <vector>

#include "../made_inverse.h"
#include "../spline.h"
#include "platform.cuh"
#include "rows.cuh"
#include "spline.cuh"
#include "team.cuh"

namespace rhovae::cuda {
namespace {

constexpr int kRows = kWarp / kTeam;  // of a block
constexpr int kUnits = 4;             // of a warp, computed at once
constexpr int kMaxLayers = 16;
constexpr int kThreads = 256;  // of the blocks that turn a prefix
// Blocks of kMaxWarps warps on a multiprocessor: two leave 128 registers a thread.
constexpr int kWalks = 2;

template <typename T>
struct alignas(16) Line {
  T row[kRows];
};

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
  int64_t batch = 0, steps = 0;
  int layers = 0;
  int inputs_a_step = 1, outputs_a_step = 2;
  int given_a_step = 1;  // numbers of each row that a step takes besides the outputs
  Layer<S> layer[kMaxLayers];
  // A block's lines are those of inputs and hidden units, of a step's outputs, and of what it is
  // given; after them comes, for each step and hidden layer, how many units are complete.
  int64_t lines = 0, bytes = 0;
  unsigned char* memory = nullptr;  // (blocks, bytes), or null where it is shared memory
  // Of the inversion.
  Activation activation{};
  Scale scale{};
  T bound = 0;
  Spline<T> spline;
  Rows<const S> y, offset;
  Rows<S> x;
  T* log_det = nullptr;
  // Of the solutions.
  bool transpose = false;
  Rows<const S> g, a, heads;
  Rows<S> v;

  __device__ int64_t counted(int64_t i, int64_t n) const { return transpose ? n - 1 - i : i; }
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

// What one lane has in a step.
template <typename T>
struct Place {
  int64_t i, row;  // of the batch
  int line;        // its row's place in a line
  bool exists;     // the row: the last block of a batch may have fewer, and computes the last again
};

// Each pass says what a step is given, how a unit begins and what becomes of its sum, what a step
// makes of the outputs, and what is left at the end of a row.
template <typename S>
struct Inversion {
  using Storage = S;
  using T = Compute<S>;

  static __device__ T given(const Walk<S>& p, int, int64_t i, int64_t row) {
    return T(p.y.at(row, i));
  }
  static __device__ T begun(const Walk<S>& p, int l, int64_t unit, int64_t row) {
    return l == 0 ? T(p.offset.at(row, unit)) : T(p.layer[l].bias[unit * p.layer[l].bias_step]);
  }
  static __device__ T rate(const Walk<S>&, int, int64_t, int64_t) { return T(1); }
  static __device__ T completed(const Walk<S>& p, T sum, T) { return activated(p.activation, sum); }

  static __device__ void step(const Walk<S>& p, Line<T>* input, Line<T>* output,
                              const Line<T>* given, Place<T> at, T& log_det) {
    if (team_place() != 0) return;
    const T y = given[0].row[at.line];
    T s = output[p.outputs_a_step - 1].row[at.line];
    const T x = p.scale == Scale::kBernoulli
                    ? drawn(y, s)
                    : inverted(p.scale, p.bound, y, output[0].row[at.line], s);
    log_det -= s;
    input->row[at.line] = x;
    if (at.exists) p.x.at(at.row, at.i) = S(x);
  }

  static __device__ void finish(const Walk<S>& p, Place<T> at, T log_det) {
    const T total = team_sum(log_det);
    if (at.exists && team_place() == 0) p.log_det[at.row] = total;
  }
};

template <typename S>
struct SplineInversion : Inversion<S> {
  using T = Compute<S>;

  static __device__ void step(const Walk<S>& p, Line<T>* input, Line<T>* output,
                              const Line<T>* given, Place<T> at, T& log_det) {
    const Inverse<T> f =
        inverse<kRows>(p.spline, given[0].row[at.line], &output[0].row[at.line]);
    if (!f.found) return;
    log_det -= f.log_slope;
    input->row[at.line] = f.x;
    if (at.exists) p.x.at(at.row, at.i) = S(f.x);
  }
};

template <typename S>
struct Solution {
  using Storage = S;
  using T = Compute<S>;

  static __device__ T given(const Walk<S>& p, int n, int64_t i, int64_t row) {
    const int64_t j = p.counted(i, p.steps), heads = p.given_a_step - 2;
    return n == 0   ? T(p.g.at(row, j))
           : n == 1 ? T(p.a.at(row, j))
                    : T(p.heads.at(row, heads * j + n - 2));
  }
  static __device__ T begun(const Walk<S>&, int, int64_t, int64_t) { return T(0); }
  static __device__ T rate(const Walk<S>& p, int l, int64_t unit, int64_t row) {
    if (l == p.layers - 1) return T(1);
    return T(p.layer[l].slopes.at(row, p.counted(unit, p.layer[l].rows)));
  }
  static __device__ T completed(const Walk<S>&, T sum, T rate) { return sum * rate; }

  static __device__ void step(const Walk<S>& p, Line<T>* input, Line<T>* output,
                              const Line<T>* given, Place<T> at, T&) {
    const int heads = p.given_a_step - 2, r = at.line;
    const Line<T>* const head = given + 2;
    T sum = 0;
    if (!p.transpose) {
      for (int k = team_place(); k < heads; k += kTeam) sum += head[k].row[r] * output[k].row[r];
      sum = team_sum(sum);
    } else {
      sum = output[0].row[r];
    }
    const T v = (given[0].row[r] - sum) / given[1].row[r];
    if (p.transpose) {
      for (int k = team_place(); k < heads; k += kTeam) {
        input[heads - 1 - k].row[r] = head[k].row[r] * v;
      }
    } else if (team_place() == 0) {
      input->row[r] = v;
    }
    if (at.exists && team_place() == 0) p.v.at(at.row, p.counted(at.i, p.steps)) = S(v);
  }

  static __device__ void finish(const Walk<S>&, Place<T>, T) {}
};

// The sums that the lanes of a warp have parts of: lane i is left with that of place
// i / (kWarp / N), whole.
template <int N, int kDistance = kWarp / 2, typename T>
__device__ __forceinline__ T fold(T* sum) {
  if constexpr (N > 1) {
    const bool upper = threadIdx.x & kDistance;
#pragma unroll
    for (int j = 0; j < N / 2; ++j) {
      const T other = upper ? sum[j] : sum[j + N / 2];
      sum[j] = (upper ? sum[j + N / 2] : sum[j]) + __shfl_xor_sync(kEveryLane, other, kDistance);
    }
    return fold<N / 2, kDistance / 2>(sum);
  } else if constexpr (kDistance > 0) {
    sum[0] += __shfl_xor_sync(kEveryLane, sum[0], kDistance);
    return fold<1, kDistance / 2>(sum);
  } else {
    return sum[0];
  }
}

// Units first, first + apart, … of layer l, `count` ≤ U of them, of what `known` entries of the
// layer's input there are. For one warp.
template <typename Pass, int U, typename S = typename Pass::Storage, typename T = Compute<S>>
__device__ __forceinline__ void compute(const Walk<S>& p, int l, const Line<T>* input,
                                        Line<T>* output, int64_t first, int apart, int count,
                                        int known, int64_t first_row) {
  constexpr int kSums = U * kRows, kLanes = kWarp / kSums;  // that are left with the same sum
  const int lane = threadIdx.x % kWarp, own = lane / kLanes;
  const Layer<S>& layer = p.layer[l];
  // What is needed after the products is asked for before them.
  const int own_row = own % kRows;
  const bool there = own / kRows < count;
  const int64_t unit = there ? first + own / kRows * apart : first;
  const int64_t row = min(first_row + own_row, p.batch - 1);
  const T begun = Pass::begun(p, l, unit, row), rate = Pass::rate(p, l, unit, row);

  T sum[kSums];
  int reads[U];
  const S* weight[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    const int64_t at = u < count ? first + u * apart : first;
    reads[u] = u < count ? layer.prefix[at * layer.prefix_step] : 0;
    weight[u] = layer.weight + at * layer.row_stride + lane * layer.step;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[u * kRows + r] = T(0);
  }
  // An entry that is known may be read, whether a unit's sum takes it or not.
#pragma unroll 4
  for (int k = lane; k < known; k += kWarp) {
    const Line<T> h = input[k];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const T w = T(*weight[u]);
      weight[u] += kWarp * layer.step;
      if (k < reads[u]) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[u * kRows + r] += w * h.row[r];
      }
    }
  }
  const T total = begun + fold<kSums>(sum);
  if (there && lane % kLanes == 0) {
    output[own / kRows * apart].row[own_row] =
        l == p.layers - 1 ? total : Pass::completed(p, total, rate);
  }
}

// Units from … to−1 of layer l, of which `output` takes the first.
template <typename Pass, typename S = typename Pass::Storage, typename T = Compute<S>>
__device__ __forceinline__ void compute_all(const Walk<S>& p, int l, const Line<T>* input,
                                            Line<T>* output, int64_t from, int64_t to, int known,
                                            int64_t first_row) {
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  for (int64_t unit = from + warp; unit < to; unit += kUnits * warps) {
    const int count = int(min(int64_t(kUnits), (to - unit - 1) / warps + 1));
    Line<T>* const own = output + (unit - from);
    if (count == 1) {
      compute<Pass, 1>(p, l, input, own, unit, warps, count, known, first_row);
    } else if (count == 2) {
      compute<Pass, 2>(p, l, input, own, unit, warps, count, known, first_row);
    } else {
      compute<Pass, kUnits>(p, l, input, own, unit, warps, count, known, first_row);
    }
  }
}

// The first of a layer's rows that reads more than `known` entries; prefixes do not decrease.
__device__ __forceinline__ int64_t first_beyond(const int32_t* prefix, int64_t step, int64_t rows,
                                                int64_t known) {
  int64_t least = 0, most = rows;
  while (least < most) {
    const int64_t middle = (least + most) / 2;
    if (prefix[middle * step] > known) {
      most = middle;
    } else {
      least = middle + 1;
    }
  }
  return least;
}

template <typename Pass, typename S = typename Pass::Storage, typename T = Compute<S>>
__device__ __forceinline__ void walk(const Walk<S>& p) {
  unsigned char* const memory =
      p.memory ? p.memory + int64_t(blockIdx.x) * p.bytes : shared_memory();
  Line<T>* const lines = reinterpret_cast<Line<T>*>(memory);
  Line<T>* const output = lines + p.lines;
  Line<T>* const given = output + p.outputs_a_step;
  int32_t* const complete = reinterpret_cast<int32_t*>(given + p.given_a_step);
  const int last = p.layers - 1, lane = threadIdx.x % kWarp;
  for (int64_t i = threadIdx.x; i < p.steps; i += blockDim.x) {
    int64_t known = i * p.inputs_a_step;
    for (int l = 0; l < last; ++l) {
      const Layer<S>& layer = p.layer[l];
      known = first_beyond(layer.prefix, layer.prefix_step, layer.rows, known);
      complete[i * last + l] = int32_t(known);
    }
  }
  __syncthreads();
  const int64_t slices = (p.batch + kRows - 1) / kRows;
  for (int64_t slice = blockIdx.x; slice < slices; slice += gridDim.x) {
    const int64_t first_row = slice * kRows;
    Place<T> at;
    at.line = lane / kTeam;
    at.exists = first_row + at.line < p.batch;
    at.row = min(first_row + at.line, p.batch - 1);
    T log_det = 0;
    for (at.i = 0; at.i < p.steps; ++at.i) {
      // What the step is given is asked for before the layers, and put down after them.
      const auto number = [&](int n) {
        return Pass::given(p, n / kRows, at.i, min(first_row + n % kRows, p.batch - 1));
      };
      const int numbers = p.given_a_step * kRows, own = threadIdx.x;
      const T early = own < numbers ? number(own) : T(0);
      int known = int(at.i) * p.inputs_a_step;
      for (int l = 0; l < last; ++l) {
        const Layer<S>& layer = p.layer[l];
        const int from = at.i ? complete[(at.i - 1) * last + l] : 0;
        const int to = complete[at.i * last + l];
        if (from < to) {
          compute_all<Pass>(p, l, lines + layer.first_input_line, lines + layer.first_line + from,
                            from, to, known, first_row);
          __syncthreads();
        }
        known = to;
      }
      if (own < numbers) given[own / kRows].row[own % kRows] = early;
      for (int n = own + blockDim.x; n < numbers; n += blockDim.x) {
        given[n / kRows].row[n % kRows] = number(n);
      }
      const int64_t first = at.i * p.outputs_a_step;
      compute_all<Pass>(p, last, lines + p.layer[last].first_input_line, output, first,
                        first + p.outputs_a_step, known, first_row);
      __syncthreads();
      if (threadIdx.x < kWarp) {
        Pass::step(p, lines + at.i * p.inputs_a_step, output, given, at, log_det);
      }
      __syncthreads();
    }
    if (threadIdx.x < kWarp) Pass::finish(p, at, log_det);
  }
}

template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kWalks) inversion(Walk<S> p) {
  walk<Inversion<S>>(p);
}

template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kWalks) spline_inversion(Walk<S> p) {
  walk<SplineInversion<S>>(p);
}

template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kWalks) solution(Walk<S> p) {
  walk<Solution<S>>(p);
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
  p.out[i] = int32_t(p.rows - first_beyond(p.prefix, p.step, p.rows, p.columns - 1 - i));
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

// A matrix whose columns lie in one piece each: itself, or a copy.
Tensor in_columns(const Tensor& x) {
  if (x.stride(0) == 1) return x;
  return torch::stable::transpose(in_order(torch::stable::transpose(x, 0, 1)), 0, 1);
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

// Starts so many blocks as there are rows for; more than a device runs at once take turns.
template <typename S>
void launch(const Device& device, const Tensor& like, void (*kernel)(Walk<S>), Walk<S>& p) {
  constexpr int64_t kBlocksPerMultiprocessor = 8;
  p.lines = p.steps * p.inputs_a_step;
  int64_t input = 0, due = p.outputs_a_step;  // units of a layer that a step makes due, about
  for (int l = 0; l < p.layers; ++l) {
    Layer<S>& layer = p.layer[l];
    layer.first_input_line = input;
    layer.first_line = input = p.lines;
    if (l + 1 == p.layers) break;
    p.lines += layer.rows;
    due = std::max(due, layer.rows / std::max<int64_t>(1, p.steps));
  }
  const int64_t line = sizeof(Line<Compute<S>>), counts = p.steps * (p.layers - 1);
  p.bytes = (p.lines + p.outputs_a_step + p.given_a_step) * line;
  p.bytes += (counts * int64_t(sizeof(int32_t)) + line - 1) / line * line;
  const int64_t slices = (p.batch + kRows - 1) / kRows;
  const int64_t blocks = std::min(slices, kBlocksPerMultiprocessor * device.multiprocessors());
  const int threads = kWarp * int(std::min<int64_t>(due, kMaxWarps));
  const bool shared = p.bytes <= device.shared_bytes();
  std::vector<Tensor> keep;
  if (!shared) {
    keep.push_back(uninitialized(like, {blocks, p.bytes}, aoti_torch_dtype_uint8()));
    p.memory = static_cast<unsigned char*>(keep.back().mutable_data_ptr());
  }
  device.launch(kernel, dim3(unsigned(blocks)), threads, p, shared ? p.bytes : 0);
}

std::tuple<Tensor, Tensor> made_inverse(Tensor y, Tensor offset, std::vector<Tensor> weights,
                                        std::vector<Tensor> biases, std::vector<Tensor> prefixes,
                                        StringHandle activation_name, StringHandle scale_name,
                                        double bound, StringHandle tails, double min_width,
                                        double min_height, double min_derivative,
                                        double logit_scale, double clip, StringHandle slope) {
  const Activation activation = take_activation(activation_name);
  const Scale scale = take_scale(scale_name);
  SplineConvention spline = SplineConvention::take(true, bound, tails, min_width, min_height,
                                                   min_derivative, logit_scale, clip, slope);
  require_bound(scale, bound);
  const Leader leader(y);
  int64_t heads = heads_of(scale);
  if (scale == Scale::kSpline) {
    heads = spline.take_bins(heads_each(leader, weights));
    spline.require_ranges();
  }
  require_inversion(leader, heads, offset, weights, biases, prefixes);
  const Device device(y);
  Tensor x = uninitialized_like(y), log_det = uninitialized_per_row(y);
  by_storage(y, [&](auto storage) {
    using S = decltype(storage);
    Walk<S> p;
    p.batch = row_count(y);
    p.steps = y.size(y.dim() - 1);
    p.outputs_a_step = int(heads);
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
    if (scale == Scale::kSpline) {
      p.spline = Spline<Compute<S>>::of(spline);
      launch(device, y, spline_inversion<S>, p);
    } else {
      launch(device, y, inversion<S>, p);
    }
  });
  return {x, log_det};
}

Tensor made_solve(Tensor g, Tensor a, Tensor heads, std::vector<Tensor> slopes,
                  std::vector<Tensor> weights, std::vector<Tensor> prefixes, bool transposed) {
  const Leader leader(g);
  const int64_t count = heads_each(leader, weights);
  require_solution(leader, count, a, heads, slopes, weights, prefixes);
  const Device device(g);
  Tensor v = uninitialized_like(g);
  if (g.numel() == 0) return v;
  if (transposed) {
    // Of which a warp reads columns, that are to lie in one piece.
    for (Tensor& w : weights) w = in_columns(w);
  }
  by_storage(g, [&](auto storage) {
    using S = decltype(storage);
    Walk<S> p;
    p.batch = row_count(g);
    p.steps = g.size(g.dim() - 1);
    p.outputs_a_step = int(count);
    p.given_a_step = 2 + int(count);
    set_layers(p, weights, prefixes);
    for (size_t l = 0; l < slopes.size(); ++l) p.layer[l].slopes = rows_of<const S>(slopes[l]);
    p.g = rows_of<const S>(g);
    p.a = rows_of<const S>(a);
    p.heads = rows_of<const S>(heads);
    p.v = rows_of<S>(v);
    std::vector<Tensor> keep;
    if (transposed) transpose(device, g, p, keep);
    launch(device, g, solution<S>, p);
  });
  return v;
}

}  // namespace

RHOVAE_CUDA_LIBRARY(m) {
  m.impl("made_inverse", TORCH_BOX(&made_inverse));
  m.impl("made_solve", TORCH_BOX(&made_solve));
}

}  // namespace rhovae::cuda
