// A team of lanes that works on one element, and its exchanges; the teams of a warp exchange at the
// same time.
#pragma once

#include "group.cuh"

namespace rhovae::cuda {

constexpr int kTeam = 8;

__device__ __forceinline__ int team_place() { return threadIdx.x % kTeam; }

template <typename T>
__device__ __forceinline__ T team_sum(T x) {
#pragma unroll
  for (int distance = kTeam / 2; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kEveryLane, x, distance);
  }
  return x;
}

// Of numbers; a NaN among them has no effect.
template <typename T>
__device__ __forceinline__ T team_max(T x) {
#pragma unroll
  for (int distance = kTeam / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kEveryLane, x, distance);
    x = other > x ? other : x;
  }
  return x;
}

// The sum of this lane's and those before it.
template <typename T>
__device__ __forceinline__ T team_scan(T x) {
#pragma unroll
  for (int distance = 1; distance < kTeam; distance *= 2) {
    const T other = __shfl_up_sync(kEveryLane, x, distance, kTeam);
    if (team_place() >= distance) x += other;
  }
  return x;
}

// The neighbour's; unspecified in the first lane.
template <typename T>
__device__ __forceinline__ T from_previous(T x) {
  return __shfl_up_sync(kEveryLane, x, 1, kTeam);
}

template <typename T>
__device__ __forceinline__ T from_last(T x) {
  return __shfl_sync(kEveryLane, x, kTeam - 1, kTeam);
}

// Whether this lane is the last of its team of which `so` holds.
__device__ __forceinline__ bool is_last_of_team(bool so) {
  const unsigned votes = __ballot_sync(kEveryLane, so) >> (threadIdx.x % kWarp - team_place());
  return so && ((votes & ((1u << kTeam) - 1)) >> (team_place() + 1)) == 0;
}

}  // namespace rhovae::cuda
