"""The S&P 500 in the package: the file is whole, and is what it says."""

import hashlib
from datetime import date, timedelta
from itertools import pairwise

import pytest
import torch

from rhovae_kernels.data import SPLITS, named, sp500

SHA256 = "6d86c543457ecf2cafb5b51acbc28923cabe2438f467d01904151a3205d23482"


def test_the_file_is_the_one_that_was_put_in():
    assert hashlib.sha256(sp500.FILE.read_bytes()).hexdigest() == SHA256
    assert sp500.FILE.stat().st_size < 50_000


def test_the_closes_are_those_of_known_days():
    close_of = dict(zip(sp500.dates(), sp500.closes().tolist(), strict=True))
    assert len(close_of) == 2517
    # The crash of March 2020, day by day, and the exchange's last day of 2015.
    known = {
        date(2015, 12, 31): 2043.94,
        date(2020, 3, 13): 2711.02,
        date(2020, 3, 16): 2386.13,
        date(2020, 3, 23): 2237.40,
        date(2020, 3, 24): 2447.33,
    }
    for day, close in known.items():
        assert close_of[day] == pytest.approx(close, abs=0.006)


def test_the_days_are_working_days_with_few_holidays_between():
    days = sp500.dates()
    assert all(day.weekday() < 5 for day in days)
    gaps = [later - earlier for earlier, later in pairwise(days)]
    # From a Friday over a long weekend; and the hurricane of October 2012, Friday to Wednesday.
    assert min(gaps) == timedelta(1) and max(gaps) == timedelta(5)
    of_full_years = [sum(day.year == year for day in days) for year in range(2011, 2020)]
    assert all(250 <= count <= 252 for count in of_full_years)
    assert not {date(2012, 10, 29), date(2018, 12, 5), date(2019, 4, 19)} & set(days)


@pytest.mark.parametrize("days", [None, 2516, 100])
def test_stan_is_known_of_each_day_and_its_means_to_a_hundredth_of_its_sds(days):
    found = sp500.stan(days)
    assert set(found) == set(sp500.QUANTITIES)
    for quantity, estimate in found.items():
        shape = (days or 2516,) if quantity == "log_volatility" else ()
        for values in estimate:
            assert values.shape == shape and values.dtype == torch.float64
            assert values.isfinite().all()
        assert (estimate.standard_error < 0.01 * estimate.standard_deviation).all()
    # Where the index moved much, volatility is high.
    size = sp500.centred_differences(days).abs()
    large = size > size.quantile(0.9)
    h = found["log_volatility"].mean
    assert h[large].mean() > h[~large].mean() + 0.5


def test_differences_are_centred_on_their_own_mean():
    y, last = sp500.centred_differences(), sp500.centred_differences(100)
    assert y.shape == (2516,) and last.shape == (100,)
    torch.testing.assert_close(y[-100:] - y[-100:].mean(), last, rtol=0, atol=1e-11)
    assert abs(float(last.mean())) < 1e-12 and abs(float(y[-100:].mean())) > 1


@pytest.mark.parametrize("days", [0, 1, -5, 2517])
def test_a_series_that_is_too_short_or_too_long_is_refused(days):
    with pytest.raises(ValueError, match=rf"days is {days}; it must be between 2 and 2516"):
        sp500.centred_differences(days)


def test_a_series_that_stan_was_not_run_on_is_refused():
    with pytest.raises(ValueError, match="days is 50; Stan's posterior is known of 2516 and"):
        sp500.stan(50)


class TestTheDataSet:
    def test_its_windows_are_the_daily_returns_one_after_another(self):
        x = torch.cat([named.load("sp500", split=s).values.flatten() for s in SPLITS])
        returns = 100 * sp500.closes().log().diff()
        assert torch.equal(x[~x.isnan()], returns.float())

    def test_earlier_days_train_and_the_last_window_of_a_split_is_shorter(self):
        for split, days in zip(SPLITS, (2012, 252, 252), strict=True):
            x = named.load("sp500", split=split).values
            assert x.shape == (-(-days // 100), 100, 1)
            observed = ~x[..., 0].isnan()
            assert observed[:-1].all() and observed[-1].sum() == days % 100
