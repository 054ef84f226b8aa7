// The lanes that share a row: part of a warp, a warp, or a block. How rows are dealt to them, scans
// and sums over them.
//
// A lane holds one chunk of consecutive elements; the chunks of all lanes are a tile. A row of
// several tiles is walked by its group with a carry. Where rows are few and long, a row is split
// into ranges of tiles, one block each: a first launch leaves every range's aggregate in memory,
// and each block of the second makes its own carry of them. All orders are fixed, hence results
// equal bit for bit from run to run.
#pragma once

#include <algorithm>

#include "rows.cuh"

namespace rhovae::cuda {

constexpr int kWarp = 32;
constexpr int kMaxLanes = 256;
constexpr int kMaxWarps = kMaxLanes / kWarp;
constexpr int kMaxTilesPerRange = 256;
// Blocks of a grid, along x (rows) and along y (ranges).
constexpr int64_t kMaxBlocks = 0x7fffffff, kMaxRanges = 65535;
// Blocks of kMaxLanes on a multiprocessor: three leave 80 registers a thread, within which the
// kernels of scans fit. A compiler that aims higher by itself spills.
constexpr int kMinBlocks = 3;
constexpr unsigned kEveryLane = 0xffffffffu;

struct Plan {
  int64_t rows = 0;
  int64_t length = 0;  // elements of a row
  int log2_lanes = 0;  // of a group
  int ranges = 1;      // of a row
  int tiles = 1;       // of a row
  int tiles_per_range = 1;

  // Groups within a warp share a block; a group of several warps is one.
  int threads() const { return (1 << log2_lanes) <= kWarp ? 4 * kWarp : 1 << log2_lanes; }
  dim3 blocks() const {
    const int64_t groups = threads() >> log2_lanes;
    const int64_t along_rows = (rows + groups - 1) / groups;
    STD_TORCH_CHECK(along_rows <= kMaxBlocks, "rhovae: ", rows, " rows are too many");
    return dim3(unsigned(along_rows), unsigned(ranges));
  }
};

inline Plan plan_rows(const Device& device, int64_t rows, int64_t length, int chunk) {
  Plan plan;
  // Where there are no rows, none is long: a launch that is made all the same has nothing to split.
  if (rows == 0) length = 0;
  plan.rows = rows;
  plan.length = length;
  const int64_t chunks = (length + chunk - 1) / chunk;
  while ((1 << plan.log2_lanes) < chunks && (1 << plan.log2_lanes) < kMaxLanes) ++plan.log2_lanes;
  const int64_t lanes = 1 << plan.log2_lanes;
  const int64_t tiles = std::max<int64_t>(1, (chunks + lanes - 1) / lanes);
  STD_TORCH_CHECK(tiles <= kMaxRanges * kMaxTilesPerRange, "rhovae: a row of ", length,
                  " elements is too long");
  // Splitting a row costs two more launches and reads what drives the scan twice: a range is worth
  // them from some tiles on, as long as there are multiprocessors without a block.
  constexpr int64_t kWorthARange = 4, kBlocksPerMultiprocessor = 4;
  int64_t ranges = 1;
  if (tiles >= 2 * kWorthARange) {
    const int64_t wanted =
        kBlocksPerMultiprocessor * device.multiprocessors() / rows;
    ranges = std::clamp<int64_t>(wanted, 1, tiles / kWorthARange);
  }
  plan.tiles = int(tiles);
  plan.tiles_per_range = int(std::min<int64_t>((tiles + ranges - 1) / ranges, kMaxTilesPerRange));
  plan.ranges = int((tiles + plan.tiles_per_range - 1) / plan.tiles_per_range);
  return plan;
}

template <typename T>
__device__ __forceinline__ T power(T base, int64_t exponent) {
  T result = T(1);
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

// A step of the recurrence x ↦ gate·x + value, and of several of them in a row.
template <typename T>
struct Step {
  T gate, value;
};

template <typename T>
__device__ __forceinline__ Step<T> then(Step<T> first, Step<T> second) {
  return {first.gate * second.gate, second.gate * first.value + second.value};
}

class Group {
 public:
  __device__ __forceinline__ explicit Group(const Plan& plan)
      : lanes_(1 << plan.log2_lanes),
        width_(min(lanes_, kWarp)),
        row_(int64_t(blockIdx.x) * (blockDim.x >> plan.log2_lanes) +
             (threadIdx.x >> plan.log2_lanes)) {}

  __device__ int64_t row() const { return row_; }
  // Lanes of a group, and this one's place among them.
  __device__ int lanes() const { return lanes_; }
  __device__ int position() const { return threadIdx.x & (lanes_ - 1); }
  __device__ bool is_leader() const { return position() == 0; }
  // This lane's place in its part of the group that shuffles reach, and whether it ends that part.
  __device__ int lane() const { return threadIdx.x & (width_ - 1); }
  __device__ bool is_first() const { return lane() == 0; }
  __device__ bool is_last() const { return lane() == width_ - 1; }

  // The neighbours' values; unspecified in the lane that is first, or last.
  template <typename T>
  __device__ T from_previous(T x) const {
    return __shfl_up_sync(kEveryLane, x, 1, width_);
  }
  template <typename T>
  __device__ T from_next(T x) const {
    return __shfl_down_sync(kEveryLane, x, 1, width_);
  }

  // The recurrence y_i = gate·y_{i−1} + end_i over the group's chunks in order (kReverse: from the
  // last to the first), y before the first being `carry`. Returns y before this lane's chunk, and
  // leaves in `carry` y after all of them. One gate serves all, so one value travels.
  template <bool kReverse, typename T>
  __device__ __forceinline__ T scan(T end, T gate, T& carry) {
    const int place = kReverse ? width_ - 1 - lane() : lane();
    T reach = gate;     // gate of `distance` chunks
    T before = T(1);    // gate of the `place` chunks before this one
    T value = end;
    for (int distance = 1; distance < width_; distance *= 2) {
      const T other = kReverse ? __shfl_down_sync(kEveryLane, value, distance, width_)
                               : __shfl_up_sync(kEveryLane, value, distance, width_);
      if (place >= distance) value += reach * other;
      if (place & distance) before *= reach;
      reach *= reach;
    }
    T incoming = kReverse ? from_next(value) : from_previous(value);
    if (place == 0) incoming = T(0);
    T total = __shfl_sync(kEveryLane, value, kReverse ? 0 : width_ - 1, width_);
    if (lanes_ <= kWarp) {
      incoming += before * carry;
      carry = reach * carry + total;
      return incoming;
    }
    // Across warps, every thread walks the few totals.
    __shared__ T totals[2][kMaxWarps];
    const int warps = lanes_ / kWarp, warp = threadIdx.x / kWarp;
    const int order = kReverse ? warps - 1 - warp : warp;
    T* const buffer = totals[alternate()];
    if (place == 0) buffer[order] = total;
    __syncthreads();
    T into_warp = carry;
    for (int i = 0; i < warps; ++i) {
      if (i == order) into_warp = carry;
      carry = reach * carry + buffer[i];
    }
    return before * into_warp + incoming;
  }

  // The same for steps with gates of their own: returns the state before this lane's steps.
  template <typename T>
  __device__ __forceinline__ T scan(Step<T> step, T& carry) {
    Step<T> value = step;
    for (int distance = 1; distance < width_; distance *= 2) {
      const Step<T> other = {__shfl_up_sync(kEveryLane, value.gate, distance, width_),
                             __shfl_up_sync(kEveryLane, value.value, distance, width_)};
      if (lane() >= distance) value = then(other, value);
    }
    Step<T> incoming = {from_previous(value.gate), from_previous(value.value)};
    if (is_first()) incoming = {T(1), T(0)};
    const Step<T> total = {__shfl_sync(kEveryLane, value.gate, width_ - 1, width_),
                           __shfl_sync(kEveryLane, value.value, width_ - 1, width_)};
    if (lanes_ <= kWarp) {
      const T state = incoming.gate * carry + incoming.value;
      carry = total.gate * carry + total.value;
      return state;
    }
    __shared__ Step<T> totals[2][kMaxWarps];
    const int warps = lanes_ / kWarp, warp = threadIdx.x / kWarp;
    Step<T>* const buffer = totals[alternate()];
    if (is_first()) buffer[warp] = total;
    __syncthreads();
    T into_warp = carry;
    for (int i = 0; i < warps; ++i) {
      if (i == warp) into_warp = carry;
      carry = buffer[i].gate * carry + buffer[i].value;
    }
    return incoming.gate * into_warp + incoming.value;
  }

  // The group's total, in double: float32 sums of a million terms keep their digits.
  __device__ __forceinline__ double sum(double x) {
    for (int distance = width_ / 2; distance > 0; distance /= 2) {
      x += __shfl_xor_sync(kEveryLane, x, distance, width_);
    }
    if (lanes_ <= kWarp) return x;
    __shared__ double totals[2][kMaxWarps];
    double* const buffer = totals[alternate()];
    if (is_first()) buffer[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < lanes_ / kWarp; ++i) x += buffer[i];
    return x;
  }

 private:
  // Two buffers in turn: one is written again only after a barrier that follows its reading.
  __device__ int alternate() { return turn_ ^= 1; }

  int lanes_, width_;
  int64_t row_;
  int turn_ = 0;
};

// The state after `count` ranges, of aggregates that lie `step` apart, each of gate `gate`.
template <typename T>
__device__ T carry_of(Group& group, const T* aggregates, int64_t step, int64_t count, T gate) {
  T carry = T(0);
  // The padding comes first, where the state is still 0.
  const int64_t lanes = group.lanes();
  for (int64_t i = count - (count + lanes - 1) / lanes * lanes; i < count; i += lanes) {
    const int64_t j = i + group.position();
    group.scan<false>(j >= 0 ? aggregates[j * step] : T(0), gate, carry);
  }
  return carry;
}

template <typename T>
__device__ T carry_of(Group& group, const Step<T>* aggregates, int64_t count) {
  T carry = T(0);
  const int64_t lanes = group.lanes();
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t j = i + group.position();
    group.scan(j < count ? aggregates[j] : Step<T>{T(1), T(0)}, carry);
  }
  return carry;
}

// A group's row of elements between which nothing travels, and the tiles of it that are this block's.
template <typename S>
struct ElementRow {
  Group group;
  int64_t index;
  int64_t length;  // 0 in a group that has no row: it goes along with every shuffle, and masks all
  int first_tile, end_tile;
  bool exists;

  __device__ __forceinline__ explicit ElementRow(const Plan& plan)
      : group(plan), index(group.row()) {
    exists = index < plan.rows;
    length = exists ? plan.length : 0;
    first_tile = blockIdx.y * plan.tiles_per_range;
    end_tile = min(first_tile + plan.tiles_per_range, plan.tiles);
  }

  // The first of this lane's elements in a tile, and how many of them the row has.
  __device__ int64_t element(int tile) const {
    return (int64_t(tile) * group.lanes() + group.position()) * kChunk<S>;
  }
  __device__ int count(int64_t first) const { return count_in_row<S>(first, length); }
};

// One number per row that is a sum over its elements: each range gives its part, and where a row
// has several, they are added in order afterwards.
template <typename S>
struct RowSum {
  S* out = nullptr;          // (rows)
  double* parts = nullptr;   // (rows, ranges), where ranges > 1
  int64_t rows = 0;
  int ranges = 1;

  __device__ void put(int64_t row, double part) const {
    if (ranges == 1) {
      out[row] = S(Compute<S>(part));
    } else {
      parts[row * ranges + blockIdx.y] = part;
    }
  }
};

// One block per row.
template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks) add_parts(RowSum<S> sum) {
  Plan plan;
  for (plan.log2_lanes = 0; (1u << plan.log2_lanes) < blockDim.x;) ++plan.log2_lanes;
  Group group(plan);
  const int64_t row = group.row();
  double part = 0;
  for (int64_t i = group.position(); i < sum.ranges; i += group.lanes()) {
    part += sum.parts[row * sum.ranges + i];
  }
  const double total = group.sum(part);
  if (group.is_leader()) sum.out[row] = S(Compute<S>(total));
}

// A row sum on the host: `out` and, where needed, the memory of its parts.
template <typename S>
class RowSumOutput {
 public:
  RowSumOutput(const Tensor& out, bool needed, const Plan& plan) {
    if (!needed) return;
    sum_.out = static_cast<S*>(out.mutable_data_ptr());
    sum_.rows = plan.rows;
    sum_.ranges = plan.ranges;
    if (plan.ranges == 1) return;
    parts_ = uninitialized(out, {plan.rows, plan.ranges}, aoti_torch_dtype_float64());
    sum_.parts = static_cast<double*>(parts_->mutable_data_ptr());
  }

  const RowSum<S>& parameters() const { return sum_; }

  void finish(const Device& device) const {
    if (sum_.parts) device.launch(add_parts<S>, dim3(unsigned(sum_.rows)), 128, sum_);
  }

 private:
  RowSum<S> sum_;
  std::optional<Tensor> parts_;
};

}  // namespace rhovae::cuda
