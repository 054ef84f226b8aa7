"""Evaluation: −ELBO, negative log likelihood by importance sampling, and what `METRICS` names."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhovae_kernels.data.named import load
from rhovae_kernels.files import read_json
from rhovae_kernels.metrics import aggregate
from rhovae_kernels.metrics.fid import check_weights, fid
from rhovae_kernels.training.fit import RUN, seeded
from rhovae_kernels.vae.model import VAE

METRICS = (
    "elbo, nll@K (K importance samples, for example nll@5000), active-units, skl, leakage, mi, tc, "
    "fid, fid-low-posterior"
)

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active where the posterior's mean varies more than this over the data."""

CHUNK_NUMBERS = 2**23
"""Importance samples are taken so many at a time that the decoder puts out this many numbers."""


class Result(dict[str, Any]):
    """What `evaluate` measured: a dictionary with one entry per metric, ready for JSON.

    `data`, `split`, `count` and `label` say on what; label "grey" marks values in [0, 1] as they
    are, on which a Bernoulli decoder gives a cross-entropy, comparable among models trained alike
    and no density.
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
            elif name.startswith("nll@"):
                low, high = entry["interval_95"]
                shown.append((name, f"{entry['mean']:.3f}, 95% interval {low:.3f} to {high:.3f}"))
                sizes = f"{entry['ess_mean']:.1f}, least {entry['ess_min']:.1f}"
                shown.append(("  effective sample size", f"mean {sizes} of {entry['samples']}"))
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
    data: str | None = None,
    metrics: Sequence[str] = ("elbo", "nll@5000", "active-units"),
    *,
    limit: int | None = None,
    data_root: str | Path | None = None,
    binarize: str | None = None,
    seed: int = 0,
    split: str = "test",
    thresholds: Sequence[float] = aggregate.THRESHOLDS,
    fid_weights: str | Path | None = None,
) -> Result:
    """Measure a VAE on a split of a data set.

    Args:
        vae_or_run: the model, or the directory of a run of `fit`, whose best model is measured, by
            default on the data it was trained on.
        data: name of the data set, see `data.load`; the run's, or "digits", where left out.
        metrics: "elbo": log p(x|z) − KL at one sample for each datum, its standard error over the
            data, and its parts. "nll@K": −log (1/K) Σ_k p(x|z_k) p(z_k)/q(z_k|x), an upper bound in
            expectation, with a 95% interval over the data and the effective sample size
            (Σw)²/Σw². "active-units": latent dimensions with Var_x E[z|x] > 0.01. "skl":
            KL(q(z) ‖ p(z)) + KL(p(z) ‖ q(z)), q(z) being the aggregate posterior of the same data.
            "leakage", "mi", "tc": see `aggregate`. "fid", "fid-low-posterior": see `fid`.
        limit: only so many data, the first ones.
        data_root: directory of the data sets; the run's where left out.
        binarize: "none", "round", "static" or "dynamic"; the run's, or "none", where left out.
        seed: of the samples.
        split: "train", "valid" or "test".
        thresholds: of the leakage, in nats, ascending.
        fid_weights: file of the Inception network's weights, for the metrics that take it.

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
    run: dict[str, Any] = {}
    if isinstance(vae_or_run, VAE):
        vae = vae_or_run
    else:
        vae, run = load_run(vae_or_run)
    data = data or run.get("data", "digits")
    dataset = load(
        data,
        data_root if data_root is not None else run.get("data_root"),
        binarize or run.get("binarize", "none"),
        split,
        run.get("seed", seed),
    )
    x = dataset.images[:limit]
    if dataset.input_shape != vae.input_shape:
        raise ValueError(
            f"{data} holds data of shape {dataset.input_shape}; the model wants {vae.input_shape}"
        )
    result = Result(data=data, split=split, count=len(x), label=dataset.label)
    device = next(vae.parameters()).device
    training = vae.training
    vae.eval()
    try:
        for name, measure in measures.items():
            # Each metric draws its own stream: what it says does not depend on the others.
            with seeded(device, seed), torch.no_grad():
                result[name] = measure(vae, x.to(device))
            for quantity, value in result[name].items():
                if not all(map(math.isfinite, value if isinstance(value, list) else [value])):
                    raise FloatingPointError(f"{name}: {quantity} is {value}, not finite")
    finally:
        vae.train(training)
    return result


def load_run(run: str | Path) -> tuple[VAE, dict[str, Any]]:
    """The best model of a run of `fit`, and the run's settings.

    Raises:
        FileNotFoundError: there is no run, or none that finished an epoch.
        ValueError: one of its files is truncated or corrupted.
    """
    run = Path(run)
    if not (run / RUN).is_file():
        raise FileNotFoundError(f"{run} holds no run: {RUN} is not there")
    settings = read_json(run / RUN)
    lost = [name for name in ("data", "data_root", "binarize", "seed") if name not in settings]
    if lost:
        raise ValueError(f"{run / RUN}: corrupted, it does not say the run's {', '.join(lost)}")
    # Building the parts draws initial weights, which the saved ones then replace.
    with seeded(torch.device("cpu"), 0):
        return VAE.from_pretrained(run), settings


def _metric(
    name: str, thresholds: Sequence[float], fid_weights: str | Path | None
) -> Callable[[VAE, Tensor], dict[str, Any]]:
    plain = {
        "elbo": _elbo,
        "active-units": _active_units,
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
        return lambda vae, x: _nll(vae, x, samples)
    raise ValueError(f"there is no metric {name!r}; there are {METRICS}")


def _with_error(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.3f} ± {entry['standard_error']:.3f} (standard error)"


def _standard_error(values: Tensor) -> float:
    """Of the mean."""
    return float(values.std() / math.sqrt(len(values)))


def _elbo(vae: VAE, x: Tensor) -> dict[str, Any]:
    outputs = [vae(batch) for batch in x.split(aggregate.BATCH)]
    distortion = torch.cat([output.distortion for output in outputs]).double()
    rate = torch.cat([output.rate for output in outputs]).double()
    elbo = -(distortion + rate)
    return {
        "mean": elbo.mean().item(),
        "standard_error": _standard_error(elbo),
        "distortion": distortion.mean().item(),
        "rate": rate.mean().item(),
    }


def log_mean_weights(vae: VAE, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """log (1/K) Σ_k w_k and the effective sample size (Σw)²/Σw², each (B,), float64.

    Exactly K = `samples` weights, taken in chunks so that memory does not grow with K.

    Args:
        vae: the model.
        x: data, (B, *input_shape).
        samples: K.
    """
    chunk = max(1, CHUNK_NUMBERS // x.numel())
    first = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    second = first.clone()
    for start in range(0, samples, chunk):
        log_w = vae.log_weights(x, min(chunk, samples - start)).double()
        first = torch.logaddexp(first, log_w.logsumexp(0))
        second = torch.logaddexp(second, (2 * log_w).logsumexp(0))
    return first - math.log(samples), torch.exp(2 * first - second)


def _nll(vae: VAE, x: Tensor, samples: int) -> dict[str, Any]:
    # Few data at a time where even one sample of each is much.
    rows = max(1, min(aggregate.BATCH, CHUNK_NUMBERS // x[0].numel()))
    parts = [log_mean_weights(vae, batch, samples) for batch in x.split(rows)]
    nll = -torch.cat([log_p for log_p, _ in parts])
    ess = torch.cat([size for _, size in parts])
    mean, error = nll.mean().item(), _standard_error(nll)
    return {
        "mean": mean,
        "standard_error": error,
        "interval_95": [mean - 1.96 * error, mean + 1.96 * error],
        "samples": samples,
        "ess_mean": ess.mean().item(),
        "ess_min": ess.min().item(),
    }


def _active_units(vae: VAE, x: Tensor) -> dict[str, Any]:
    means = torch.cat([vae.posterior_for(batch).mean for batch in x.split(aggregate.BATCH)])
    variances = means.double().var(0, unbiased=False)
    return {
        "active": int((variances > ACTIVE_VARIANCE).sum()),
        "latent": vae.latent,
        "variances": variances.tolist(),
    }
