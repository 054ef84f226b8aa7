// philox: the random words themselves, for the CPU.

#include <torch/csrc/stable/library.h>

#include "../philox.h"
#include "rows.h"

namespace rhovae {
namespace {

Tensor philox(const Tensor& rng_state, int64_t rows, int64_t columns) {
  require_rng_state(rng_state);
  require(0 <= rows && rows < kPhiloxRows && 0 <= columns && columns < kPhiloxColumns);
  const Tensor state = torch::stable::contiguous(rng_state);
  const int64_t* seed_offset = static_cast<const int64_t*>(state.const_data_ptr());
  const int64_t seed = seed_offset[0], offset = seed_offset[1];
  const int64_t shape[] = {rows, columns};
  Tensor words = torch::stable::new_empty(rng_state, {shape, 2}, ScalarType::Int);
  int32_t* out = static_cast<int32_t*>(words.mutable_data_ptr());
  parallel_rows({rows, columns}, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t k = 0; k < columns; k += 4) {
        const PhiloxWords block = philox_block(seed, offset, uint32_t(row), uint32_t(k / 4));
        for (int64_t i = 0; i < std::min<int64_t>(4, columns - k); ++i) {
          out[row * columns + k + i] = int32_t(block.word[i]);
        }
      }
    }
  });
  return words;
}

}  // namespace
}  // namespace rhovae

STABLE_TORCH_LIBRARY_IMPL(rhovae_cpu, CPU, m) { m.impl("philox", TORCH_BOX(&rhovae::philox)); }
