"""Evaluation: −ELBO, negative log likelihood by importance sampling, and what `METRICS` names."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rhovae_kernels.metrics import aggregate
from rhovae_kernels.metrics.active_units import active_units
from rhovae_kernels.metrics.data import data_of_run
from rhovae_kernels.metrics.fid import check_weights, fid
from rhovae_kernels.metrics.likelihood import elbo, nll
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.run import load_run
from rhovae_kernels.vae.model import VAE

METRICS = (
    "elbo, nll@K (K importance samples, for example nll@5000), active-units, skl, leakage, mi, tc, "
    "fid, fid-low-posterior"
)


class Result(dict[str, Any]):
    """What `evaluate` measured: a dictionary with one entry per metric, ready for JSON.

    `data`, `split`, `count` and `label` say on what, `notes`, where there are any, what was done to
    the data. The label "grey" marks values in [0, 1] as they are, on which a Bernoulli decoder
    gives a cross-entropy, comparable among models trained alike and no density.
    """

    def json(self) -> str:
        """The result as JSON."""
        return json.dumps(self, indent=2, allow_nan=False)

    def lines(self) -> list[tuple[str, str]]:
        """The result for readers: names and values, in nats."""
        shown = []
        for name, entry in self.items():
            if name == "elbo":
                shown.append(("−ELBO", _with_error({**entry, "mean": -entry["mean"]})))
                shown.append(("  distortion", f"{entry['distortion']:.3f}"))
                shown.append(("  rate", f"{entry['rate']:.3f}"))
                shown += _of_a_step(entry, -1)
            elif name.startswith("nll@"):
                low, high = entry["interval_95"]
                shown.append((name, f"{entry['mean']:.3f}, 95% interval {low:.3f} to {high:.3f}"))
                sizes = f"{entry['ess_mean']:.1f}, least {entry['ess_min']:.1f}"
                shown.append(("  effective sample size", f"mean {sizes} of {entry['samples']}"))
                shown += _of_a_step(entry)
            elif name == "active-units":
                shown.append((name, f"{entry['active']} of {entry['latent']}"))
            elif name == "skl":
                shown.append((name, _with_error(entry)))
                shown.append(
                    ("  KL(q ‖ p), KL(p ‖ q)", f"{entry['kl_q_p']:.3f}, {entry['kl_p_q']:.3f}")
                )
            elif name == "leakage":
                shown.append((name, "after the paper's words, its equation 6 being lost"))
                curve = zip(entry["thresholds"], entry["score"], entry["mass"], strict=True)
                for threshold, score, mass in curve:
                    shown.append((f"  above {threshold:g}", f"score {score:.4g}, mass {mass:.4f}"))
            elif name in ("mi", "tc"):
                shown.append((name, _with_error(entry)))
            elif name.startswith("fid"):
                shown.append((name, f"{entry['mean']:.2f} ({entry['samples']} images, no nats)"))
        return shown


def evaluate(
    vae_or_run: VAE | str | Path,
    data: Any = None,
    metrics: Sequence[str] = ("elbo", "nll@5000", "active-units"),
    *,
    limit: int | None = None,
    data_root: str | Path | None = None,
    binarize: str | None = None,
    seed: int = 0,
    split: str = "test",
    thresholds: Sequence[float] = aggregate.THRESHOLDS,
    fid_weights: str | Path | None = None,
    **parts: nn.Module,
) -> Result:
    """Measure a VAE on data.

    Args:
        vae_or_run: the model, or the directory of a run of `fit`, whose best model is measured, by
            default on the data it was trained on.
        data: a tensor or array (N, *input_shape), a `Dataset`, a `DataLoader`, of which what is
            measured on is read into memory, or the name of a data set, see `data.load`; the run's
            named set, or "digits", where left out.
        metrics: "elbo": log p(x|z) − KL at one sample for each datum (K of `IWAE`, their mean), its
            standard error over the data, and its parts. "nll@K": −log (1/K) Σ_k p(x|z_k)
            p(z_k)/q(z_k|x), an upper bound in expectation, with a 95% interval over the data and
            the effective sample size (Σw)²/Σw². "active-units": latent dimensions with
            Var_x E[z|x] > 0.01. Of sequences the first two hold "per_step" too: the sum over data
            by the number of their own steps. "skl": KL(q(z) ‖ p(z)) + KL(p(z) ‖ q(z)), q(z) being
            the aggregate posterior of the same data.
            "leakage", "mi", "tc": see `aggregate`. "fid", "fid-low-posterior": see `fid`.
        limit: only so many data, the first ones.
        data_root: directory of the data sets; the run's where left out.
        binarize: "none", "round", "static" or "dynamic"; the run's, or "none", where left out.
        seed: of the samples.
        split: of a named set: "train", "valid" or "test".
        thresholds: of the leakage, in nats, ascending.
        fid_weights: file of the Inception network's weights, for the metrics that take it.
        parts: of a run, those that were made by other code than this package's: `encoder=...`,
            `decoder=...`, see `VAE.from_pretrained`.

    Returns:
        A dictionary, see `Result`.

    Raises:
        FileNotFoundError: no such run, or no such weights.
        ValueError: an unknown metric or other argument; data that do not fit the model.
        FloatingPointError: a result is not finite.

    Source:
        Importance weighting: the bound that K samples of q give, in log space. Active units: the
        usual threshold of 0.01.

    Example:
        >>> import rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("rho-vae").build((1, 8, 8), latent=2)
        >>> result = rk.evaluate(vae, "digits", ["elbo", "nll@10"], limit=50)
        >>> result["nll@10"]["samples"], result["label"]
        (10, 'grey')
    """
    measures = {name: _metric(name, thresholds, fid_weights) for name in metrics}
    if limit is not None and limit < 2:
        raise ValueError(f"limit is {limit}; a standard error takes 2 data at least")
    vae, run = (vae_or_run, {}) if isinstance(vae_or_run, VAE) else load_run(vae_or_run, **parts)
    source, x = data_of_run(vae, run, data, split, limit, data_root, binarize, seed)
    if len(x) < 2:
        raise ValueError(f"{source.name} holds {len(x)} data; a standard error takes 2 at least")
    result = Result(data=source.name, split=source.split, count=len(x), label=source.label)
    if source.notes:
        result["notes"] = source.notes
    device = next(vae.parameters()).device
    training = vae.training
    vae.eval()
    try:
        for name, measure in measures.items():
            # Each metric draws its own stream: what it says does not depend on the others.
            with vae.unvalidated(), seeded(device, seed), torch.no_grad():
                result[name] = measure(vae, x.to(device))
            for quantity, value in result[name].items():
                if not all(map(math.isfinite, value if isinstance(value, list) else [value])):
                    raise FloatingPointError(f"{name}: {quantity} is {value}, not finite")
    finally:
        vae.train(training)
    return result


def _metric(
    name: str, thresholds: Sequence[float], fid_weights: str | Path | None
) -> Callable[[VAE, Tensor], dict[str, Any]]:
    plain = {
        "elbo": elbo,
        "active-units": active_units,
        "skl": aggregate.skl,
        "mi": aggregate.mi,
        "tc": aggregate.tc,
    }
    if name in plain:
        return plain[name]
    # What the arguments lack is said before anything is measured.
    if name == "leakage":
        checked = aggregate.check_thresholds(thresholds)
        return lambda vae, x: aggregate.leakage(vae, x, checked)
    if name in ("fid", "fid-low-posterior"):
        weights = check_weights(fid_weights)
        return lambda vae, x: fid(vae, x, weights, name == "fid-low-posterior")
    if found := re.fullmatch(r"nll@([1-9]\d*)", name):
        samples = int(found[1])
        return lambda vae, x: nll(vae, x, samples)
    raise ValueError(f"there is no metric {name!r}; there are {METRICS}")


def _of_a_step(entry: dict[str, Any], sign: int = 1) -> list[tuple[str, str]]:
    """A quantity of sequences by the step, where it is one."""
    if "per_step" not in entry:
        return []
    return [("  per step", f"{sign * entry['per_step']:.3f}, of {entry['steps']} steps")]


def _with_error(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.3f} ± {entry['standard_error']:.3f} (standard error)"
