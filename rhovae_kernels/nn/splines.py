"""What splines that are the identity beyond an interval are made of, in flows."""

from rhovae_kernels.nn.masked_linear import positive_integer
from rhovae_kernels.ops.rq_spline import check_ranges
from rhovae_kernels.python_ref.rq_spline import SplineConvention


def splines_of(bins: int, bound: float) -> tuple[SplineConvention, tuple[int, int, int]]:
    """The default convention on [−bound, bound]; how many widths, heights and derivatives it takes.

    Raises:
        ValueError: fewer than two bins, or more than the least width lets in; a bound that is not
            positive and finite.
    """
    if positive_integer("bins", bins) < 2:
        raise ValueError("bins is 1; two at least are wanted: a spline of one is the identity")
    convention = SplineConvention(bound)
    check_ranges("rq_spline", convention, bins)
    return convention, convention.of_bins(bins)
