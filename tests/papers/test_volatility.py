"""The study of volatility: what each posterior reaches, and what is told of it."""

import json
import math

import pytest
import torch

from rhovae_kernels.data import sp500
from rhovae_kernels.papers import stochastic_volatility as sv
from rhovae_kernels.papers import volatility
from rhovae_kernels.plots import pictures

pytestmark = pytest.mark.usefixtures("one_thread")

# Nats, to what may be left by a fit whose last round adds less than 0.001.
LAST_100 = {
    "mean-field": -590.040,
    "one-rho": -576.016,
    "markov": -575.800,
    "dependent": -575.639,
    "smoothed": -574.339,
}
ALL_DAYS = {"mean-field": -10807.885, "one-rho": -10510.025, "markov": -10506.412}


@pytest.fixture(scope="module")
def last_100(one_thread):
    """The study of the last 100 days, and the directory that it wrote."""
    y = sp500.centred_differences(100)
    found = [volatility.fitted(form, y) for form in volatility.FORMS]
    return y, found, volatility.held_against_stan(y, found)


def test_richer_families_reach_more_of_the_last_100_days(last_100):
    rows = last_100[2]["rows"]
    for row in rows:
        assert row["stands"], row["form"]
        assert row["elbo"] == pytest.approx(LAST_100[row["form"]], abs=0.005)
        assert abs(row["quadrature_error"]) < 0.005
    elbos = [row["elbo"] for row in rows]
    assert elbos == sorted(elbos)


def test_smoothed_is_in_practice_stans_answer_on_the_last_100_days(last_100):
    mean_field, *_, smoothed = last_100[2]["rows"]
    assert smoothed["daily_error"] < 0.05 < 0.3 < mean_field["daily_error"]
    assert 0.9 < smoothed["daily_sd_ratio"] < 1.05
    for name in ("persistence_of_volatility", "white_noise_shock_scale"):
        assert smoothed[name]["error"] < 0.2
        assert 0.8 < smoothed[name]["sd_ratio"] < 1.2
        assert mean_field[name]["error"] > 1


@pytest.mark.parametrize("form", ALL_DAYS)
def test_correlated_days_reach_300_nats_more_of_ten_years(form):
    y = sp500.centred_differences()
    found = volatility.fitted(form, y)
    assert found.fit.stands
    assert found.fit.elbo == pytest.approx(ALL_DAYS[form], abs=0.01)
    (row,) = volatility.held_against_stan(y, [found])["rows"]
    if form == "mean-field":
        assert row["daily_error"] > 1 and row["persistence_of_volatility"]["mean"] < 0.4
    else:
        assert row["daily_error"] < 0.05 and 0.9 < row["daily_sd_ratio"] < 1.05
        assert row["persistence_of_volatility"]["error"] < 0.5


def test_what_is_held_against_stan_is_in_stans_sds(last_100):
    y, _, series = last_100
    truth = sp500.stan(100)
    exact = sv.Summary(
        (truth["log_volatility"].mean, truth["log_volatility"].standard_deviation),
        (
            torch.stack([truth[name].mean for name in sp500.QUANTITIES[1:]]),
            torch.stack([truth[name].standard_deviation for name in sp500.QUANTITIES[1:]]),
        ),
    )
    how = sv.Fit(-1.0, 0.0, 1, 2, 0.0, 0.0, 0.1)
    (row,) = volatility.held_against_stan(y, [volatility.Fitted("markov", how, exact)])["rows"]
    assert row["daily_error"] == 0 and row["daily_sd_ratio"] == 1
    for name in volatility.PARAMETERS:
        assert row[name]["error"] == 0 and row[name]["sd_ratio"] == 1
        assert row[name]["mean"] == series["stan"][name]["mean"]
    assert (series["days"], series["first"], series["last"]) == (100, "2020-02-03", "2020-06-24")


def test_the_page_says_what_was_still_rising(last_100):
    series = last_100[2]
    table = {"iterations_a_round": 50, "least_rise_of_a_round": 1e-3, "series": [series]}
    page = volatility.describe(table)
    assert "| Stan " in page and "Still rising" not in page
    for form in volatility.FORMS.values():
        assert f"| {form.label} " in page
    rising = [{**row, "stands": row["form"] != "markov"} for row in series["rows"]]
    page = volatility.describe({**table, "series": [{**series, "rows": rising}]})
    assert page.endswith("Still rising when the rounds were used up: a ρ each day.")


def test_the_picture_has_a_panel_for_each_posterior_and_for_stan(last_100, tmp_path, monkeypatch):
    y, found, _ = last_100
    drawn = {}
    monkeypatch.setattr(
        pictures, "bands", lambda path, days, series, panels, *_: drawn.update(panels)
    )
    volatility.draw(tmp_path / "volatility.png", y, [found[0], found[-1]])
    assert list(drawn) == ["mean field", "smoothed: all of it follows θ", "Stan"]
    mean, sd = found[0].summary.daily
    torch.testing.assert_close(drawn["mean field"].middle, torch.exp(mean / 2))
    torch.testing.assert_close(drawn["mean field"].high, torch.exp((mean + 1.96 * sd) / 2))
    assert all((band.low < band.middle).all() for band in drawn.values())


def test_a_study_writes_its_table_its_page_and_its_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sv, "ROUND", 2)
    monkeypatch.setattr(sv, "MOST_ROUNDS", 2)
    table = volatility.reproduce("100", out=tmp_path)
    assert json.loads((tmp_path / "table.json").read_text()) == table
    assert (tmp_path / "table.md").read_text() == volatility.describe(table) + "\n"
    assert (tmp_path / "volatility-100.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("100 days, ") == len(volatility.FORMS)
    assert [row["form"] for row in table["series"][0]["rows"]] == list(volatility.FORMS)
    assert all(math.isfinite(row["last_rise"]) for row in table["series"][0]["rows"])


def test_days_of_which_stan_says_nothing_are_refused_before_anything_is_fitted(tmp_path):
    with pytest.raises(ValueError, match="days is '50'; it must be one of all, 100"):
        volatility.reproduce("50", out=tmp_path)
    assert list(tmp_path.iterdir()) == []
