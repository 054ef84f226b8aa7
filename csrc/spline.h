// What a spline's arguments after `bound` are, and what is asked of them: rq_spline and the spline
// heads of made_inverse. The letters are those of python_ref/rq_spline.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "arguments.h"
#include "strings.h"

namespace rhovae {

enum class Slope { kUnit, kSoftplus, kExp };

struct SplineConvention {
  int64_t bins = 0;
  bool inverse, linear;
  Slope slope;
  double bound, min_width, min_height, min_derivative, logit_scale, clip;
  double offset;  // added to a raw derivative before its softplus

  int64_t knots() const { return linear ? bins - 1 : bins + 1; }

  // A size is the least one and a share of what is left.
  double least(double share) const { return 2 * bound * share; }
  double free(double share) const { return 2 * bound * (1 - share * double(bins)); }

  // The strings are taken, and their names known; ranges are asked of what is used.
  static SplineConvention take(bool inverse, double bound, StringHandle tails, double min_width,
                               double min_height, double min_derivative, double logit_scale,
                               double clip, StringHandle slope) {
    SplineConvention s;
    s.linear = take_one_of({"linear", "bounded"}, tails) == 0;
    s.slope = Slope(take_one_of({"unit", "softplus", "exp"}, slope));
    s.inverse = inverse, s.bound = bound, s.clip = clip, s.logit_scale = logit_scale;
    s.min_width = min_width, s.min_height = min_height, s.min_derivative = min_derivative;
    s.offset = s.slope == Slope::kUnit ? std::log(std::expm1(1 - min_derivative)) : 0;
    return s;
  }

  // From a number of heads, widths, heights and derivatives together; returns what they then are,
  // which is that number where it fits.
  int64_t take_bins(int64_t heads) {
    bins = std::max<int64_t>(1, (heads + (linear ? 1 : -1)) / 3);
    return 2 * bins + knots();
  }

  void require_ranges() const {
    const auto positive = [](double x) { return x > 0 && std::isfinite(x); };
    require(bins > 0);
    for (const double least : {min_width, min_height}) {
      require(least >= 0 && least * double(bins) <= 1);
    }
    require(positive(bound) && positive(logit_scale) && clip >= 0 && std::isfinite(clip) &&
            min_derivative >= 0 && std::isfinite(min_derivative) &&
            !(slope == Slope::kUnit && min_derivative >= 1));
  }
};

}  // namespace rhovae
