"""The study of the IAF post: which figures stand in one table."""

import pytest

from rhovae_kernels.papers import iaf


@pytest.mark.parametrize(
    ("data", "label", "likelihood", "together"),
    [
        ("mnist", "rounded", "bernoulli", True),
        ("mnist", "dynamic", "bernoulli", False),
        ("mnist", "grey", "logistic", False),
        ("digits", "rounded", "bernoulli", False),
    ],
    ids=["Keng's", "dynamic", "logistic", "digits"],
)
def test_published_figures_share_a_table_with_rounded_mnist_alone(
    data, label, likelihood, together
):
    columns = {**iaf.COLUMNS, **iaf.BITS}
    row = {"model": "VAE", "parameters": 1, **dict.fromkeys(columns, 1.0)}
    table = {
        "data": data,
        "label": label,
        "likelihood": likelihood,
        "training_data": 54000,
        "nll_data": 10,
        "latent": 32,
        "epochs": 1,
        "batch_size": 100,
        "lr": 1e-3,
        "seeds": [0],
        "rows": [row],
        "published": iaf.study(data).facts["published"],
    }
    shown = iaf.describe(table)
    assert ("Keng (2017), on other data" not in shown) == together
    columns = {len(line.split("|")) for line in shown.splitlines() if line.startswith("|")}
    assert len(columns) == (1 if together else 2)
    for figure in ("70.92", "72.33", "40.19", "66.44", "70.89", "39.99"):
        assert shown.count(figure) == 1
