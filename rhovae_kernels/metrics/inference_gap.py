"""The gap of inference, log p(x) − ELBO, and its two parts, for families of posteriors."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rhovae_kernels.metrics.aggregate import refuse_sequences
from rhovae_kernels.metrics.ais import Annealed, ais, from_model, schedule
from rhovae_kernels.metrics.data import data_of_run
from rhovae_kernels.metrics.families import FAMILIES, Answer, check_families
from rhovae_kernels.metrics.fitting import HELD_OUT, best_members
from rhovae_kernels.metrics.hamiltonian import Joint
from rhovae_kernels.metrics.likelihood import CHUNK_NUMBERS, standard_error
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.progress import progress
from rhovae_kernels.training.run import load_run
from rhovae_kernels.vae.base import Model
from rhovae_kernels.vae.model import VAE, vae_of
from rhovae_kernels.vae.objectives import ELBO, BetaH, Objective, WarmUp
from rhovae_kernels.vae.parts import positive_integers

SIMULATED = "drawn from the model"
"""What a result calls the data of which log p(x) is known from both sides."""


class Gaps(dict[str, Any]):
    """What `inference_gap` measured, in nats: a dictionary ready for JSON.

    `log_p` holds the mean of log p(x) that the gaps are counted from ("mean"), which estimate it is
    ("from"), the means of all estimates ("ais", "iwae", "iwae of FAMILY", and of simulated data
    "upper" and the bracket's "width") and what tells of convergence; `elbo` the encoder's;
    `families`, for each, its best ELBO and the gaps, each with its standard error over the data;
    `notes` what to beware of.

    Example:
        >>> import rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("vae").build((3,), latent=2)
        >>> gaps = rk.metrics.inference_gap(
        ...     vae, torch.rand(4, 3), ["diagonal"], limit=4, samples=50, temperatures=10
        ... )
        >>> list(gaps)
        ['data', 'split', 'count', 'label', 'log_p', 'elbo', 'total', 'families', 'notes']
        >>> of_diagonal = gaps["families"]["diagonal"]
        >>> parts = [of_diagonal[part]["mean"] for part in ("approximation", "amortization")]
        >>> abs(gaps["total"]["mean"] - sum(parts)) < 1e-6
        True
    """

    def json(self) -> str:
        """The result as JSON."""
        return json.dumps(self, indent=2, allow_nan=False, ensure_ascii=False)

    def page(self) -> str:
        """The result for readers: what was measured, a table over the families, and the notes."""
        log_p = self["log_p"]
        where = ", ".join(self[name] for name in ("data", "split", "label") if name in self)
        bounds = f"{log_p['ais']:.3f} (AIS), {log_p['iwae']:.3f} (IWAE)"
        if log_p["from"] not in ("ais", "iwae"):
            bounds += f", {log_p['mean']:.3f} ({log_p['from']})"
        if "upper" in log_p:
            bounds += f", at most {log_p['upper']:.3f}: {log_p['width']:.3f} apart"
        rows = [
            [name, f"{found['best_elbo']['mean']:.3f}"]
            + [_with_error(found[part]) for part in ("approximation", "amortization")]
            for name, found in self["families"].items()
        ]
        lines = [
            f"{self['count']} data, {where}; nats, ± standard error over the data",
            f"log p(x): at least {bounds}; acceptance {log_p['acceptance']:.2f}, "
            f"{log_p['ess_mean']:.1f} of {log_p['chains']} chains effective",
            f"the encoder's ELBO: {_with_error(self['elbo'])}; gap: {_with_error(self['total'])}",
            "",
            markdown(["family", "best ELBO", "approximation gap", "amortization gap"], rows),
            *(f"\nnote: {note}" for note in self["notes"]),
        ]
        return "\n".join(lines)


def inference_gap(
    vae_or_run: VAE | str | Path,
    data: Any = None,
    families: Sequence[str] = tuple(FAMILIES),
    *,
    limit: int = 100,
    simulated: bool = False,
    samples: int = 1000,
    chains: int = 16,
    temperatures: int | Sequence[float] = 500,
    leapfrog: int = 5,
    data_root: str | Path | None = None,
    binarize: str | None = None,
    split: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = True,
    **parts: nn.Module,
) -> Gaps:
    """What inference loses: for want of a better family, and for want of a better encoder.

    log p(x) − L[q] = (log p(x) − L[q*]) + (L[q*] − L[q]); approximation gap + amortization gap

    L is the ELBO, q the encoder's answer, q* the best member of a family for this x alone. Decoder
    and prior stay as they are, and get no gradients.

    q* is found as `best_members` says; every ELBO is then taken at fresh samples of its own.
    log p(x) is estimated from below by annealed importance sampling (`ais`) and by importance
    samples (IWAE) of q and of each q*: the gaps are counted from the one of least noise, which in
    expectation is the highest, but from AIS where that is higher by four standard errors. Of data
    drawn from the model log p(x) is bracketed from above too (bidirectional Monte Carlo).

    Args:
        vae_or_run: the model, of single codes, or the directory of a run of `fit`.
        data: as of `evaluate`; the run's where left out.
        families: some of "diagonal", "ar1" (s·R), "scaled-ar1" (D R D), "full" (any covariance) and
            "iaf" (the encoder's family, free, and a small flow of each datum's own on top).
        limit: how many data, the first ones; of simulated data, how many are drawn.
        simulated: measure on data drawn from the model in place of others.
        samples: of each datum, for each ELBO and for IWAE.
        chains: as of `ais`.
        temperatures: as of `ais`.
        leapfrog: as of `ais`.
        data_root: as of `evaluate`.
        binarize: as of `evaluate`.
        split: as of `evaluate`.
        seed: of every draw.
        out: directory where `ais` writes down how far it is; a call that was stopped goes on.
        quiet: show no progress bar.
        parts: as of `evaluate`.

    Returns:
        A dictionary, see `Gaps`.

    Raises:
        FileNotFoundError: no such run.
        ValueError: the model has no code, or is one of sequences, or its objective is another
            bound than the ELBO; data are given and simulated ones asked for; an unknown family;
            temperatures that do not rise from 0 to 1; another argument or data that do not fit.
        FloatingPointError: a result is not finite.

    Source:
        Cremer, Li and Duvenaud, 2018, "Inference suboptimality in variational autoencoders",
        https://arxiv.org/abs/1801.03558. That log p(x) is one estimate for all data, not the
        highest for each, whose mean would be above all of theirs, is ours, as are the families.

    Example:
        >>> import rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("vae").build((1, 8, 8), latent=2)
        >>> gaps = rk.metrics.inference_gap(
        ...     vae, "digits", ["full"], limit=4, samples=50, temperatures=10, binarize="static"
        ... )
        >>> gaps["count"], sorted(gaps["families"]["full"])
        (4, ['amortization', 'approximation', 'best_elbo', 'converged'])
    """
    check_families(families)
    schedule(temperatures)
    positive_integers("samples", (samples,))
    if limit < 2:
        raise ValueError(f"limit is {limit}; a standard error takes 2 data at least")
    if simulated and data is not None:
        raise ValueError("data is given, and simulated data are asked for; one of them is wanted")
    model, run = (
        (vae_or_run, {}) if isinstance(vae_or_run, Model) else load_run(vae_or_run, **parts)
    )
    vae = vae_of(model, "the gap of inference")
    refuse_sequences(vae, "the gap of inference")
    _check_objective(vae.objective)
    device = next(vae.parameters()).device
    if simulated:
        x, z = from_model(vae, limit, seed)
        where: dict[str, Any] = {"data": SIMULATED, "count": limit}
    else:
        source, x = data_of_run(vae, run, data, split, limit, data_root, binarize, seed)
        x, z = x.to(device), None
        where = {"data": source.name, "split": source.split, "count": len(x), "label": source.label}
        if len(x) < 2:
            raise ValueError(f"{source.name} holds {len(x)} data; a standard error takes 2")
    settings = {"chains": chains, "temperatures": temperatures, "leapfrog": leapfrog}
    found = ais(vae, x, z, **settings, seed=seed, out=out, quiet=quiet)  # type: ignore[arg-type]
    rows = max(1, CHUNK_NUMBERS // (HELD_OUT * x[0].numel()))
    batches = x.split(rows)
    training = vae.training
    vae.eval()
    try:
        total = len(batches) * len(families)
        with vae.unvalidated(), progress("fitting q*", total, quiet) as advance:
            ours = [_encoders(vae, batch, samples, (seed, i)) for i, batch in enumerate(batches)]
            best: dict[str, list[_Best]] = {}
            for name in families:
                best[name] = []
                for i, batch in enumerate(batches):
                    best[name].append(_best(vae, batch, name, samples, (seed, i)))
                    advance(1)
    finally:
        vae.train(training)
    bounds = _Bounds(*(torch.cat(values) for values in zip(*ours, strict=True)))
    return _result(where, found, bounds, best)


class _Bounds(NamedTuple):
    """What weights say of each datum, (N,): mean of log w, log of the mean of w, and the noise of
    the latter, whose variance is about 1/ESS − 1/K.
    """

    elbo: Tensor
    iwae: Tensor
    noise: Tensor


class _Best(NamedTuple):
    """What samples of q* say, and whether the optimization converged."""

    bounds: _Bounds
    converged: bool


def _check_objective(objective: Objective) -> None:
    """Refuse an objective that trains q(z|x) for something else than the ELBO."""
    inner = objective.objective if isinstance(objective, WarmUp) else objective
    if isinstance(inner, ELBO) or (isinstance(inner, BetaH) and inner.beta == 1):
        return
    raise ValueError(
        f"objective is {type(inner).__name__}, which trains q(z|x) for another bound than the ELBO:"
        " what its encoder lacks of q* would not be a gap of amortization; ELBO, and WarmUp of it, "
        "are measured"
    )


def _encoders(vae: VAE, x: Tensor, samples: int, key: tuple[int, int]) -> _Bounds:
    """The bounds of each datum from exactly `samples` samples of the encoder's posterior."""
    chunk = max(1, CHUNK_NUMBERS // x.numel())
    sizes = [min(chunk, samples - start) for start in range(0, samples, chunk)]
    with torch.no_grad(), seeded(x.device, *key, 0):
        log_w = torch.cat([vae.log_weights(x, size).double() for size in sizes])
    return _bounds(log_w)


def _best(vae: VAE, x: Tensor, name: str, samples: int, key: tuple[int, int]) -> _Best:
    """What fresh samples of the best member of a family for each datum say."""
    joint, dtype = Joint(vae, x), compute_dtype(next(vae.parameters()).dtype)
    with seeded(x.device, *key, 1):
        with torch.no_grad():
            family = FAMILIES[name](Answer.of(vae.posterior_for(x)), dtype)
        fitted = best_members(family, joint)
    chunk = max(1, CHUNK_NUMBERS // x.numel())
    log_w = []
    with torch.no_grad(), seeded(x.device, *key, 2):
        for start in range(0, samples, chunk):
            size = min(chunk, samples - start)
            eps = torch.randn(size, *family.loc.shape, dtype=dtype, device=x.device)
            z, log_q = family.draw(fitted.parameters, eps)
            log_prior, log_likelihood = joint(z)
            log_w.append((log_prior + log_likelihood - log_q).double())
    return _Best(_bounds(torch.cat(log_w)), fitted.converged)


def _bounds(log_w: Tensor) -> _Bounds:
    """Of the weights (samples, N) of fresh samples."""
    log_sum, samples = log_w.logsumexp(0), len(log_w)
    noise = torch.exp((2 * log_w).logsumexp(0) - 2 * log_sum) - 1 / samples
    return _Bounds(log_w.mean(0), log_sum - math.log(samples), noise)


def _result(
    where: dict[str, Any], found: Annealed, bounds: _Bounds, best: dict[str, list[_Best]]
) -> Gaps:
    """The means over the data and their standard errors."""
    joined = {
        name: _Bounds(*map(torch.cat, zip(*(part.bounds for part in parts), strict=True)))
        for name, parts in best.items()
    }
    weighted = {"ais": _bounds(found.log_weights), "iwae": bounds}
    weighted |= {f"iwae of {name}": values for name, values in joined.items()}
    means = {name: float(values.iwae.mean()) for name, values in weighted.items()}
    chosen = _least_noise(weighted)
    log_p, summary = weighted[chosen].iwae, found.summary()
    notes = summary.pop("notes")
    del summary["lower"]
    gaps = Gaps(
        **where,
        log_p={**_mean(log_p), "from": chosen, **means, **summary},
        elbo=_mean(bounds.elbo),
        total=_mean(log_p - bounds.elbo),
        families={},
        notes=list(notes),
    )
    for name, parts in best.items():
        elbo = joined[name].elbo
        converged = all(part.converged for part in parts)
        gaps["families"][name] = {
            "best_elbo": _mean(elbo),
            "approximation": _mean(log_p - elbo),
            "amortization": _mean(elbo - bounds.elbo),
            "converged": converged,
        }
        if not converged:
            gaps["notes"].append(f"q* of {name} was still rising when its steps ran out")
    _check_finite(gaps)
    return gaps


def _least_noise(weighted: dict[str, _Bounds]) -> str:
    """The estimate of log p(x) of least noise, but AIS where that is higher beyond chance.

    All are bounds from below in expectation, by about half the variance of their noise: the one of
    least noise is the highest but for chance. To take the highest mean would choose by the chance.
    """
    least = min(weighted, key=lambda name: float(weighted[name].noise.mean()))
    above = weighted["ais"].iwae - weighted[least].iwae
    # Samples of a q that misses a mode of the posterior do not know what they miss; AIS does.
    return "ais" if float(above.mean()) > 4 * standard_error(above) else least


def _mean(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "standard_error": standard_error(values)}


def _with_error(entry: dict[str, float]) -> str:
    return f"{entry['mean']:.3f} ± {entry['standard_error']:.3f}"


def _check_finite(value: Any, name: str = "gaps") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, key if name == "gaps" else f"{name}: {key}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise FloatingPointError(f"{name} is {value}, not finite")
