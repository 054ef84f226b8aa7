// philox: the random words themselves.

#include "../philox.h"
#include "platform.cuh"
#include "rows.cuh"

namespace rhovae::cuda {
namespace {

struct Words {
  const int64_t* rng_state;
  int32_t* out;  // (rows, columns)
  int64_t rows, columns, blocks_per_row;
  bool wide;  // four words of a block can be stored at once
};

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) words(Words p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = i / p.blocks_per_row, block = i % p.blocks_per_row;
  if (row >= p.rows) return;
  const PhiloxWords drawn =
      philox_block(p.rng_state[0], p.rng_state[1], uint32_t(row), uint32_t(block));
  int32_t* const out = p.out + row * p.columns + 4 * block;
  if (p.wide) {
    Chunk<int32_t> chunk;
#pragma unroll
    for (int k = 0; k < 4; ++k) chunk.element[k] = int32_t(drawn.word[k]);
    *reinterpret_cast<Chunk<int32_t>*>(out) = chunk;
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (4 * block + k < p.columns) out[k] = int32_t(drawn.word[k]);
    }
  }
}

Tensor philox(Tensor rng_state, int64_t rows, int64_t columns) {
  require_rng_state(rng_state);
  require(0 <= rows && rows < kPhiloxRows && 0 <= columns && columns < kPhiloxColumns);
  const Device device(rng_state);
  const Tensor state = in_order(rng_state);
  const Tensor out = uninitialized(rng_state, {rows, columns}, aoti_torch_dtype_int32());
  Words p;
  p.rng_state = static_cast<const int64_t*>(state.const_data_ptr());
  p.out = static_cast<int32_t*>(out.mutable_data_ptr());
  p.rows = rows;
  p.columns = columns;
  p.blocks_per_row = (columns + 3) / 4;
  p.wide = columns % 4 == 0;
  const int64_t blocks = rows * p.blocks_per_row;
  device.launch(words, dim3(unsigned((blocks + kThreads - 1) / kThreads)), kThreads, p);
  return out;
}

}  // namespace

RHOVAE_CUDA_LIBRARY(m) { m.impl("philox", TORCH_BOX(&philox)); }

}  // namespace rhovae::cuda
