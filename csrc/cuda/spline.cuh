// The inverse of a spline on CUDA, of an element by a team of lanes. The letters are those of
// python_ref/rq_spline.py.
#pragma once

#include <limits>

#include "../spline.h"
#include "rows.cuh"
#include "team.cuh"

namespace rhovae::cuda {

// A convention, in the type that arithmetic is done in.
template <typename T>
struct Spline {
  int bins = 0;
  bool linear = false;
  Slope slope{};
  T bound = 0, least_width = 0, free_width = 0, least_height = 0, free_height = 0;
  T min_derivative = 0, logit_scale = 0, logit_clip = 0, slope_clip = 0;  // 1/clip, or 0
  T offset = 0;

  static Spline of(const SplineConvention& s) {
    Spline p;
    p.bins = int(s.bins), p.linear = s.linear, p.slope = s.slope, p.bound = T(s.bound);
    p.least_width = T(s.least(s.min_width)), p.free_width = T(s.free(s.min_width));
    p.least_height = T(s.least(s.min_height)), p.free_height = T(s.free(s.min_height));
    p.min_derivative = T(s.min_derivative), p.logit_scale = T(s.logit_scale);
    p.logit_clip = s.clip > 0 ? T(2 / s.clip) : T(0);
    p.slope_clip = s.clip > 0 ? T(1 / s.clip) : T(0);
    p.offset = T(s.offset);
    return p;
  }
};

// u/(1 + |u|/clip), or u where there is no clip.
template <typename T>
__device__ __forceinline__ T clipped(T u, T inverse_clip) {
  return inverse_clip > T(0) ? u * (T(1) / (T(1) + std::abs(u) * inverse_clip)) : u;
}

template <typename T>
__device__ __forceinline__ T within(T x, T low, T high) {
  const T y = x < low ? low : x;
  return y > high ? high : y;
}

// Of a knot.
template <typename T>
__device__ __forceinline__ T slope_of(const Spline<T>& p, T raw) {
  const T u = clipped(raw, p.slope_clip);
  if (p.slope == Slope::kExp) return std::exp(u) + p.min_derivative;
  const T s = u + p.offset;
  return (s < T(0) ? T(0) : s) + std::log1p(std::exp(-std::abs(s))) + p.min_derivative;
}

// Widths or heights. A lane has the bins first … end−1; `sum` is of those before the bin that it
// looks at, in units of 1/each.
template <typename T, int kStep>
struct Sizes {
  T* e;  // e^(u − max u), kStep apart; the logits u before
  T sum, each, least, free, bound;

  __device__ __forceinline__ Sizes(const Spline<T>& p, T least, T free, T* logits, int first,
                                   int end)
      : e(logits), least(least), free(free), bound(p.bound) {
    T most = -std::numeric_limits<T>::infinity();
    for (int j = first; j < end; ++j) {
      const T u = clipped(e[j * kStep] * p.logit_scale, p.logit_clip);
      e[j * kStep] = u;
      most = u > most ? u : most;
    }
    most = team_max(most);
    T own = 0;
    for (int j = first; j < end; ++j) {
      const T exponential = std::exp(e[j * kStep] - most);
      e[j * kStep] = exponential;
      own += exponential;
    }
    const T through = team_scan(own);
    const T before = from_previous(through);
    sum = team_place() == 0 ? T(0) : before;
    each = T(1) / from_last(through);
  }

  // Where bin j begins.
  __device__ __forceinline__ T begin(int j, T sum) const {
    return sum * (each * free) + (T(j) * least - bound);
  }
  __device__ __forceinline__ T size(int j) const { return e[j * kStep] * (each * free) + least; }
};

// x = f⁻¹(y) and log f'(x), in the one lane of a team that `found` the bin of y.
template <typename T>
struct Inverse {
  bool found;
  T x, log_slope;
};

// Of the element that a team of lanes has; its numbers lie in `heads`, kStep apart, and are
// overwritten.
template <int kStep, typename T>
__device__ __forceinline__ Inverse<T> inverse(const Spline<T>& p, T y, T* heads) {
  const bool outside = y < -p.bound || y > p.bound;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const T v = outside ? (p.linear ? T(0) : nan) : y;
  const int share = (p.bins + kTeam - 1) / kTeam;
  const int first = min(team_place() * share, p.bins), end = min(first + share, p.bins);
  T* const raw_widths = heads;
  T* const raw_heights = heads + p.bins * kStep;
  const T* const raw_slopes = heads + 2 * p.bins * kStep;
  Sizes<T, kStep> width(p, p.least_width, p.free_width, raw_widths, first, end);
  Sizes<T, kStep> height(p, p.least_height, p.free_height, raw_heights, first, end);

  // Bin k is the last that begins at v or before it. NaN is in bin 0.
  const bool begun = first == 0 || (first < end && height.begin(first, height.sum) <= v);
  if (!is_last_of_team(begun)) return {false, T(0), T(0)};
  int k = first;
  T width_sum = width.sum, height_sum = height.sum;
  for (int j = first + 1; j < end; ++j) {
    width_sum += width.e[(j - 1) * kStep];
    height_sum += height.e[(j - 1) * kStep];
    if (height.begin(j, height_sum) <= v) {
      k = j;
      width.sum = width_sum;
      height.sum = height_sum;
    }
  }
  const T x0 = width.begin(k, width.sum), y0 = height.begin(k, height.sum);
  const T w = width.size(k), h = height.size(k);
  const int knot = p.linear ? k - 1 : k;  // the place of its raw slope
  const bool begins = p.linear && k == 0, ends = p.linear && k == p.bins - 1;
  const T d0 = begins ? T(1) : slope_of(p, raw_slopes[knot * kStep]);
  const T d1 = ends ? T(1) : slope_of(p, raw_slopes[(knot + 1) * kStep]);

  const T sigma = h / w;
  const T tau = within((v - y0) / h, T(0), T(1)), rest = T(1) - tau;
  const T step = T(2) * sigma * tau, e = d0 * rest - d1 * tau;
  const T product = T(2) * step * sigma * rest;
  const T large = std::abs(e) + std::sqrt(e * e + product);
  const T other = e < T(0) ? product / large : large;
  const T xi = step / (step + other), zeta = other / (step + other);
  const T near = sigma * xi + d0 * zeta, far = sigma * zeta + d1 * xi;
  const T d = xi * near + zeta * far;
  const T n = d1 * (xi * xi) + T(2) * sigma * (xi * zeta) + d0 * (zeta * zeta);
  const T ratio = sigma / d;
  if (outside && p.linear) return {true, y, T(0)};
  return {true, within(x0 + w * xi, -p.bound, p.bound), std::log(n * ratio * ratio)};
}

}  // namespace rhovae::cuda
