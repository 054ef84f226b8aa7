"""The papers whose comparisons can be trained again, by name.

A paper is one file beside this one: a function `study` of the name of a data set, of `epochs` and
of the options that are the paper's own, and a line here. `rhovae reproduce` offers it with those of
its options that the function takes.
"""

from collections.abc import Callable

from rhovae_kernels.papers import dpvae, iaf, rho_vae
from rhovae_kernels.papers.study import Study

PAPERS: dict[str, Callable[..., Study]] = {
    "rho-vae": rho_vae.study,
    "iaf": iaf.study,
    "dpvae": dpvae.study,
}
"""What describes the study of each."""
