"""The published comparisons that can be trained again, by name.

A comparison is one file beside this one: a function `study` of the name of a data set, of `epochs`
and of options of its own, and a line here. `rhovae reproduce` offers it with those of its options
that the function takes. What trains no VAE runs itself, and has a line in `FITS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from rhovae_kernels.papers import (
    chorales,
    dpvae,
    gaps,
    iaf,
    maf,
    orders,
    pixelvae,
    rho_vae,
    volatility,
)
from rhovae_kernels.papers.study import Study

PAPERS: dict[str, Callable[..., Study]] = {
    "rho-vae": rho_vae.study,
    "iaf": iaf.study,
    "dpvae": dpvae.study,
    "chorales": chorales.study,
    "gaps": gaps.study,
    "orders": orders.study,
    "pixelvae": pixelvae.study,
}
"""What describes the study of each."""


class Fits(NamedTuple):
    """A comparison that trains no VAE.

    Attributes:
        reproduce: makes the table, of `out`, `quiet` and of options that are its own.
        describe: the table as a page.
    """

    reproduce: Callable[..., dict[str, Any]]
    describe: Callable[[dict[str, Any]], str]


FITS: dict[str, Fits] = {
    "volatility": Fits(volatility.reproduce, volatility.describe),
    "maf": Fits(maf.reproduce, maf.describe),
}
"""The comparisons that are not between VAEs."""
