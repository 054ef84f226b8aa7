"""Evaluation: −ELBO, negative log likelihood, and what else `METRICS` names."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rhovae_kernels.metrics import aggregate
from rhovae_kernels.metrics.active_units import active_units
from rhovae_kernels.metrics.collapse import COLLAPSED_NATS, collapse
from rhovae_kernels.metrics.data import data_of_run
from rhovae_kernels.metrics.fid import check_weights, fid
from rhovae_kernels.metrics.likelihood import elbo, exact_nll, nll
from rhovae_kernels.metrics.orders import lines as lines_of_orders
from rhovae_kernels.metrics.orders import orders
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.run import load_run
from rhovae_kernels.vae.base import Model
from rhovae_kernels.vae.density import Density
from rhovae_kernels.vae.model import VAE

T = TypeVar("T")

METRICS: dict[type[Model], str] = {
    VAE: "elbo, nll@K (K importance samples, for example nll@5000), active-units, collapse, "
    "skl, leakage, mi, tc, fid, fid-low-posterior",
    Density: "nll, orders",
}
"""What can be measured of each kind of model."""

DEFAULTS: dict[type[Model], tuple[str, ...]] = {
    VAE: ("elbo", "nll@5000", "active-units"),
    Density: ("nll",),
}
"""What is measured of each where nothing is asked for."""


class Result(dict[str, Any]):
    """What `evaluate` measured: a dictionary with one entry per metric, ready for JSON.

    `data`, `split`, `count` and `label` say on what, `notes`, where there are any, what was done to
    the data. The label "grey" marks values in [0, 1] as they are, on which a Bernoulli decoder
    gives a cross-entropy, comparable among models trained alike and no density.

    Example:
        >>> import rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("vae").build((3,), latent=2)
        >>> result = rk.evaluate(vae, torch.rand(20, 3), ["elbo"])
        >>> list(result), [name for name, value in result.lines()]
        (['data', 'split', 'count', 'label', 'elbo'], ['−ELBO', '  distortion', '  rate'])
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
            elif name == "nll":
                shown.append((name, _with_error(entry)))
                shown.append(("  bits per dimension", f"{entry['bits_per_dimension']:.4f}"))
            elif name == "orders":
                shown += lines_of_orders(entry)
            elif name == "active-units":
                shown.append((name, f"{entry['active']} of {entry['latent']}"))
            elif name == "collapse":
                shown += _of_collapse(entry)
            elif name == "skl":
                shown.append((name, _with_error(entry)))
                shown.append(
                    ("  KL(q ‖ p), KL(p ‖ q)", f"{entry['kl_q_p']:.3f}, {entry['kl_p_q']:.3f}")
                )
            elif name == "leakage":
                shown.append((name, "as Bhalodia et al. (2019), §5.1, describe it"))
                curve = zip(entry["thresholds"], entry["score"], entry["mass"], strict=True)
                for threshold, score, mass in curve:
                    shown.append((f"  above {threshold:g}", f"score {score:.4g}, mass {mass:.4f}"))
            elif name in ("mi", "tc"):
                shown.append((name, _with_error(entry)))
            elif name.startswith("fid"):
                shown.append((name, f"{entry['mean']:.2f} ({entry['samples']} images, no nats)"))
        return shown


def evaluate(
    vae_or_run: Model | str | Path,
    data: Any = None,
    metrics: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    data_root: str | Path | None = None,
    binarize: str | None = None,
    seed: int = 0,
    split: str | None = None,
    thresholds: Sequence[float] = aggregate.THRESHOLDS,
    fid_weights: str | Path | None = None,
    **parts: nn.Module,
) -> Result:
    """Measure a model, a `VAE` or a `Density`, on data.

    Args:
        vae_or_run: the model, or the directory of a run of `fit`, whose best model is measured, by
            default on the data it was trained on.
        data: a tensor or array (N, *input_shape), a `Dataset`, a `DataLoader`, of which what is
            measured on is read into memory, or the name of a data set, see `data.load`; the run's
            named set, or "digits", where left out.
        metrics: of a VAE, where left out the first three. "elbo": log p(x|z) − KL at one sample for
            each datum (K of `IWAE`, their mean), its standard error over the data, and its parts.
            "nll@K": −log (1/K) Σ_k p(x|z_k) p(z_k)/q(z_k|x), an upper bound in expectation, with a
            95% interval over the data and the effective sample size (Σw)²/Σw². "active-units":
            latent dimensions with Var_x E[z|x] > 0.01. Of sequences the first two hold "per_step"
            too: the sum over data by the number of their own steps. "collapse": what the code
            carries, see `collapse.collapse`. "skl": KL(q(z) ‖ p(z)) + KL(p(z) ‖ q(z)), q(z) being
            the aggregate posterior of the same data. "leakage", "mi", "tc": see `aggregate`.
            "fid", "fid-low-posterior": see `fid`.
            Of a `Density` "nll": −log p(x), exact, with its standard error over the data, and in
            bits by the dimension; "orders", of `NADE` and `OrderlessNADE`: the same of each order,
            the mean over orders, and the ensemble, −log of the mean of p(x) over orders.
        limit: measure on the first `limit` samples only.
        data_root: directory of the data sets; the run's where left out.
        binarize: "none", "round", "static" or "dynamic"; the run's, or "none", where left out.
        seed: of the samples.
        split: "train", "valid" or "test", of a named set, of a file that holds several, or of the
            data of the run, of which "valid" is what it held out. Where left out, "test"; without
            one, of the run's own file what it held out, of data that are given all.
        thresholds: of the leakage, in nats, ascending.
        fid_weights: file of the Inception network's weights, for the metrics that take it.
        parts: of a run, those that were made by other code than this package's: `encoder=...`,
            `decoder=...`, see `VAE.from_pretrained`.

    Returns:
        A dictionary, see `Result`.

    Raises:
        FileNotFoundError: no such run, or no such weights.
        ValueError: an unknown metric or other argument; a metric that the kind of model does not
            have; data that do not fit the model, or have no such split.
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
    if isinstance(metrics, str):
        raise ValueError(f"metrics is {metrics!r}; a list of names is wanted, [{metrics!r}]")
    measures = {name: _metric(name, thresholds, fid_weights) for name in metrics or ()}
    if limit is not None and limit < 2:
        raise ValueError(f"limit is {limit}; a standard error takes 2 data at least")
    vae, run = (vae_or_run, {}) if isinstance(vae_or_run, Model) else load_run(vae_or_run, **parts)
    if metrics is None:
        defaults = _of_kind(DEFAULTS, vae)
        measures = {name: _metric(name, thresholds, fid_weights) for name in defaults}
    for name, metric in measures.items():
        if not isinstance(vae, metric.kind):
            raise ValueError(
                f"{name} is measured of a {metric.kind.__name__}, and this model is a "
                f"{type(vae).__name__}: there are {_of_kind(METRICS, vae)}"
            )
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
        for name, metric in measures.items():
            # Each metric draws its own stream: what it says does not depend on the others.
            with vae.unvalidated(), seeded(device, seed), torch.no_grad():
                result[name] = metric.measure(vae, x.to(device))
            for quantity, value in result[name].items():
                numbers = value if isinstance(value, list) else [value]
                if not all(isinstance(x, str) or math.isfinite(x) for x in numbers):
                    raise FloatingPointError(f"{name}: {quantity} is {value}, not finite")
    finally:
        vae.train(training)
    return result


class _Metric(NamedTuple):
    """A metric.

    Attributes:
        measure: of a model and data, (N, *input_shape).
        kind: the models that it is measured of.
    """

    measure: Callable[[Any, Tensor], dict[str, Any]]
    kind: type[Model] = VAE


_PLAIN = {
    "elbo": _Metric(elbo),
    "nll": _Metric(exact_nll, Density),
    "orders": _Metric(orders, Density),
    "active-units": _Metric(active_units),
    "collapse": _Metric(collapse),
    "skl": _Metric(aggregate.skl),
    "mi": _Metric(aggregate.mi),
    "tc": _Metric(aggregate.tc),
}


def _metric(name: str, thresholds: Sequence[float], fid_weights: str | Path | None) -> _Metric:
    if name in _PLAIN:
        return _PLAIN[name]
    # What the arguments lack is said before anything is measured.
    if name == "leakage":
        checked = aggregate.check_thresholds(thresholds)
        return _Metric(lambda vae, x: aggregate.leakage(vae, x, checked))
    if name in ("fid", "fid-low-posterior"):
        weights = check_weights(fid_weights)
        return _Metric(lambda vae, x: fid(vae, x, weights, name == "fid-low-posterior"))
    if found := re.fullmatch(r"nll@([1-9]\d*)", name):
        samples = int(found[1])
        return _Metric(lambda vae, x: nll(vae, x, samples))
    known = f"{METRICS[VAE]}; of a Density {METRICS[Density]}"
    raise ValueError(f"there is no metric {name!r}; there are {known}")


def _of_kind(table: Mapping[type[Model], T], model: Model) -> T:
    """What a table says of the kind of a model."""
    return next(entry for kind, entry in table.items() if isinstance(model, kind))


def _of_collapse(entry: dict[str, Any]) -> list[tuple[str, str]]:
    whole = f"{entry['below']} of {entry['latent']} dimensions below {COLLAPSED_NATS:g} nats"
    numbers = {
        "  mutual information": (entry["mi"], entry["mi_standard_error"]),
        "  lost with z of the prior": (entry["use"], entry["use_standard_error"]),
    }
    return [
        ("collapse", f"{whole}, {entry['active']} active"),
        ("  rate", f"{entry['rate']:.3f}, of which one dimension at most {max(entry['kl']):.3f}"),
        *(
            (name, _with_error({"mean": mean, "standard_error": error}))
            for name, (mean, error) in numbers.items()
        ),
    ]


def _of_a_step(entry: dict[str, Any], sign: int = 1) -> list[tuple[str, str]]:
    """A quantity of sequences by the step, where it is one."""
    if "per_step" not in entry:
        return []
    return [("  per step", f"{sign * entry['per_step']:.3f}, of {entry['steps']} steps")]


def _with_error(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.3f} ± {entry['standard_error']:.3f} (standard error)"
