"""Volatility of the S&P 500: what the correlation of a posterior is worth, against a known truth.

A stochastic volatility model, whose posterior a long run of Stan has, is fitted by posteriors that
differ in what they correlate: `stochastic_volatility` has the model and each of them, and
`data.sp500` the series and Stan's answer. Nothing is drawn: ELBOs are exact to `quadrature_error`.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhovae_kernels.data import sp500
from rhovae_kernels.files import write_json, write_text
from rhovae_kernels.papers.stochastic_volatility import (
    CHECKED_BY,
    NODES,
    RISE,
    ROUND,
    Dependent,
    Fit,
    Markov,
    MeanField,
    OneCorrelation,
    Posterior,
    Smoothed,
    Summary,
    fit,
)
from rhovae_kernels.plots import pictures
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.training.run import versions


class Form(NamedTuple):
    """A posterior of the study.

    Attributes:
        label: in tables and pictures.
        build: makes it, unfitted, of a series.
    """

    label: str
    build: type[Posterior]


FORMS = {
    "mean-field": Form("mean field", MeanField),
    "one-rho": Form("one ρ", OneCorrelation),
    "markov": Form("a ρ each day", Markov),
    "dependent": Form("a ρ each day, mean linear in θ", Dependent),
    "smoothed": Form("smoothed: all of it follows θ", Smoothed),
}
"""The rows of the table, from the poorest family to the richest."""

SERIES = {"all": None, "100": sp500.LAST}
"""The series that Stan's posterior is known of: all days, and the last 100."""

PARAMETERS = {
    "persistence_of_volatility": "persistence φ",
    "white_noise_shock_scale": "shock scale σ",
    "mean_log_volatility": "mean m",
}
"""The columns of the parameters, by the names of `sp500.QUANTITIES`."""


class Fitted(NamedTuple):
    """A posterior of a series, fitted.

    Attributes:
        form: key of `FORMS`.
        fit: how it went.
        summary: means and standard deviations.
    """

    form: str
    fit: Fit
    summary: Summary


def fitted(form: str, y: Tensor) -> Fitted:
    """One posterior of `FORMS`, fitted to a series (T,) until its ELBO stands.

    Example:
        >>> found = fitted("one-rho", sp500.centred_differences(100))
        >>> print(f"{found.fit.elbo:.2f}", found.fit.stands)
        -576.02 True
    """
    posterior = FORMS[form].build(y)
    how = fit(posterior, y)
    return Fitted(form, how, posterior.summary(CHECKED_BY))


def held_against_stan(y: Tensor, found: Sequence[Fitted]) -> dict[str, Any]:
    """The fitted posteriors of a series, each held against Stan's of the same.

    Args:
        y: the series, of `sp500.centred_differences`.
        found: of `fitted`.

    Returns:
        "days", "first" and "last" of the series; "stan": "mean", "sd" and "standard_error" of each
        of `PARAMETERS`; and "rows", for each posterior the fields of `Fit`, and

        - "form" and "posterior": its key in `FORMS` and its label there;
        - "daily_error": |mean − Stan's| / Stan's sd of a day's log volatility, mean over the days;
        - "daily_sd_ratio": sd / Stan's sd, mean over the days;
        - each of `PARAMETERS`: "mean", "sd", and the same two, "error" and "sd_ratio".
    """
    stan = sp500.stan(len(y))
    days = _days(len(y))
    names = "mean", "sd", "standard_error"
    return {
        "days": len(y),
        "first": days[0].isoformat(),
        "last": days[-1].isoformat(),
        "stan": {
            name: dict(zip(names, map(float, stan[name]), strict=True)) for name in PARAMETERS
        },
        "rows": [_row(posterior, stan) for posterior in found],
    }


def _row(found: Fitted, stan: Mapping[str, sp500.Estimate]) -> dict[str, Any]:
    truth, (mean, sd) = stan["log_volatility"], found.summary.daily
    result: dict[str, Any] = {
        "form": found.form,
        "posterior": FORMS[found.form].label,
        **found.fit._asdict(),
        "stands": found.fit.stands,
        "daily_error": float(((mean - truth.mean) / truth.standard_deviation).abs().mean()),
        "daily_sd_ratio": float((sd / truth.standard_deviation).mean()),
    }
    of_parameters = zip(sp500.QUANTITIES[1:], *found.summary.parameters, strict=True)
    for name, centre, spread in of_parameters:
        true = stan[name]
        result[name] = {
            "mean": float(centre),
            "sd": float(spread),
            "error": float((centre - true.mean).abs() / true.standard_deviation),
            "sd_ratio": float(spread / true.standard_deviation),
        }
    return result


def reproduce(days: str | None = None, *, out: str | Path, quiet: bool = False) -> dict[str, Any]:
    """Fit every posterior to the volatility of the S&P 500, and hold each against Stan's.

    h_1 ~ N(m, σ²/(1−φ²)); h_t ~ N(m + φ (h_{t−1} − m), σ²); y_t ~ N(0, e^{h_t}), y the centred
    differences of successive closes. Mean field, one ρ, a ρ for each day, the same with a mean that
    is linear in the parameters, and the prior conditioned on learned pseudo-observations: each by
    L-BFGS in float64 until 50 iterations add less than 0.001 nats to its ELBO. Writes table.json,
    table.md, and for each series a picture of the volatility by mean field, by the last of these
    forms and by Stan.

    Args:
        days: "all", 2,516 of them, or "100", the last; both where left out.
        out: directory for all of it.
        quiet: print no line on stderr for each fit.

    Returns:
        What table.json holds.

    Raises:
        ValueError: other days.

    Source:
        The model and Stan's posterior: Inference Gym 0.0.5, see `data.sp500`.
    """
    if days is not None and days not in SERIES:
        raise ValueError(f"days is {days!r}; it must be one of {', '.join(SERIES)}")
    out = Path(out)
    table: dict[str, Any] = {
        "data": "sp500",
        "iterations_a_round": ROUND,
        "least_rise_of_a_round": RISE,
        "quadrature_points": [NODES, CHECKED_BY],
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "series": [],
    }
    for name in SERIES if days is None else [days]:
        y = sp500.centred_differences(SERIES[name])
        found = []
        for form in FORMS:
            found.append(fitted(form, y))
            if not quiet:
                nats = -found[-1].fit.elbo
                print(f"{len(y)} days, {FORMS[form].label}: −ELBO {nats:.2f}", file=sys.stderr)
        table["series"].append(held_against_stan(y, found))
        draw(out / f"volatility-{len(y)}.png", y, [found[0], found[-1]])
    write_json(out / "table.json", table)
    write_text(out / "table.md", describe(table))
    return table


def _days(count: int) -> list[date]:
    return sp500.dates()[-count:]


def describe(table: Mapping[str, Any]) -> str:
    """The result of `reproduce` as a page: how it was fitted, then a table for each series."""
    page = [
        "Stochastic volatility of the S&P 500, centred differences of daily closes. Daily error "
        "and ratio of sds: a day's log volatility against a long run of Stan, in its sds, means "
        f"over the days. L-BFGS raised each ELBO until {table['iterations_a_round']} iterations "
        f"added less than {table['least_rise_of_a_round']:g} nats. In the first three forms q(h) "
        "does not follow the parameters θ, whose own posterior is then too narrow; that of m has "
        "heavy tails where φ may be near 1, as on 100 days, and q(θ) is Gaussian. Seconds are of "
        "the CPU, all threads together."
    ]
    for series in table["series"]:
        page.append(f"{series['days']:,} days, {series['first']} to {series['last']}:")
        page.append(table_of(series))
        rising = [row["posterior"] for row in series["rows"] if not row["stands"]]
        if rising:
            page.append(f"Still rising when the rounds were used up: {'; '.join(rising)}.")
    return "\n\n".join(page)


def table_of(series: Mapping[str, Any]) -> str:
    """The table of what `held_against_stan` gives, with Stan's parameters below."""

    def parameters(of: Mapping[str, Mapping[str, float]]) -> list[str]:
        return [f"{of[name]['mean']:.3f} ± {of[name]['sd']:.3f}" for name in PARAMETERS]

    of_days = ["daily error", "ratio of sds"]
    header = ["posterior", "−ELBO (nats)", *of_days, *PARAMETERS.values(), "seconds"]
    lines = [
        [
            row["posterior"],
            f"{-row['elbo']:.2f}",
            f"{row['daily_error']:.3f}",
            f"{row['daily_sd_ratio']:.2f}",
            *parameters(row),
            f"{row['cpu_seconds']:.1f}",
        ]
        for row in series["rows"]
    ]
    return markdown(header, [*lines, ["Stan", "", "", "", *parameters(series["stan"]), ""]])


def draw(path: str | Path, y: Tensor, panels: Sequence[Fitted]) -> None:
    """The differences, and a band of volatility for each posterior and for Stan.

    Volatility is e^{h/2}, the standard deviation of a day's difference; the line has h at its
    mean, the band is 1.96 standard deviations of h to either side.

    Args:
        path: the picture's file.
        y: the series.
        panels: what is drawn above Stan's.
    """
    truth = sp500.stan(len(y))["log_volatility"]
    of_h = {FORMS[found.form].label: found.summary.daily for found in panels}
    of_h["Stan"] = (truth.mean, truth.standard_deviation)
    bands = {
        label: pictures.Band(*(torch.exp(0.5 * (mean + at * sd)) for at in (-1.96, 0, 1.96)))
        for label, (mean, sd) in of_h.items()
    }
    pictures.bands(
        path,
        _days(len(y)),
        y,
        bands,
        ("points", "points"),
        "S&P 500: a day's change, and its volatility with 95 % bands; dotted, Stan's",
    )
