"""Training on sequences: in every form in which people have them, and to the same bits again."""

import json
import signal
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from checkpoints import same_checkpoint
from torch.utils.data import DataLoader, Dataset

import rhovae_kernels as rk
from rhovae_kernels import cli

CHECKPOINTS = ("last.safetensors", "best.safetensors")
STEPS = 12


def sequences(count: int = 40, seed: int = 0) -> list[torch.Tensor]:
    """Noisy waves of 2 to 12 steps, the longer of which lack one."""
    state = np.random.RandomState(seed)
    found = []
    for _ in range(count):
        end = state.randint(2, STEPS + 1)
        wave = np.sin(np.arange(end) / 2 + state.rand() * 6) + 0.1 * state.randn(end)
        if end > 6:
            wave[3] = np.nan
        found.append(torch.from_numpy(wave).float()[:, None])
    found[0] = torch.ones(STEPS, 1)
    return found


class Ragged(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> torch.Tensor:
        return sequences()[i]


def build(seed: int = 0) -> rk.VAE:
    torch.manual_seed(seed)
    return rk.VAE(
        rk.nets.GRU((STEPS, 1), hidden=6),
        rk.posteriors.Markov(2),
        rk.priors.AR1Process(2),
        rk.decoders.PerStep(rk.decoders.Gaussian()),
    )


def train(out: Path, data, vae: rk.VAE | None = None, **settings) -> rk.training.History:
    settings = {"epochs": 2, "quiet": True, **settings}
    return rk.fit(vae or build(), data, out=out, **settings)


def loader() -> DataLoader:
    return DataLoader(Ragged(), batch_size=8, shuffle=True, collate_fn=rk.data.pad)


DATA = {
    "tensor": lambda: rk.data.pad(sequences()),
    "array": lambda: rk.data.pad(sequences()).numpy(),
    "DataLoader": loader,
    "sp500": lambda: "sp500",
}


@pytest.mark.parametrize("kind", DATA)
def test_stopped_between_epochs_a_run_resumes_to_the_same_bits(kind, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    history = train(whole, DATA[kind](), batch_size=8)
    train(stopped, DATA[kind](), epochs=1, batch_size=8)
    train(stopped, DATA[kind](), build(seed=5), resume="auto", batch_size=8)
    for name in CHECKPOINTS:
        assert same_checkpoint(whole / name, stopped / name)
    assert np.isfinite(history.column("valid_negative_elbo")).all()


KILLED = """
import os, signal, sys
import torch
import rhovae_kernels as rk
from test_fit_sequences import build, sequences

torch.set_num_threads(int(sys.argv[2]))
vae, steps = build(), 0

def count(module, inputs):
    global steps
    steps += module.training
    if steps == 12:
        os.kill(os.getpid(), signal.SIGKILL)

vae.register_forward_pre_hook(count)
rk.fit(vae, rk.data.pad(sequences()), epochs=3, out=sys.argv[1], batch_size=8, quiet=True)
"""


def test_killed_in_the_middle_of_an_epoch_a_run_resumes_to_the_same_bits(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{KILLED}"
    status, said = forked.run(script, [killed, torch.get_num_threads()], tmp_path)
    assert status == -signal.SIGKILL, said
    # Five steps an epoch, of 36 sequences: the twelfth is in the third.
    assert len(json.loads((killed / "history.json").read_text())) == 2
    for out, resume in ((killed, "auto"), (whole, None)):
        x = rk.data.pad(sequences())
        train(out, x, build(), epochs=3, batch_size=8, resume=resume)
    for name in (*CHECKPOINTS, "model.safetensors"):
        assert same_checkpoint(killed / name, whole / name)


def test_training_lowers_the_bound_and_learns_how_steps_hang_together(tmp_path):
    vae = build()
    history = train(
        tmp_path / "run", rk.data.pad(sequences()), vae, epochs=8, lr=0.03, batch_size=8
    )
    values = history.column("valid_negative_elbo")
    assert min(values) < values[0]
    assert (vae.prior.rho_logit != 0).all()


def test_a_batch_has_as_many_steps_as_its_longest_sequence(tmp_path):
    x = rk.data.pad([torch.ones(STEPS, 1)] + [torch.ones(2, 1)] * 39)
    vae, seen = build(), []
    vae.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    train(tmp_path / "run", x, vae, epochs=1, batch_size=4)
    assert set(seen) == {2, STEPS} and seen.count(STEPS) == 1


def test_what_is_validated_and_measured_may_be_longer_than_what_is_trained_on(tmp_path):
    long = rk.data.pad([torch.randn(3 * STEPS, 1) for _ in range(5)])
    train(tmp_path / "run", rk.data.pad(sequences()), valid=long, test=long)
    found = rk.evaluate(tmp_path / "run", long, ["elbo", "nll@5"])
    assert found["elbo"]["steps"] == 15 * STEPS


@pytest.mark.parametrize("spoil", [3, None], ids=["half a step", "all of a sequence"])
def test_data_that_are_no_sequences_are_refused_before_a_run_is_made(spoil, tmp_path):
    x = torch.rand(20, 5, 2)
    x[7, spoil, slice(None) if spoil is None else 0] = torch.nan
    vae = rk.recipes.recipe("sequence-rho-vae-gaussian").build((5, 2), latent=2)
    says = "no observed step" if spoil is None else "NaN in some of the 2 features of step 3"
    if spoil is None:
        x[7] = torch.nan
    with pytest.raises(ValueError, match=says):
        train(tmp_path / "run", x, vae)
    assert not (tmp_path / "run").exists()


def test_sequences_of_other_features_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor holds data of shape \(5, 3\).*wants \(T, 1\)"):
        train(tmp_path / "run", torch.rand(20, 5, 3))
    with pytest.raises(ValueError, match=r"digits holds data of shape \(1, 8, 8\)"):
        rk.evaluate(build(), "digits")


@pytest.mark.parametrize("recipe", ["sequence-vae", "sequence-rho-vae", "sequence-smooth-vae"])
def test_from_the_command_line_it_is_trained_measured_and_drawn(
    recipe, capsys, monkeypatch, tmp_path
):
    def rhovae(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["rhovae", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        assert ended.value.code in (0, None), shown.err
        return shown.out

    out = tmp_path / "run"
    train = ["train", "sp500", "--recipe", f"{recipe}-gaussian", "--latent", 2, "--epochs", 1]
    assert "test −ELBO" in rhovae(*train, "--quiet", "--out", out)
    shown = rhovae("evaluate", out, "--metrics", "elbo,nll@5,active-units")
    assert shown.count("per step") == 2 and "of 252 steps" in shown
    rhovae("sample", out, "--n", 3)
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert (rk.training.load_run(out)[0].input_shape) == (100, 1)
