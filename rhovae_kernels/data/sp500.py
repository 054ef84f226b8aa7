"""Ten years of the S&P 500, and what Stan found for their stochastic volatility; in the package.

sp500.npz holds the 2,517 closes, the days they are of, and the posterior of the model that
`papers.volatility` states, as a long run of Stan has it.

Source: TensorFlow Probability's Inference Gym 0.0.5 (Apache-2.0), 2021,
https://github.com/tensorflow/probability/tree/main/spinoffs/inference_gym: closes in
`internal/datasets/sp500_closing_prices.py`, the model in `targets/stochastic_volatility.py`, Stan's
posterior in `targets/ground_truth/stochastic_volatility_sp500.py` and `…_sp500_small.py`. It names
the first and the last day; those between are the exchange's weekdays without its holidays and its
three unscheduled closures, which are just as many.
"""

from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rhovae_kernels.data.dataset import SPLITS, Dataset, check_choice
from rhovae_kernels.data.sequences import pad

FILE = Path(__file__).with_suffix(".npz")

LAST = 100
"""How many of the last differences make the second series of which Stan's posterior is known."""

WINDOW = 100
"""How many days a sequence of the data set has."""

QUANTITIES = (
    "log_volatility",
    "persistence_of_volatility",
    "mean_log_volatility",
    "white_noise_shock_scale",
)
"""What Stan's posterior is known of: h_t a day, φ, m and σ."""


class Estimate(NamedTuple):
    """What a long run of Stan found for a quantity, a number or one a day, in float64.

    Attributes:
        mean: posterior mean.
        standard_deviation: posterior standard deviation.
        standard_error: standard error of the mean, which is of a finite run.
    """

    mean: Tensor
    standard_deviation: Tensor
    standard_error: Tensor


def closes() -> Tensor:
    """The daily closes from 25 June 2010 to 24 June 2020, in points, float64 (2517,).

    Example:
        >>> closes()[[0, -1]]
        tensor([1076.7600, 3050.3301], dtype=torch.float64)
    """
    return torch.from_numpy(_read()["closes"].copy())


def dates() -> list[date]:
    """The day of each close.

    Example:
        >>> [day.isoformat() for day in (dates()[0], dates()[-1])]
        ['2010-06-25', '2020-06-24']
    """
    return [date(1970, 1, 1) + timedelta(int(day)) for day in _read()["dates"]]


def centred_differences(days: int | None = None) -> Tensor:
    """The last differences of successive closes less their own mean, in points, float64 (days,).

    Args:
        days: how many; all 2,516 where left out.

    Raises:
        ValueError: days is not between 2 and 2,516.

    Example:
        >>> y = centred_differences(100)
        >>> y.shape, bool(y.mean().abs() < 1e-12)
        (torch.Size([100]), True)
    """
    differences = closes().diff()
    days = len(differences) if days is None else days
    if not 2 <= days <= len(differences):
        raise ValueError(f"days is {days}; it must be between 2 and {len(differences)}")
    last = differences[-days:]
    return last - last.mean()


def load(split: str) -> Dataset:
    """A split of the daily log returns, in percent, in windows of 100 days: earlier days train.

    The first 80% of the 2,516 returns are those to train on, the next 10% validate, the last 10%
    test. The last window of each is shorter: NaN where it has no more days.

    Args:
        split: "train", "valid" or "test": 21, 3 and 3 windows.

    Returns:
        Values (N, 100, 1).

    Raises:
        ValueError: an unknown split.

    Example:
        >>> load("train").values.shape
        torch.Size([21, 100, 1])
    """
    check_choice("split", split, SPLITS)
    returns = 100 * closes().log().diff()
    count = len(returns)
    first, last = {"train": (0, 8), "valid": (8, 9), "test": (9, 10)}[split]
    days = returns[first * count // 10 : last * count // 10].float()
    return Dataset("sp500", split, pad(days.split(WINDOW)))


def stan(days: int | None = None) -> dict[str, Estimate]:
    """Stan's posterior of each of `QUANTITIES`, given the centred differences of `days` days.

    Args:
        days: 2,516 or 100, of which it is known; all 2,516 where left out.

    Raises:
        ValueError: another number of days.

    Example:
        >>> found = stan()["persistence_of_volatility"]
        >>> print(f"{found.mean:.4f} ± {found.standard_deviation:.4f}")
        0.9644 ± 0.0078
    """
    everything = len(_read()["closes"]) - 1
    if days not in (None, everything, LAST):
        raise ValueError(f"days is {days}; Stan's posterior is known of {everything} and of {LAST}")
    series = "last100" if days == LAST else "all"
    arrays = (_read()[f"{series}.{quantity}"].astype(np.float64) for quantity in QUANTITIES)
    estimates = (Estimate(*torch.from_numpy(array)) for array in arrays)
    return dict(zip(QUANTITIES, estimates, strict=True))


@cache
def _read() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as arrays:
        return dict(arrays)
