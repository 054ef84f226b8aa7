"""Flows as density estimators, beside those of zuko with the same settings.

The flows: Papamakarios, Pavlakou and Murray, 2017, "Masked autoregressive flow for density
estimation", https://arxiv.org/abs/1705.07057; Durkan, Bekasov, Murray and Papamakarios, 2019,
"Neural Spline Flows", https://arxiv.org/abs/1906.04032. The comparison is ours.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhovae_kernels.backends import build_info
from rhovae_kernels.data.dataset import check_choice
from rhovae_kernels.files import write_json, write_text
from rhovae_kernels.metrics.likelihood import standard_error
from rhovae_kernels.papers.flow_data import TABLES, Table, table
from rhovae_kernels.papers.flow_models import FLOWS, PEER, Sizes, density, kinds
from rhovae_kernels.papers.runner import SEEDS
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.fit import fit
from rhovae_kernels.training.run import History, versions
from rhovae_kernels.vae.density import Density

ROUNDS = 5
"""How often each time is taken, in turns."""

BATCH = 1000
"""Test data measured at a time."""


class Settings(NamedTuple):
    """What differs between data sets.

    Attributes:
        sizes: of the flows.
        epochs: at most; training stops `patience` epochs after the best of validation.
        batch_size, lr: as `fit` takes them.
        samples: drawn at once where that is timed.
        timed: training data of an epoch that is timed, where not all.
    """

    sizes: Sizes
    epochs: int
    batch_size: int
    lr: float
    samples: int = 1000
    timed: int | None = None


SETTINGS = {
    "breast-cancer": Settings(Sizes(3, (64, 64)), 100, 100, 1e-3),
    "digits": Settings(Sizes(3, (128, 128)), 40, 100, 1e-3),
    # A sample takes zuko a pass of the whole network for each of 784 pixels.
    "mnist": Settings(Sizes(3, (800, 800)), 8, 100, 3e-4, samples=20, timed=1000),
}
"""By the names of `flow_data.TABLES`."""

PATIENCE = 10

MODELS = {
    flow.lower() + ("-conditional" if conditional else ""): (flow, conditional)
    for flow in FLOWS
    for conditional in (False, True)
}
"""Those that are trained by each library: the flow, and whether it is given the class."""

TIMES = {"epoch": "an epoch, s", "samples": "{samples:,} samples, s"}
"""What is timed, and its column."""


def reproduce(
    data: str = "breast-cancer",
    *,
    models: Sequence[str] | None = None,
    epochs: int | None = None,
    seeds: Sequence[int] = SEEDS,
    out: str | Path,
    data_root: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train MAF and NSF, ours and zuko's, alike; compare likelihoods and times.

    Each flow once for all data and once given the class, by `fit`: the same widths, transforms,
    orders, batches and step sizes, Adam, until the validation likelihood has not risen for 10
    epochs. Measured is the best of these epochs: log p of the test data in nats, and its difference
    from that of zuko, paired by datum. Then, of the first seed's models, in turns, one of each kind
    in each of 5 rounds: the seconds of an epoch of `fit`, and of 1,000 samples (for MNIST an epoch
    of 1,000 data, and 20 samples). Zuko's flows are compared where it is installed, as they are and
    with `fuse`.

    Writes table.json, table.md, and a run for each model and seed. A call that was stopped goes on
    where it was; times are taken anew.

    Args:
        data: a name of `flow_data.TABLES`.
        models: names of `MODELS`; all where left out.
        epochs: passes over the training split at most; those of `SETTINGS` where left out.
        seeds: one training of each model per seed.
        out: directory for all of it.
        data_root: directory of the data sets.
        quiet: show no progress bar.

    Returns:
        What table.json holds: "rows", of each model its "flow", whether "conditional", "kind",
        "parameters", "log_prob", "difference" and "seconds" by the keys of `TIMES`.

    Raises:
        ValueError: unknown data or models, or no seed; see `fit`.
        OSError: see `data.load`.

    Source:
        That of the module.
    """
    check_choice("data", data, TABLES)
    for name in models if models is not None else ():
        if name not in MODELS:
            raise ValueError(f"models holds {name!r}; there are {', '.join(MODELS)}")
    if not seeds:
        raise ValueError("seeds is empty; it must hold one seed at least")
    settings, out = SETTINGS[data], Path(out)
    if epochs is not None:
        settings = settings._replace(epochs=epochs)
    of_data = table(data, data_root)
    rows = []
    for name, (flow, conditional) in MODELS.items():
        if models is None or name in models:
            compared = _Comparison(flow, conditional, of_data, settings)
            rows += compared.run(seeds, out, quiet)
    found: dict[str, Any] = {
        "data": data,
        "kind": of_data.kind,
        "features": of_data.features,
        "classes": of_data.classes,
        "training_data": len(of_data.rows["train"]),
        "test_data": len(of_data.rows["test"]),
        "log_scale": of_data.log_scale,
        "transforms": settings.sizes.transforms,
        "hidden": list(settings.sizes.hidden_features),
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "lr": settings.lr,
        "seeds": list(seeds),
        "rounds": ROUNDS,
        "samples": settings.samples,
        "timed_data": settings.timed or len(of_data.rows["train"]),
        "threads": torch.get_num_threads(),
        "instructions": build_info().get("instructions", torch.backends.cpu.get_cpu_capability()),
        "versions": versions() | ({"zuko": version("zuko")} if PEER in kinds() else {}),
        "rows": rows,
    }
    write_json(out / "table.json", found)
    write_text(out / "table.md", describe(found))
    return found


def describe(table: Mapping[str, Any]) -> str:
    """The result of `reproduce` as a page: what was trained and measured, then one table."""
    several = len(table["seeds"]) > 1
    spread = ", and in brackets the standard deviation over seeds" if several else ""
    beside = f", zuko {table['versions']['zuko']}" if "zuko" in table["versions"] else ""
    part = table["timed_data"] < table["training_data"]
    timed = f", an epoch here of {table['timed_data']} data," if part else ""
    setup = (
        f"{table['data']}, {table['features']} {table['kind']} a datum, standardized by the "
        f"{table['training_data']} training data; before, log p is {-table['log_scale']:.2f} nats "
        f"more. {table['transforms']} transforms, hidden layers "
        f"{', '.join(map(str, table['hidden']))}, ReLU, batch {table['batch_size']}, Adam "
        f"{table['lr']:g}, {table['epochs']} epochs at most, seeds "
        f"{', '.join(map(str, table['seeds']))}. log p of {table['test_data']} test data in nats, "
        f"mean over seeds ± standard error over data{spread}; the difference is paired by datum. "
        f"Seconds{timed} are medians of {table['rounds']} rounds in turns, threads: "
        f"{table['threads']}, "
        f"instructions: {table['instructions']}; × is how many times faster than zuko, its median "
        f"over rounds. torch {table['versions']['torch']}{beside}."
    )
    compared = any("difference" in row for row in table["rows"])
    head = ["flow", "by", "log p", *(["less zuko's"] if compared else [])]
    for column in TIMES.values():
        head += [column.format(samples=table["samples"]), *(["×"] if compared else [])]
    return f"{setup}\n\n{markdown(head, [_line(row, compared) for row in table['rows']])}"


def _line(row: Mapping[str, Any], compared: bool) -> list[str]:
    given = ", given the class" if row["conditional"] else ""
    cells = [f"{row['flow']}{given}", row["kind"], _cell(row["log_prob"])]
    if compared:
        cells.append(_cell(row["difference"]) if "difference" in row else "")
    for timed in TIMES:
        of_row = row["seconds"][timed]
        cells.append(f"{of_row['median']:.3g}")
        if compared:
            cells.append(_times(of_row["ratio"]) if "ratio" in of_row else "")
    return cells


def _cell(entry: Mapping[str, float]) -> str:
    spread = f" ({entry['over_seeds']:.2f})" if "over_seeds" in entry else ""
    # The minus sign that tables are aligned by.
    return f"{entry['mean']:.2f} ± {entry['standard_error']:.2f}{spread}".replace("-", "−")


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


class _Comparison:
    """One flow of each kind: trained, measured, and timed in turns."""

    def __init__(self, flow: str, conditional: bool, data: Table, settings: Settings) -> None:
        self.flow, self.conditional, self.settings = flow, conditional, settings
        self.features, self.classes = data.features, data.classes if conditional else 0
        self.train, self.valid, self.test = (
            data.given_to(conditional, split) for split in ("train", "valid", "test")
        )

    def run(self, seeds: Sequence[int], out: Path, quiet: bool) -> list[dict[str, Any]]:
        """A row of the table for each kind."""
        firsts: dict[str, Density] = {}
        log_probs: dict[str, Tensor] = {}
        epochs: dict[str, list[int]] = {}
        for kind in kinds():
            log_probs[kind] = torch.empty(len(seeds), len(self.test), dtype=torch.float64)
            epochs[kind] = []
            for k, seed in enumerate(seeds):
                model, best = self._trained(kind, seed, out, quiet)
                firsts.setdefault(kind, model)
                log_probs[kind][k] = self._log_prob(model)
                epochs[kind].append(best)
        seconds = self._seconds(firsts)
        rows = []
        for kind, model in firsts.items():
            row: dict[str, Any] = {
                "flow": self.flow,
                "conditional": self.conditional,
                "kind": kind,
                "parameters": sum(p.numel() for p in model.parameters()),
                "best_epochs": epochs[kind],
                "log_prob": _over_seeds(log_probs[kind]),
                "seconds": seconds[kind],
            }
            if PEER in firsts and kind != PEER:
                row["difference"] = _over_seeds(log_probs[kind] - log_probs[PEER])
                for timed, of_kind in row["seconds"].items():
                    of_peer = seconds[PEER][timed]["rounds"]
                    ratios = [b / a for a, b in zip(of_kind["rounds"], of_peer, strict=True)]
                    of_kind |= {"ratio": median(ratios), "ratios": [min(ratios), max(ratios)]}
            rows.append(row)
        return rows

    def _trained(self, kind: str, seed: int, out: Path, quiet: bool) -> tuple[Density, int]:
        """A flow with the weights of its best epoch, and which that was; goes on with its run."""
        with seeded(torch.device("cpu"), seed):
            model = density(kind, self.flow, self.settings.sizes, self.features, self.classes)
        name = f"{self.flow}{'-conditional' if self.conditional else ''}-{kind.replace(', ', '-')}"
        history = self._fit(
            model,
            self.train,
            epochs=self.settings.epochs,
            out=out / f"{name}-seed{seed}",
            seed=seed,
            patience=PATIENCE,
            resume="auto",
            quiet=quiet,
        )
        values = history.column("valid_negative_elbo")
        return model, 1 + values.index(min(values))

    def _fit(self, model: Density, train: Tensor, **given: Any) -> History:
        batch_size, lr = self.settings.batch_size, self.settings.lr
        return fit(model, train, valid=self.valid, batch_size=batch_size, lr=lr, **given)

    @torch.no_grad()
    def _log_prob(self, model: Density) -> Tensor:
        """log p of each test datum, given its class where the model is, (N,), float64."""
        joint = torch.cat([model.log_prob(x) for x in self.test.split(BATCH)]).double()
        return joint + math.log(self.classes) if self.classes else joint

    def _seconds(self, models: Mapping[str, Density]) -> dict[str, dict[str, dict[str, Any]]]:
        """Of each model, for each of `TIMES`: seconds of every round, and their median."""
        measures: dict[str, Callable[[Density], float]] = {
            "epoch": self._epoch_seconds,
            "samples": self._sample_seconds,
        }
        found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in models}
        for timed, measure in measures.items():
            rounds: dict[str, list[float]] = {kind: [] for kind in models}
            order = list(models)
            for _ in range(ROUNDS):
                for kind in order:
                    rounds[kind].append(measure(models[kind]))
                order = order[1:] + order[:1]
            for kind, of_kind in rounds.items():
                found[kind][timed] = {"median": median(of_kind), "rounds": of_kind}
        return found

    def _epoch_seconds(self, model: Density) -> float:
        """Of the second epoch: in the first, the optimizer's state is made."""
        train = self.train[: self.settings.timed]
        with tempfile.TemporaryDirectory() as out:
            history = self._fit(copy.deepcopy(model), train, epochs=2, out=out, quiet=True)
        return history.seconds[-1]

    def _sample_seconds(self, model: Density) -> float:
        with seeded(torch.device("cpu"), 0):
            model.sample(2)
            before = time.perf_counter()
            model.sample(self.settings.samples)
            return time.perf_counter() - before


def _over_seeds(values: Tensor) -> dict[str, Any]:
    """The mean over seeds and data of (seeds, N); its standard error over data; by seed."""
    by_seed = values.mean(1).tolist()
    several = {"over_seeds": stdev(by_seed)} if len(by_seed) > 1 else {}
    error = standard_error(values.mean(0))
    return {"mean": mean(by_seed), "standard_error": error, **several, "seeds": by_seed}
