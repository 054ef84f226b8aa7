"""Training runs: what they write, how they resume, what they refuse."""

import json
import signal
from pathlib import Path

import forked
import pytest
import torch
from checkpoints import same_checkpoint

import rhovae_kernels as rk
from rhovae_kernels.training.checkpoint import Checkpoint
from rhovae_kernels.training.run import History
from rhovae_kernels.training.score import score

CHECKPOINTS = ("best.safetensors", "last.safetensors")


def small_vae(latent: int = 2, seed: int = 0) -> rk.VAE:
    torch.manual_seed(seed)
    return rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(16,)),
        rk.posteriors.AR1(latent),
        rk.priors.StandardNormal(latent),
        rk.decoders.Bernoulli(),
    )


def train(out: Path, vae: rk.VAE | None = None, **settings: object) -> History:
    settings = {"epochs": 2, "quiet": True, "binarize": "dynamic", **settings}
    return rk.fit(vae or small_vae(), "digits", out=out, **settings)


def contents(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two epochs; tests leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out)
    return out


def test_training_lowers_the_loss_and_history_adds_up(tmp_path):
    history = train(tmp_path / "run", epochs=3)
    losses = history.column("train_loss")
    assert losses[0] > losses[1] > losses[2]
    assert len(history.seconds) == 3
    for row in history.epochs:
        total = row["test_distortion"] + row["test_rate"]
        assert row["test_negative_elbo"] == pytest.approx(total)
        assert row["test_loss"] == pytest.approx(total, rel=1e-6)


def test_a_run_holds_tensors_and_json_alone(run):
    names = {"run.json", "history.json", "config.json", "model.safetensors", *CHECKPOINTS}
    assert set(contents(run)) == names
    settings = json.loads((run / "run.json").read_text())
    assert settings["data"] == "digits"
    assert settings["latent"] == 2
    assert settings["versions"]["torch"] == torch.__version__
    assert len(json.loads((run / "history.json").read_text())) == 2


def test_the_model_is_left_with_the_weights_of_the_best_epoch(tmp_path):
    vae = small_vae()
    history = train(tmp_path / "run", vae, epochs=3)
    best = min(history.epochs, key=lambda row: row["valid_negative_elbo"])
    dataset = rk.data.load("digits", binarize="dynamic", split="valid")
    assert score(vae, dataset, 128, 0)["negative_elbo"] == best["valid_negative_elbo"]
    saved = rk.VAE.from_pretrained(tmp_path / "run")
    assert score(saved, dataset, 128, 0)["negative_elbo"] == best["valid_negative_elbo"]


def test_best_stays_what_it_was_when_training_makes_the_model_worse(tmp_path):
    out, vae, steps = tmp_path / "run", small_vae(), 0
    train(out, epochs=2)
    best = (out / "best.safetensors").read_bytes()

    def worsen(module: torch.nn.Module, inputs: object) -> None:
        nonlocal steps
        steps += module.training
        if steps == 10 and module.training:
            vae.decoder.net[-2].bias.data.add_(3.0)

    vae.register_forward_pre_hook(worsen)
    second, third = train(out, vae, epochs=3, resume="auto").column("valid_negative_elbo")[1:]
    assert third > second
    assert (out / "best.safetensors").read_bytes() == best


def test_the_same_seed_gives_the_same_run_whatever_the_callers_random_state(run, tmp_path):
    vae = small_vae()
    torch.manual_seed(99)
    train(tmp_path / "again", vae)
    after = torch.rand(3)
    torch.manual_seed(99)
    assert torch.equal(after, torch.rand(3)), "training took from the caller's random stream"
    for name in CHECKPOINTS:
        assert same_checkpoint(run / name, tmp_path / "again" / name)


def test_another_seed_gives_another_run(run, tmp_path):
    train(tmp_path / "other", seed=1)
    assert not same_checkpoint(run / CHECKPOINTS[1], tmp_path / "other" / CHECKPOINTS[1])


def test_a_run_stopped_between_epochs_resumes_to_the_same_bits(run, tmp_path):
    out = tmp_path / "run"
    train(out, epochs=1)
    # Other initial weights: a resumed run takes none of them.
    history = train(out, small_vae(seed=5), epochs=2, resume="auto")
    for name in CHECKPOINTS:
        assert same_checkpoint(run / name, out / name)
    assert (out / "history.json").read_bytes() == (run / "history.json").read_bytes()
    assert len(history.seconds) == 1


KILLED = """
import os, signal, sys
import torch
import rhovae_kernels as rk

torch.manual_seed(0)
vae = rk.VAE(rk.nets.MLP((1, 8, 8), hidden=(16,)), rk.posteriors.AR1(2),
             rk.priors.StandardNormal(2), rk.decoders.Bernoulli())
torch.set_num_threads(int(sys.argv[2]))
steps = 0

def count(module, inputs):
    global steps
    steps += module.training
    if steps == 25:
        os.kill(os.getpid(), signal.SIGKILL)

vae.register_forward_pre_hook(count)
rk.fit(vae, "digits", epochs=4, out=sys.argv[1], batch_size=128, binarize="dynamic", quiet=True)
"""


def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_bits(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    status, said = forked.run(KILLED, [killed, torch.get_num_threads()], tmp_path)
    assert status == -signal.SIGKILL, said
    # Ten steps an epoch: step 25 is in the third, so two are there.
    assert len(json.loads((killed / "history.json").read_text())) == 2
    resumed = train(killed, epochs=4, resume="auto")
    uninterrupted = train(whole, epochs=4)
    assert resumed.epochs == uninterrupted.epochs
    for name in (*CHECKPOINTS, "model.safetensors"):
        assert same_checkpoint(killed / name, whole / name)
    assert (killed / "history.json").read_bytes() == (whole / "history.json").read_bytes()


def test_resume_auto_starts_a_run_that_is_not_there(tmp_path):
    assert len(train(tmp_path / "new", epochs=1, resume="auto").epochs) == 1


def test_a_finished_run_resumed_changes_nothing_and_gives_its_history(run):
    before = contents(run)
    history = train(run, resume="auto")
    assert len(history.epochs) == 2
    assert history.seconds == []
    assert contents(run) == before


def test_a_run_that_exists_is_not_overwritten(run):
    before = contents(run)
    with pytest.raises(FileExistsError, match="already holds a run; resume='auto'"):
        train(run)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 3}, "seed is 0, asked for is 3"),
        ({"lr": 0.5}, "lr is 0.001, asked for is 0.5"),
        ({"binarize": "none"}, "binarize is 'dynamic', asked for is 'none'"),
        ({"epochs": 1}, "epochs is 1; the run in .* has 2 already"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(run, changed, named):
    before = contents(run)
    with pytest.raises(ValueError, match=named):
        train(run, resume="auto", **changed)
    assert contents(run) == before


def test_a_run_is_not_resumed_with_another_model(run):
    before = contents(run)
    with pytest.raises(ValueError, match="latent is 2, asked for is 3"):
        train(run, small_vae(latent=3), resume="auto")
    assert contents(run) == before


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_checkpoint_is_named_and_not_used(tmp_path, damage):
    out = tmp_path / "run"
    train(out, epochs=1)
    path = out / "last.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-5] ^= 1
    path.write_bytes({"truncated": data[:-100], "one bit": data, "empty": b""}[damage])
    before = contents(out)
    with pytest.raises(ValueError, match=r"last\.safetensors: .*corrupted"):
        train(out, resume="auto")
    assert contents(out) == before


def test_a_file_of_tensors_that_is_no_checkpoint_is_refused(run):
    with pytest.raises(ValueError, match=r"model\.safetensors: no checkpoint"):
        Checkpoint.load(run / "model.safetensors")


@pytest.mark.parametrize("step", [3, 14])
def test_a_loss_that_is_not_finite_is_named_and_the_last_good_epoch_kept(tmp_path, step):
    vae, steps = small_vae(), 0

    def poison(module: torch.nn.Module, inputs: object) -> None:
        nonlocal steps
        steps += module.training
        if steps == step:
            vae.encoder.layers[1].weight.data.fill_(float("nan"))

    vae.register_forward_pre_hook(poison)
    epoch, within = divmod(step - 1, 10)
    with pytest.raises(FloatingPointError, match=f"nan at epoch {epoch + 1}, step {within + 1};"):
        train(tmp_path / "run", vae, epochs=3)
    kept = tmp_path / "run" / "last.safetensors"
    assert kept.exists() == (epoch > 0)
    if epoch:
        assert len(Checkpoint.load(kept).history) == epoch
        assert all(x.isfinite().all() for x in Checkpoint.load(kept).model.values())


def test_weights_that_go_bad_at_the_last_step_of_an_epoch_are_not_kept(tmp_path):
    vae = small_vae()

    def poison(module: torch.nn.Module, mode: object) -> None:
        if not module.training:
            vae.encoder.layers[1].weight.data.fill_(float("nan"))

    vae.register_forward_pre_hook(poison)
    with pytest.raises(FloatingPointError, match="valid_loss is nan after epoch 1"):
        train(tmp_path / "run", vae)
    assert not (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"lr": float("nan")}, "lr is nan; it must be positive and finite"),
        ({"resume": "yes"}, "resume is 'yes'; it must be 'auto' or None"),
        ({"binarize": "ternary"}, "binarize is 'ternary'"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing_behind(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_data_of_another_shape_than_the_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"two-moons holds data of shape \(2,\)"):
        rk.fit(small_vae(), "two-moons", epochs=1, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(NotADirectoryError, match="must be a directory"):
        train(path)
    assert path.read_text() == "mine"


def dcgan_vae() -> rk.VAE:
    torch.manual_seed(0)
    return rk.VAE(
        rk.nets.DCGAN((1, 8, 8), channels=(2, 4), hidden=(8,)),
        rk.posteriors.Diagonal(2),
        rk.priors.StandardNormal(2),
        rk.decoders.Bernoulli(),
    )


def watched(vae: rk.VAE) -> list[torch.Tensor]:
    """The batches that the model will be trained on, as they come."""
    seen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        if module.training:
            seen.append(inputs[0].clone())

    vae.register_forward_pre_hook(note)
    return seen


def test_a_last_batch_of_one_is_left_out_where_there_is_batch_normalization(tmp_path):
    """1257 images in batches of 157: eight, and a last one of one image."""
    vae = dcgan_vae()
    seen = watched(vae)
    history = train(tmp_path / "run", vae, batch_size=157, binarize="none")
    assert [len(x) for x in seen] == [157] * 16
    first, second = (torch.cat(half).flatten(1) for half in (seen[:8], seen[8:]))
    sums = [epoch.double().sum(0) for epoch in (first, second)]
    assert not torch.allclose(*sums), "both epochs left out the same image"
    saved = Checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert saved.step == 16 and saved.history == history.epochs


def test_without_batch_normalization_every_image_is_trained_on(tmp_path):
    vae = small_vae()
    seen = watched(vae)
    train(tmp_path / "run", vae, epochs=1, batch_size=157)
    assert [len(x) for x in seen] == [157] * 8 + [1]


def test_batches_of_one_are_refused_where_there_is_batch_normalization(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size is 1, of 1257 data; .*batches of at least 2"):
        train(tmp_path / "run", dcgan_vae(), batch_size=1)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_last_checkpoint_is_gone_is_not_trained_over(tmp_path):
    vae = rk.recipes.recipe("rho-vae").build((1, 8, 8), latent=2)
    rk.fit(vae, "digits", epochs=1, out=tmp_path, quiet=True)
    (tmp_path / "last.safetensors").unlink()
    best = (tmp_path / "best.safetensors").read_bytes()
    with pytest.raises(FileNotFoundError, match=r"last.safetensors is missing .* damaged"):
        rk.fit(vae, "digits", epochs=1, out=tmp_path, resume="auto", quiet=True)
    assert (tmp_path / "best.safetensors").read_bytes() == best


def test_a_run_is_resumed_by_a_model_of_its_type_alone(tmp_path):
    train(tmp_path / "run", small_vae().double(), epochs=1)
    with pytest.raises(ValueError, match=r"weight is of torch.float64, that of the model of .*32"):
        train(tmp_path / "run", small_vae(), epochs=2, resume="auto")
    assert len(train(tmp_path / "run", small_vae().double(), epochs=2, resume="auto").epochs) == 2
