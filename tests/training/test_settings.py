"""How a model is trained: each setting does what it says, and resumes to the same bits."""

import functools
import json
from pathlib import Path

import pytest
import torch
from checkpoints import same_checkpoint

import rhovae_kernels as rk
from rhovae_kernels.files import load_tensors
from rhovae_kernels.training import Callback, Settings
from rhovae_kernels.training.settings import OPTIMIZERS, SCHEDULES

X = rk.data.load("digits").values[:192]


def build(seed: int = 0) -> rk.VAE:
    torch.manual_seed(seed)
    return rk.VAE(
        rk.nets.MLP((1, 8, 8), hidden=(16,)),
        rk.posteriors.AR1(2),
        rk.priors.StandardNormal(2),
        rk.decoders.Bernoulli(),
    )


def train(out: Path, vae: rk.VAE | None = None, **settings):
    settings = {"epochs": 2, "quiet": True, "batch_size": 32, "valid": X[:32], **settings}
    return rk.fit(vae or build(), X, out=out, **settings)


class Noted(Callback):
    """Takes down what it is called with."""

    def __init__(self) -> None:
        self.lr, self.calls, self.losses = [], [], []

    def on_start(self, state) -> None:
        self.calls.append("start")

    def on_log(self, state) -> None:
        self.calls.append("log")
        self.losses.append(state.loss)
        self.lr.append(state.lr)

    def on_epoch(self, state) -> None:
        self.calls.append(f"epoch {state.epoch}")

    def on_end(self, state) -> None:
        self.calls.append("end")


RESUMED = {
    "adamw, cosine": {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.1},
    "sgd, linear a step": {
        "optimizer": "sgd", "lr": 1e-3, "schedule": "linear", "schedule_every": "step",
    },
    "sgd with momentum": {
        "optimizer": functools.partial(torch.optim.SGD, momentum=0.9), "schedule": "exponential",
    },
    "nadam, one cycle": {"optimizer": "nadam", "schedule": "one-cycle", "schedule_every": "step"},
    "rmsprop, plateau": {"optimizer": "RMSprop", "schedule": "plateau", "lr": 1e-3},
    "adagrad": {"optimizer": "adagrad"},
    "asgd": {"optimizer": "asgd"},
    "a schedule of one's own": {
        "schedule": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1),
    },
    "average": {"average": 0.9},
    "clip and accumulate": {"clip": 0.5, "accumulate": 4},
    "compile": {"compile": True},
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_stopped_between_epochs_resumes_to_the_same_bits(tmp_path, name):
    settings = RESUMED[name]
    # The schedule of a run is that of all its epochs: it is stopped, not made shorter.
    stop = StopAfter(1)
    whole = train(tmp_path / "whole", epochs=3, **settings)
    train(tmp_path / "parts", epochs=3, callbacks=[stop], **settings)
    parts = train(tmp_path / "parts", build(seed=5), epochs=3, resume="auto", **settings)
    assert whole.epochs == parts.epochs and len(parts.seconds) == 2
    for file in ("last.safetensors", "best.safetensors", "model.safetensors"):
        assert same_checkpoint(tmp_path / "whole" / file, tmp_path / "parts" / file), file


class StopAfter(Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch(self, state) -> None:
        if state.epoch >= self.epochs:
            state.stop()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_of_torch_by_its_name_trains_or_says_why_not(tmp_path, name):
    vae = build()
    if name == "muon":
        with pytest.raises(ValueError, match="Muon only supports 2D"):
            train(tmp_path / "run", vae, optimizer=name, epochs=1)
        return
    before = [p.clone() for p in vae.parameters()]
    train(tmp_path / "run", vae, optimizer=name, epochs=1)
    assert all(not torch.equal(p, q) for p, q in zip(before, vae.parameters(), strict=True))


def test_an_optimizer_by_name_is_the_one_of_torch(tmp_path):
    by_name = train(tmp_path / "name", optimizer="rmsprop", weight_decay=0.1)
    by_class = train(tmp_path / "class", optimizer=torch.optim.RMSprop, weight_decay=0.1)
    assert by_name.epochs == by_class.epochs
    described = json.loads((tmp_path / "class" / "run.json").read_text())["optimizer"]
    assert described == "torch.optim.rmsprop.RMSprop"


@pytest.mark.parametrize("every", ["epoch", "step"])
@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_schedule_changes_the_step_size(tmp_path, name, every):
    noted = Noted()
    settings = {"schedule": name, "schedule_every": every, "callbacks": [noted]}
    if (name, every) == ("plateau", "step"):
        with pytest.raises(ValueError, match="'plateau' looks at an epoch's validation"):
            train(tmp_path / "run", **settings)
        return
    if name == "plateau":
        # A model that does not learn stands on a plateau: ten epochs, then a tenth.
        train(tmp_path / "run", epochs=13, optimizer=Frozen, **settings)
        assert noted.lr[0] == 1e-3 and noted.lr[-1] == pytest.approx(1e-4)
        return
    train(tmp_path / "run", epochs=4, **settings)
    assert len(set(noted.lr)) == 4
    assert noted.lr[-1] < max(noted.lr)


class Frozen(torch.optim.SGD):
    def step(self, closure=None):
        pass


def test_a_schedule_over_steps_wants_to_know_how_many_there_are(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(X)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=32)
    with pytest.raises(ValueError, match="does not tell how many it has"):
        rk.fit(
            build(), loader, X, epochs=1, out=tmp_path / "run", quiet=True,
            schedule="cosine", schedule_every="step",
        )  # fmt: skip


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    """The noise of a posterior is drawn batch by batch: σ is next to nothing here."""

    def still() -> rk.VAE:
        vae = build()
        with torch.no_grad():
            vae.posterior.head.bias[2] = -60.0
            vae.posterior.head.weight[2] = 0.0
        return vae

    settings = {"optimizer": "sgd", "lr": 1e-3}
    one = train(tmp_path / "one", still(), batch_size=96, **settings)
    four = train(tmp_path / "four", still(), batch_size=24, accumulate=4, **settings)
    for row, other in zip(one.epochs, four.epochs, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def test_gradients_are_clipped_to_their_norm(tmp_path):
    norms = []

    class Watch(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad for p in self.param_groups[0]["params"]]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))
            return super().step(closure)

    train(tmp_path / "run", optimizer=Watch, clip=0.25, epochs=1)
    assert norms and max(norms) <= 0.25 * (1 + 1e-5)


def test_several_samples_a_datum_lower_the_noise_and_change_no_expectation(tmp_path):
    vae, x = build(), X[:8]
    with torch.no_grad():
        vae.posterior.head.bias[2] = 1.0
    torch.manual_seed(0)
    single = torch.stack([vae(x).loss for _ in range(400)])
    several = torch.stack([vae(x, samples=16).loss for _ in range(100)])
    error = (single.var() / 400 + several.var() / 100).sqrt()
    assert (single.mean() - several.mean()).abs() < 4 * error
    assert several.std() < single.std() / 2
    assert vae(x, samples=16).distortion.shape == (8,)
    assert len(train(tmp_path / "run", samples=3).epochs) == 2


def test_an_objective_that_counts_on_one_sample_refuses_several(tmp_path):
    vae = build()
    vae.objective = rk.objectives.BetaTC(2.0)
    with pytest.raises(ValueError, match="samples is 2; BetaTC"):
        train(tmp_path / "run", vae, samples=2)


def test_the_average_is_what_is_validated_and_saved(tmp_path):
    vae = build()
    history = train(tmp_path / "run", vae, average=0.9, epochs=3)
    last, _ = load_tensors(tmp_path / "run" / "last.safetensors")
    best, _ = load_tensors(tmp_path / "run" / "best.safetensors")
    assert history.column("valid_negative_elbo")[-1] == min(history.column("valid_negative_elbo"))
    for name, x in vae.state_dict().items():
        assert torch.equal(x, best[f"model.{name}"])
        assert torch.equal(x, last[f"average.module.{name}"])
    assert not torch.equal(best["model.posterior.head.bias"], last["model.posterior.head.bias"])


def test_the_average_is_exponential(tmp_path):
    seen = []

    class Take(Callback):
        def on_log(self, state):
            seen.append(
                (
                    state.vae.posterior.head.bias.clone(),
                    state.best_candidate.posterior.head.bias.clone(),
                )
            )

    train(tmp_path / "run", epochs=3, average=0.75, batch_size=192, callbacks=[Take()])
    (w1, a1), (w2, a2), (w3, a3) = seen
    assert torch.equal(w1, a1), "the average begins at the weights of the first step"
    torch.testing.assert_close(a2, 0.75 * a1 + 0.25 * w2)
    torch.testing.assert_close(a3, 0.75 * a2 + 0.25 * w3)


def test_a_run_stops_when_validation_has_not_improved_for_its_patience(tmp_path):
    settings = {"optimizer": Frozen, "patience": 3, "epochs": 20}
    history = train(tmp_path / "run", **settings)
    assert len(history.epochs) == 4
    again = train(tmp_path / "run", resume="auto", **settings)
    assert again.epochs == history.epochs and again.seconds == []


def test_callbacks_are_called_in_order_and_at_the_end_of_a_run_that_breaks_off(tmp_path):
    noted = Noted()
    train(tmp_path / "run", callbacks=[noted])
    assert noted.calls == ["start", "log", "epoch 1", "log", "epoch 2", "end"]

    class Break(Callback):
        def on_epoch(self, state) -> None:
            raise KeyError("mine")

    noted = Noted()
    with pytest.raises(KeyError, match="mine"):
        train(tmp_path / "broken", callbacks=[noted, Break()])
    assert noted.calls == ["start", "log", "epoch 1", "end"]


def test_a_callback_that_cannot_start_leaves_no_run_behind(tmp_path):
    class Broken(Callback):
        def on_start(self, state) -> None:
            raise KeyError("mine")

    noted = Noted()
    with pytest.raises(KeyError, match="mine"):
        train(tmp_path / "run", callbacks=[noted, Broken()])
    assert noted.calls == ["start", "end"]
    assert not (tmp_path / "run").exists()


def test_a_callback_may_stop_a_run(tmp_path):
    assert len(train(tmp_path / "run", epochs=9, callbacks=[StopAfter(2)]).epochs) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, "optimizer is 'adamm'; it must be a factory, or one of .*adamw"),
        ({"schedule": "cosin"}, "schedule is 'cosin'; it must be a factory, or one of cosine"),
        ({"schedule_every": "week"}, "schedule_every is 'week'; it must be 'epoch' or 'step'"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must not be negative"),
        ({"optimizer": "rprop", "weight_decay": 1.0}, "weight_decay is 1.0; Rprop takes none"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive and finite"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        ({"average": 1.0}, "average is 1.0; it must be between 0 and 1"),
        ({"samples": 1.5}, "samples is 1.5; an integer is wanted"),
        ({"workers": -1}, "workers is -1; it must be at least 0"),
        ({"trackers": "blackboard"}, "trackers holds 'blackboard'; there are "),
    ],
)
def test_settings_that_do_not_fit_are_named_and_leave_nothing_behind(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_setting_that_there_is_none_of_lists_those_there_are(tmp_path):
    with pytest.raises(TypeError, match="there is no setting 'momentum'; there are batch_size, lr"):
        train(tmp_path / "run", momentum=0.9)


def test_settings_may_be_given_as_one_object_and_changed(tmp_path):
    how = Settings(optimizer="adamw", lr=0.01, batch_size=32)
    one = train(tmp_path / "one", settings=how, lr=0.02)
    other = train(tmp_path / "other", optimizer="adamw", lr=0.02)
    assert one.epochs == other.epochs


@pytest.mark.parametrize(
    ("first", "then", "named"),
    [
        ({}, {"optimizer": "adamw"}, "optimizer is 'adam', asked for is 'adamw'"),
        ({"clip": 1.0}, {}, "clip is 1.0, asked for is None"),
        ({"average": 0.9}, {"average": 0.99}, "average is 0.9, asked for is 0.99"),
        (
            {"schedule": "cosine"},
            {"schedule": "cosine", "epochs": 3},
            "schedule_epochs is 2, asked for is 3",
        ),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(tmp_path, first, then, named):
    train(tmp_path / "run", **first)
    with pytest.raises(ValueError, match=named):
        train(tmp_path / "run", resume="auto", **then)


def test_losses_and_samples_reach_a_tracker(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = train(tmp_path / "run", trackers="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tracking"), size_guidance={"images": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "lr", "valid/negative_elbo", "epoch"} <= scalars
    logged = [event.value for event in events.Scalars("valid/negative_elbo")]
    assert logged == pytest.approx(history.column("valid_negative_elbo"), rel=1e-6)
    assert len(events.Images("samples")) == 2


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(tmp_path, monkeypatch):
    import accelerate.utils

    monkeypatch.setattr(accelerate.utils, "is_tensorboard_available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"'tensorboard' is not installed; .*pip"):
        train(tmp_path / "run", trackers=["tensorboard"])
    assert not (tmp_path / "run").exists()
