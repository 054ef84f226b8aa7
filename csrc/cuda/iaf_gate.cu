// The gated update of an inverse autoregressive flow on CUDA: z' = σ(s) z + σ(−s) m, and Σ log σ(s).
//
// The letters are those of python_ref/iaf_gate.py. Bytes are the limit: forward reads z, m, s and
// writes z'; backward reads g, z, m, s and writes ∂z, ∂m, ∂s.

#include <tuple>

#include "group.cuh"

namespace rhovae::cuda {
namespace {

template <typename S>
struct Gate {
  Plan plan;
  Rows<const S> z, m, s;
  Rows<S> out;
  RowSum<Compute<S>> log_det;
};

template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks) gate_kernel(Gate<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  ElementRow<S> row(p.plan);
  double log_det = 0;
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t first = row.element(tile);
    const int count = row.count(first);
    T z[E], m[E], s[E], part = 0;
    load(p.z, row.index, first, count, z);
    load(p.m, row.index, first, count, m);
    load(p.s, row.index, first, count, s);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const Sigmoid<T> gate = Sigmoid<T>::of(s[e]);
      z[e] = gate.kept * z[e] + gate.replaced * m[e];
      if (e < count) part += gate.log;
    }
    store(p.out, row.index, first, count, z);
    log_det += part;
  }
  log_det = row.group.sum(log_det);
  if (row.group.is_leader() && row.exists) p.log_det.put(row.index, log_det);
}

template <typename S>
struct GateBackward {
  Plan plan;
  Rows<const S> grad_out;               // none: zero
  Rows<const Compute<S>> grad_log_det;  // none: zero
  Rows<const S> z, m, s;
  Rows<S> d_z, d_m, d_s;                // none wanted: not written
};

// ∂z = σ(s) g; ∂m = σ(−s) g; ∂s = σ(s) σ(−s) (z−m) g + k σ(−s)
template <typename S>
__global__ void __launch_bounds__(kMaxLanes, kMinBlocks) gate_backward_kernel(GateBackward<S> p) {
  using T = Compute<S>;
  constexpr int E = kChunk<S>;
  const ElementRow<S> row(p.plan);
  const T k = p.grad_log_det.data && row.exists ? p.grad_log_det.at(row.index, 0) : T(0);
  for (int tile = row.first_tile; tile < row.end_tile; ++tile) {
    const int64_t first = row.element(tile);
    const int count = row.count(first);
    T kept[E], replaced[E], g[E];  // σ(s), then σ(s) g; σ(−s)
    load(p.s, row.index, first, count, replaced);
#pragma unroll
    for (int e = 0; e < E; ++e) g[e] = T(0);
    if (p.grad_out.data) load(p.grad_out, row.index, first, count, g);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const Sigmoid<T> gate = Sigmoid<T>::of(replaced[e]);
      kept[e] = gate.kept * g[e];
      replaced[e] = gate.replaced;
      g[e] *= gate.replaced;
    }
    if (p.d_z.data) store(p.d_z, row.index, first, count, kept);
    if (p.d_m.data) store(p.d_m, row.index, first, count, g);
    if (!p.d_s.data) continue;
    T z[E], m[E];
    load(p.z, row.index, first, count, z);
    load(p.m, row.index, first, count, m);
#pragma unroll
    for (int e = 0; e < E; ++e) z[e] = replaced[e] * (kept[e] * (z[e] - m[e]) + k);
    store(p.d_s, row.index, first, count, z);
  }
}

std::tuple<Tensor, Tensor> iaf_gate(Tensor z, Tensor m, Tensor s) {
  Leader(z).like(m).like(s);
  const Device device(z);
  Tensor out = uninitialized_like(z);
  const Tensor log_det = uninitialized_per_row(z);
  by_storage(z, [&](auto storage) {
    using S = decltype(storage);
    Gate<S> p;
    p.plan = plan_rows(device, row_count(z), z.size(z.dim() - 1), kChunk<S>);
    p.z = rows_of<const S>(z);
    p.m = rows_of<const S>(m);
    p.s = rows_of<const S>(s);
    p.out = rows_of<S>(out);
    const RowSumOutput<Compute<S>> sum(log_det, true, p.plan);
    p.log_det = sum.parameters();
    device.launch(gate_kernel<S>, p.plan.blocks(), p.plan.threads(), p);
    sum.finish(device);
  });
  return {out, log_det};
}

std::tuple<Tensor, Tensor, Tensor> iaf_gate_backward(std::optional<Tensor> grad_out,
                                                     std::optional<Tensor> grad_log_det, Tensor z,
                                                     Tensor m, Tensor s,
                                                     std::vector<bool> needs) {
  require_flags(needs, 3);
  Leader(z).like(m).like(s).like(grad_out).per_row(grad_log_det);
  const Device device(z);
  Tensor d_z = gradient_like(z, needs[0]);
  Tensor d_m = gradient_like(m, needs[1]);
  Tensor d_s = gradient_like(s, needs[2]);
  by_storage(z, [&](auto storage) {
    using S = decltype(storage);
    GateBackward<S> p;
    p.plan = plan_rows(device, row_count(z), z.size(z.dim() - 1), kChunk<S>);
    p.grad_out = rows_of<const S>(grad_out);
    p.grad_log_det = rows_of<const Compute<S>>(grad_log_det, 0);
    p.z = rows_of<const S>(z);
    p.m = rows_of<const S>(m);
    p.s = rows_of<const S>(s);
    p.d_z = rows_of<S>(d_z);
    p.d_m = rows_of<S>(d_m);
    p.d_s = rows_of<S>(d_s);
    device.launch(gate_backward_kernel<S>, p.plan.blocks(), p.plan.threads(), p);
  });
  return {d_z, d_m, d_s};
}

}  // namespace

RHOVAE_CUDA_LIBRARY(m) {
  m.impl("iaf_gate", TORCH_BOX(&iaf_gate));
  m.impl("iaf_gate_backward", TORCH_BOX(&iaf_gate_backward));
}

}  // namespace rhovae::cuda
