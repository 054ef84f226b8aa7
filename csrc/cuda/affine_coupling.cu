// Affine coupling on CUDA, in either direction: x where the mask is true, elsewhere x e^s + t or
// (x − t) e^−s, and ±Σ s.
//
// The letters are those of python_ref/affine_coupling.py. Bytes are the limit: forward reads x,
// log_scale, t and writes y; backward reads g, x, log_scale (t for the inverse) and writes ∂x,
// ∂log_scale, ∂t. A lane whose elements all pass reads no log_scale and no t.

#include <tuple>

#include "../strings.h"
#include "group.cuh"

namespace rhovae::cuda {
namespace {

// What both passes take.
template <typename S>
struct Inputs {
  Plan plan;
  Rows<const S> x, log_scale, shift;
  const bool* mask = nullptr;
  bool mask_aligned = false;  // to a chunk's flags
  bool inverse = false;
  bool bounded = false;  // by tanh
};

template <int E>
struct alignas(E) Flags {
  bool flag[E];
};

// Bit e: element e of a lane's chunk is one of the row's, and the mask is false there.
template <typename S>
__device__ __forceinline__ unsigned live_elements(const Inputs<S>& in, int64_t first, int count) {
  constexpr int E = kChunk<S>;
  unsigned live = 0;
  if (in.mask_aligned && count == E) {
    const Flags<E> flags = *reinterpret_cast<const Flags<E>*>(in.mask + first);
#pragma unroll
    for (int e = 0; e < E; ++e) live |= unsigned(!flags.flag[e]) << e;
  } else {
#pragma unroll
    for (int e = 0; e < E; ++e) live |= unsigned(e < count && !in.mask[first + e]) << e;
  }
  return live;
}

__device__ __forceinline__ bool is_set(unsigned bits, int e) { return bits >> e & 1; }

// s and ds/dlog_scale; s is 0 where the element is not live.
template <typename T>
__device__ __forceinline__ Tanh<T> scale_of(T log_scale, bool live, bool bounded) {
  const T u = live ? log_scale : T(0);
  return bounded ? Tanh<T>::of(u) : Tanh<T>{u, T(1)};
}

template <typename S>
struct Coupling {
  Inputs<S> in;
  Rows<S> out;
  RowSum<Compute<S>> log_det;
};

template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks) coupling_kernel(Coupling<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  ElementRow<S> row(p.in.plan);
  double log_det = 0;
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t first = row.element(tile);
    const int count = row.count(first);
    const unsigned live = live_elements(p.in, first, count);
    T x[E], log_scale[E], shift[E], part = 0;
    load(p.in.x, row.index, first, count, x);
    if (live) {
      load(p.in.log_scale, row.index, first, count, log_scale);
      load(p.in.shift, row.index, first, count, shift);
#pragma unroll
      for (int e = 0; e < E; ++e) {
        const T s = scale_of(log_scale[e], is_set(live, e), p.in.bounded).tanh;
        const T y = p.in.inverse ? (x[e] - shift[e]) * std::exp(-s) : x[e] * std::exp(s) + shift[e];
        if (is_set(live, e)) x[e] = y;
        part += s;
      }
    }
    store(p.out, row.index, first, count, x);
    log_det += part;
  }
  log_det = row.group.sum(log_det);
  if (row.group.is_leader() && row.exists) {
    p.log_det.put(row.index, p.in.inverse ? -log_det : log_det);
  }
}

template <typename S>
struct CouplingBackward {
  Inputs<S> in;
  Rows<const S> grad_out;               // none: zero
  Rows<const Compute<S>> grad_log_det;  // none: zero
  Rows<S> d_x, d_log_scale, d_shift;    // none wanted: not written
};

// Forward: ∂x = g e^s; ∂t = g; ∂s = g x e^s + k
// Inverse: ∂x = g e^−s; ∂t = −∂x; ∂s = −∂x (x − t) − k
template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks)
    coupling_backward_kernel(CouplingBackward<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  const ElementRow<S> row(p.in.plan);
  const bool inverse = p.in.inverse;
  const T k = p.grad_log_det.data && row.exists ? p.grad_log_det.at(row.index, 0) : T(0);
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t first = row.element(tile);
    const int count = row.count(first);
    const unsigned live = live_elements(p.in, first, count);
    // ∂x; log_scale, then ∂log_scale; ∂t.
    T d_x[E], d_log_scale[E], d_shift[E];
#pragma unroll
    for (int e = 0; e < E; ++e) d_x[e] = d_log_scale[e] = d_shift[e] = T(0);
    if (p.grad_out.data) load(p.grad_out, row.index, first, count, d_x);
    if (live) {
      T x[E];
      load(p.in.log_scale, row.index, first, count, d_log_scale);
      load(p.in.x, row.index, first, count, x);
      if (inverse) {
        load(p.in.shift, row.index, first, count, d_shift);
#pragma unroll
        for (int e = 0; e < E; ++e) x[e] = d_shift[e] - x[e];
      }
#pragma unroll
      for (int e = 0; e < E; ++e) {
        const bool here = is_set(live, e);
        const Tanh<T> s = scale_of(d_log_scale[e], here, p.in.bounded);
        const T g = d_x[e], through = g * std::exp(inverse ? -s.tanh : s.tanh);
        d_x[e] = here ? through : g;
        d_shift[e] = !here ? T(0) : inverse ? -through : g;
        d_log_scale[e] = here ? (through * x[e] + (inverse ? -k : k)) * s.sech2 : T(0);
      }
    }
    if (p.d_x.data) store(p.d_x, row.index, first, count, d_x);
    if (p.d_log_scale.data) store(p.d_log_scale, row.index, first, count, d_log_scale);
    if (p.d_shift.data) store(p.d_shift, row.index, first, count, d_shift);
  }
}

template <typename S>
Inputs<S> inputs_of(const Device& device, Tensor& x, Tensor& log_scale, Tensor& shift,
                    Tensor& mask, bool inverse, bool bounded) {
  Inputs<S> in;
  in.plan = plan_rows(device, row_count(x), x.size(x.dim() - 1), kChunk<S>);
  in.x = rows_of<const S>(x);
  in.log_scale = rows_of<const S>(log_scale);
  in.shift = rows_of<const S>(shift);
  mask = in_order(mask);
  in.mask = static_cast<const bool*>(mask.const_data_ptr());
  in.mask_aligned = reinterpret_cast<uintptr_t>(in.mask) % alignof(Flags<kChunk<S>>) == 0;
  in.inverse = inverse;
  in.bounded = bounded;
  return in;
}

// Whether the bound is tanh.
bool take_bound(StringHandle bound) { return take_one_of({"none", "tanh"}, bound) == 1; }

void require_layer(const Leader& x, const Tensor& log_scale, const Tensor& shift,
                   const Tensor& mask) {
  x.like(log_scale).like(shift).vector(mask, x.columns(), ScalarType::Bool);
}

std::tuple<Tensor, Tensor> affine_coupling(Tensor x, Tensor log_scale, Tensor shift, Tensor mask,
                                           bool inverse, StringHandle bound) {
  const bool bounded = take_bound(bound);
  require_layer(Leader(x), log_scale, shift, mask);
  const Device device(x);
  Tensor out = uninitialized_like(x);
  const Tensor log_det = uninitialized_per_row(x);
  by_storage(x, [&](auto storage) {
    using S = decltype(storage);
    Coupling<S> p;
    p.in = inputs_of<S>(device, x, log_scale, shift, mask, inverse, bounded);
    p.out = rows_of<S>(out);
    const Plan& plan = p.in.plan;
    const RowSumOutput<Compute<S>> sum(log_det, true, plan);
    p.log_det = sum.parameters();
    device.launch(coupling_kernel<S>, plan.blocks(), plan.threads(), p);
    sum.finish(device);
  });
  return {out, log_det};
}

std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward(
    std::optional<Tensor> grad_out, std::optional<Tensor> grad_log_det, Tensor x, Tensor log_scale,
    Tensor shift, Tensor mask, bool inverse, StringHandle bound, std::vector<bool> needs) {
  const bool bounded = take_bound(bound);
  require_flags(needs, 3);
  require_layer(Leader(x).like(grad_out).per_row(grad_log_det), log_scale, shift, mask);
  const Device device(x);
  Tensor d_x = gradient_like(x, needs[0]);
  Tensor d_log_scale = gradient_like(log_scale, needs[1]);
  Tensor d_shift = gradient_like(shift, needs[2]);
  by_storage(x, [&](auto storage) {
    using S = decltype(storage);
    CouplingBackward<S> p;
    p.in = inputs_of<S>(device, x, log_scale, shift, mask, inverse, bounded);
    p.grad_out = rows_of<const S>(grad_out);
    p.grad_log_det = rows_of<const Compute<S>>(grad_log_det, 0);
    p.d_x = rows_of<S>(d_x);
    p.d_log_scale = rows_of<S>(d_log_scale);
    p.d_shift = rows_of<S>(d_shift);
    device.launch(coupling_backward_kernel<S>, p.in.plan.blocks(), p.in.plan.threads(), p);
  });
  return {d_x, d_log_scale, d_shift};
}

}  // namespace

RHOVAE_CUDA_LIBRARY(m) {
  m.impl("affine_coupling", TORCH_BOX(&affine_coupling));
  m.impl("affine_coupling_backward", TORCH_BOX(&affine_coupling_backward));
}

}  // namespace rhovae::cuda
