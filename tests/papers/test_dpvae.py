"""The study of the dpVAE paper: which figures stand beside ours."""

import pytest

from rhovae_kernels.papers import dpvae
from rhovae_kernels.papers.study import Outcome


@pytest.fixture
def page():
    """The page of a study whose two seeds gave 0.5 and 1.5 of everything."""

    def of(data: str) -> str:
        study = dpvae.study(data, objectives=["tc-dpvae"])
        quantities = ("skl", "leakage_mass", "negative_elbo", "nll")
        entries = [{"seed": i, **dict.fromkeys(quantities, 0.5 + i)} for i in range(2)]
        outcomes = [Outcome(model, None, entries) for model in study.rows[0]]
        table = {
            "data": data,
            "label": "grey",
            "latent": 2,
            "training_data": 54000,
            "test_data": 10000,
            "epochs": study.epochs,
            "batch_size": study.batch_size,
            "lr": study.lr,
            "seeds": [0, 1],
            "rows": [study.row(outcomes)],
        }
        return study.describe(table)

    return of


def test_published_figures_stand_beside_ours_on_the_papers_data(page):
    shown = page("mnist")
    assert "1.000 ± 0.707 (paper 4.48)" in shown and "1.000 ± 0.707 (paper 2.07)" in shown
    assert "mnist (grey)" in shown and "10800 steps" in shown


def test_no_published_figure_stands_beside_ours_on_other_data(page):
    shown = page("fashion-mnist")
    assert "1.000 ± 0.707" in shown and "(paper" not in shown
