"""Orders: what that of the pixels is worth to an autoregressive model, and an ensemble of several.

The question, and orderless training: Uria, Murray and Larochelle, 2014, "A deep and tractable
density estimator", https://arxiv.org/abs/1310.1757, whose data and networks are larger.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean, stdev
from typing import Any

from rhovae_kernels.metrics.evaluate import Result
from rhovae_kernels.papers.runner import reproduction
from rhovae_kernels.papers.study import Measurement, Model, Outcome, Study
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.vae.decoders import NADE, Ordered, OrderlessNADE
from rhovae_kernels.vae.density import Density

ORDERS = ("raster", "reversed", "columns", "spiral", "random-0", "random-1", "random-2")
"""The rows of the table, and the members of both ensembles."""

MODELS: dict[str, tuple[str, Callable[[], Ordered]]] = {
    "nade": ("a network for each order", partial(NADE, (256,), ORDERS)),
    "orderless": ("one network for every order", partial(OrderlessNADE, (256, 256), ORDERS)),
}
"""By name: label, and what makes the decoder."""

TOTALS = {"mean": "mean over orders", "ensemble": "ensemble", "gain": "gain of the ensemble"}
"""The rows of the table that are of all orders."""


def study(data: str = "digits", *, binarize: str = "round", epochs: int = 40) -> Study:
    """A network for each order, and one for every order, and how the orders compare.

    A `NADE` of seven orders (256 units), each trained as if alone, and an `OrderlessNADE`
    (2 × 256 units), on binary images. Measured are NLL of each order, the mean over orders and
    their ensemble, on the test split, of the epoch of least validation NLL of the ensemble.

    Args:
        data: name of a data set of images, see `data.load`.
        binarize: "round", "static" or "dynamic".
        epochs: passes over the training split.

    Source:
        That of the module; the comparison is ours.

    Example:
        >>> [model.label for row in study().rows for model in row]
        ['a network for each order', 'one network for every order']
    """
    models = [
        Model(name, label, run=name, recipe=None, build=partial(_density, make))
        for name, (label, make) in MODELS.items()
    ]
    return Study(
        name=f"orders-{data}-{binarize}",
        data=data,
        rows=[[model] for model in models],
        epochs=epochs,
        batch_size=32,
        lr=2e-3,
        weights="best",
        measurement=Measurement(
            metrics=("orders",),
            read=_measured,
            file="orders.json",
            key="orders",
            counted="test_data",
            asked={"binarize": binarize},
        ),
        row=_row,
        describe=describe,
        binarize=binarize,
        facts={"orders": list(ORDERS), "binarize": binarize},
    )


reproduce = reproduction(study)


def describe(table: Mapping[str, Any]) -> str:
    """The result of `reproduce` as a page: what was trained and measured, then one table."""
    several = len(table["seeds"]) > 1
    spread = ", and in brackets the standard deviation over seeds" if several else ""
    setup = (
        f"{table['data']} ({table['label']}), {table['training_data']} training images, "
        f"{table['epochs']} epochs at most, batch {table['batch_size']}, Adam {table['lr']:g}, "
        f"seeds {', '.join(map(str, table['seeds']))}. NLL of {table['test_data']} test images in "
        f"nats, mean over seeds ± standard error over images{spread}."
    )
    rows = [
        [order, *(_cell(row["nll"][k]) for row in table["rows"])]
        for k, order in enumerate(table["orders"])
    ]
    rows += [
        [label, *(_cell(row[name]) for row in table["rows"])] for name, label in TOTALS.items()
    ]
    head = ["order", *(row["model"] for row in table["rows"])]
    return f"{setup}\n\n{markdown(head, rows)}"


def _density(make: Callable[[], Ordered], input_shape: tuple[int, ...]) -> Density:
    return Density(make(), input_shape)


def _measured(result: Result) -> dict[str, Any]:
    return {key: value for key, value in result["orders"].items() if key != "orders"}


def _row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    ((model, _, entries),) = outcomes
    by_order = zip(
        zip(*(entry["nll"] for entry in entries), strict=True),
        zip(*(entry["nll_standard_error"] for entry in entries), strict=True),
        strict=True,
    )
    totals = {
        name: _over_seeds(
            [entry[name] for entry in entries],
            [entry[f"{name}_standard_error"] for entry in entries],
        )
        for name in TOTALS
    }
    return {
        "model": model.label,
        "nll": [_over_seeds(*of_order) for of_order in by_order],
        **totals,
        "seeds": entries,
    }


def _over_seeds(values: Sequence[float], errors: Sequence[float]) -> dict[str, float]:
    """The mean over seeds of a quantity and of its standard error; its deviation over seeds."""
    several = {"over_seeds": stdev(values)} if len(values) > 1 else {}
    return {"mean": mean(values), "standard_error": mean(errors), **several}


def _cell(entry: Mapping[str, float]) -> str:
    spread = f" ({entry['over_seeds']:.2f})" if "over_seeds" in entry else ""
    return f"{entry['mean']:.2f} ± {entry['standard_error']:.2f}{spread}"
