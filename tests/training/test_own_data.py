"""Training on data of one's own, in every form in which people have them."""

import json
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from checkpoints import same_checkpoint
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

import rhovae_kernels as rk

N, SHAPE = 90, (1, 8, 8)


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = rk.data.load("digits").values[:N]
    return (x * 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)


def build(seed: int = 0, **given) -> rk.VAE:
    torch.manual_seed(seed)
    return rk.VAE(
        rk.nets.MLP(SHAPE, hidden=(8,)),
        rk.posteriors.AR1(2),
        rk.priors.StandardNormal(2),
        given.pop("decoder", None) or rk.decoders.Bernoulli(),
        **given,
    )


def train(out: Path, data, vae: rk.VAE | None = None, **settings) -> rk.training.History:
    settings = {"epochs": 2, "quiet": True, **settings}
    return rk.fit(vae or build(), data, out=out, **settings)


class Items(Dataset):
    """Items made by a function of their number."""

    def __init__(self, make, count: int = N) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        return self.make(i)


class Stream(IterableDataset):
    """Data that come one by one, always in the same order."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __iter__(self):
        return iter(self.x)


X = images()

FORMS = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "array of float64": lambda: X.double().numpy(),
    "array that cannot be written to": lambda: np.broadcast_to(X.numpy(), X.shape),
    "tensor of bytes": lambda: images(torch.uint8),
    "Dataset of x": lambda: Items(lambda i: X[i]),
    "Dataset of (x, y)": lambda: TensorDataset(X, torch.arange(N)),
    "Dataset of dictionaries": lambda: Items(lambda i: {"image": X[i], "label": i}),
    "Dataset of arrays": lambda: Items(lambda i: X[i].numpy()),
    "DataLoader": lambda: DataLoader(TensorDataset(X), batch_size=32, shuffle=True),
    "data.Dataset": lambda: rk.data.load("digits", split="valid"),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_data_trains_and_is_measured(tmp_path, form):
    history = train(tmp_path / "run", FORMS[form](), batch_size=None)
    assert set(history.epochs[0]) == {
        "epoch", "train_loss", "valid_loss", "valid_negative_elbo", "valid_distortion", "valid_rate"
    }  # fmt: skip
    assert history.epochs[0]["valid_negative_elbo"] > history.epochs[1]["valid_negative_elbo"]
    result = rk.evaluate(tmp_path / "run", FORMS[form](), ["elbo", "nll@5"], limit=20)
    assert result["count"] == 20 and result["elbo"]["mean"] < 0


def test_bytes_and_their_floats_are_the_same_data(tmp_path):
    one = train(tmp_path / "bytes", images(torch.uint8), valid=images())
    other = train(tmp_path / "floats", images(torch.uint8).float() / 255, valid=images())
    assert one.epochs == other.epochs


def test_a_tensor_and_a_dataset_of_its_rows_give_the_same_run(tmp_path):
    one = train(tmp_path / "tensor", X, valid=X)
    other = train(tmp_path / "items", TensorDataset(X), valid=X)
    assert one.epochs == other.epochs


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_the_same_items(tmp_path, workers):
    alone = train(tmp_path / "alone", TensorDataset(X), valid=X, epochs=1)
    read = train(tmp_path / "read", TensorDataset(X), valid=X, epochs=1, workers=workers)
    assert alone.epochs == read.epochs


def test_what_is_done_to_data_is_said_aloud_and_written_down(tmp_path, capsys):
    data = TensorDataset(images(torch.uint8), torch.arange(N))
    train(tmp_path / "run", data, quiet=False, epochs=1)
    said = capsys.readouterr().out
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    for words in (
        "bytes are pixels: divided by 255",
        "labels are ignored",
        "9 of 90 data, drawn at random",
    ):
        assert words in said
        assert any(words in note for note in notes)


def test_a_fraction_is_held_out_and_shares_nothing_with_the_rest():
    from rhovae_kernels.data.splits import open_splits

    numbers = torch.arange(100.0)[:, None].expand(100, 2)
    splits = open_splits(numbers, valid=0.25, seed=3)
    train_, valid = (set(s.take()[:, 0].tolist()) for s in splits[:2])
    assert len(train_) == 75 and len(valid) == 25 and not train_ & valid
    again = open_splits(numbers, valid=0.25, seed=3)
    assert torch.equal(again.valid.take(), splits.valid.take())
    assert not torch.equal(
        open_splits(numbers, valid=0.25, seed=4).valid.take(), splits.valid.take()
    )


def test_test_data_are_measured_after_each_epoch(tmp_path):
    history = train(tmp_path / "run", X, test=X[:20], epochs=1)
    assert "test_negative_elbo" in history.epochs[0]


NAN = torch.where(torch.arange(N).view(-1, 1, 1, 1) == 3, torch.nan, X)
OTHERS = Items(lambda i: {"a": X[i], "b": X[i]})

WRONG = {
    "another shape": (lambda: X[:, 0], r"tensor holds data of shape \(8, 8\); the model wants"),
    "NaN": (lambda: NAN, "tensor holds a NaN or an infinity, first at 3"),
    "labels": (lambda: torch.arange(N)[:, None], "of type torch.int64: are these labels"),
    "labels first": (lambda: TensorDataset(torch.arange(N), X), "torch.int64: are these labels"),
    "empty tensor": (lambda: X[:0], "holds no data"),
    "empty Dataset": (lambda: TensorDataset(X[:0]), "is empty"),
    "empty DataLoader": (lambda: DataLoader(Stream(X[:0]), batch_size=4), "gives no batch"),
    "outside the support": (lambda: 2 * X - 1, "holds -1 at 0, outside the support of Bernoulli"),
    "a scalar each": (lambda: torch.rand(N), r"of shape \(90,\); it must be of shape \(N"),
    "a mask": (lambda: np.ma.masked_greater(np.eye(3), 0.5), "is masked, and its mask"),
    "a mask in a batch": (
        lambda: DataLoader(X, 8, collate_fn=lambda _: np.ma.masked_greater(X[:8].numpy(), 0.5)),
        "an item is masked, and its mask",
    ),
    "objects": (lambda: np.array([None, "a"]), "is of objects"),
    "a dictionary of others": (lambda: OTHERS, "of 'a', 'b'; its data must be under one of"),
    "no tensors": (lambda: Items(lambda i: "image"), "holds a str where its data should be"),
    "a short set": (lambda: X[:3], "valid is 0.1 of 3 data, which is 0 of them"),
    "a NaN in a Dataset": (lambda: TensorDataset(NAN), "Dataset holds a NaN"),
    "another shape in a Dataset": (lambda: TensorDataset(X[:, 0]), r"holds data of shape \(8, 8\)"),
    "outside, in a DataLoader": (
        lambda: DataLoader(TensorDataset(2 * X - 1), batch_size=8),
        "DataLoader holds -1 at 0, outside the support",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_data_that_do_not_fit_are_refused_before_the_first_step(tmp_path, name):
    make, message = WRONG[name]
    vae = build()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", make(), vae)
    assert not (tmp_path / "run").exists(), "a run was begun"
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([X, X], "data is a list; it must be a tensor"),
        (None, "data is a NoneType"),
        (Stream(X), "an IterableDataset gives items, no batches"),
        (3, "data is a int"),
    ],
    ids=["list", "None", "IterableDataset", "number"],
)
def test_what_is_no_data_is_refused_by_its_kind(tmp_path, data, message):
    with pytest.raises(TypeError, match=message):
        train(tmp_path / "run", data)


def test_a_name_that_is_none_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"name is 'nothing'; it must be one of digits, two-moons"):
        train(tmp_path / "run", "nothing")


def test_a_bad_value_later_in_a_loader_names_the_batch_and_keeps_the_last_epoch(tmp_path):
    good = Items(lambda i: X[i])
    train(tmp_path / "run", good, valid=X, epochs=1)
    good.make = lambda i: X[i] + (i == 80)
    with pytest.raises(ValueError, match=r"a batch of the Dataset holds .*outside the support"):
        train(tmp_path / "run", good, valid=X, epochs=2, resume="auto")
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 1


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    train(tmp_path / "run", X, epochs=1)
    with pytest.raises(ValueError, match=r"data is .*sha256.*; a run is resumed with the settings"):
        train(tmp_path / "run", X.flip(0), resume="auto")


def test_the_data_of_a_run_on_ones_own_are_asked_for(tmp_path):
    train(tmp_path / "run", X, epochs=1)
    with pytest.raises(ValueError, match="data is missing: the run was trained on a tensor"):
        rk.evaluate(tmp_path / "run")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: DataLoader(Stream(X), batch_size=8), "over an iterable data set cannot be split"),
        (
            lambda: DataLoader(
                TensorDataset(X), sampler=WeightedRandomSampler([1.0] * N, N), batch_size=8
            ),
            "over a WeightedRandomSampler cannot be split",
        ),
    ],
    ids=["iterable", "weighted"],
)
def test_a_loader_that_cannot_be_split_asks_for_validation_data(tmp_path, loader, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", loader())
    assert len(train(tmp_path / "run", loader(), valid=X).epochs) == 2


def test_a_loader_gives_the_batch_size(tmp_path):
    train(tmp_path / "run", DataLoader(TensorDataset(X), batch_size=7), epochs=1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["batch_size"] == 7
    with pytest.raises(ValueError, match="batch_size is 9; the DataLoader gives batches of 7"):
        train(tmp_path / "other", DataLoader(TensorDataset(X), batch_size=7), batch_size=9)


def test_an_iterable_loader_is_one_epoch_long_and_says_what_resuming_takes(tmp_path, capsys):
    seen = []
    vae = build()
    vae.register_forward_pre_hook(lambda m, i: seen.append(len(i[0])) if m.training else None)
    loader = DataLoader(Stream(X), batch_size=40)
    train(tmp_path / "run", loader, vae, valid=X, quiet=False)
    assert seen == [40, 40, 10] * 2
    assert "every pass over it must give the same data" in capsys.readouterr().out


def test_an_objective_that_weighs_by_the_number_of_data_asks_for_it(tmp_path):
    vae = build(objective=rk.objectives.WarmUp(rk.objectives.BetaTC(2.0), 10))
    with pytest.raises(ValueError, match="weighs by the number of data, which the DataLoader does"):
        train(tmp_path / "run", DataLoader(Stream(X), batch_size=40), vae, valid=X)


def test_pixels_of_ones_own_are_binarized(tmp_path):
    seen = []
    vae = build()
    vae.register_forward_pre_hook(lambda m, i: seen.append(i[0]) if m.training else None)
    train(tmp_path / "run", X, vae, binarize="dynamic")
    assert all(((x == 0) | (x == 1)).all() for x in seen)


@pytest.mark.parametrize(("data", "label"), [(X, "grey"), ((X > 0.5).float(), "binary")])
def test_results_are_labelled_by_what_the_values_are(data, label):
    assert rk.evaluate(build(), data, ["elbo"])["label"] == label


def test_a_run_is_not_resumed_without_the_data_it_was_tested_on(tmp_path):
    train(tmp_path / "run", X, valid=X, test=X[:20], epochs=1)
    with pytest.raises(ValueError, match=r"test is \{.*, asked for is None"):
        train(tmp_path / "run", X, valid=X, resume="auto")


def test_what_is_done_to_data_that_are_measured_is_in_the_result():
    result = rk.evaluate(build(), images(torch.uint8), ["elbo"])
    assert result["notes"] == ["bytes are pixels: divided by 255"]
    assert "notes" not in rk.evaluate(build(), X, ["elbo"])


def test_a_result_says_which_split_of_a_file_it_is_of(tmp_path):
    np.savez(tmp_path / "mine.npz", x_train=X.numpy(), x_test=X[:30].numpy())
    np.save(tmp_path / "mine.npy", X.numpy())
    results = [rk.evaluate(build(), tmp_path / f"mine.{end}", ["elbo"]) for end in ("npz", "npy")]
    assert [(r["split"], r["count"]) for r in results] == [("test", 30), ("train", 90)]


KILLED = """
import os, random, signal, sys, time
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
import rhovae_kernels as rk

folder, kind = sys.argv[1:]
torch.set_num_threads(1)
x = rk.data.load("digits").values[:320]

class Stream(IterableDataset):
    def __iter__(self):
        return iter(x)

class Augmented(TensorDataset):
    def __getitem__(self, i):
        return (x[i] + 0.01 * torch.rand(x[i].shape)).clamp(max=1), 0

def loader():
    if kind == "iterable":
        return DataLoader(Stream(), batch_size=32)
    if kind == "generator":
        g = torch.Generator().manual_seed(7)
        return DataLoader(Augmented(x), batch_size=32, shuffle=True, generator=g)
    workers = 2 if kind == "workers" else 0
    return DataLoader(Augmented(x), batch_size=32, shuffle=True, num_workers=workers)

def train(name):
    out = os.path.join(folder, name)
    torch.manual_seed(0)
    vae = rk.VAE(rk.nets.MLP((1, 8, 8), hidden=(16,)), rk.posteriors.AR1(2),
                 rk.priors.StandardNormal(2), rk.decoders.Bernoulli())
    rk.fit(vae, loader(), valid=x[:64], epochs=EPOCHS, out=out, resume="auto", quiet=True,
           optimizer="adamw", weight_decay=0.01, lr=0.02, schedule="plateau", average=0.95,
           clip=10.0, accumulate=2, patience=25)

EPOCHS, moments = 50, random.Random(len(kind))

def changed(name):
    path = os.path.join(folder, "killed", name)
    return os.stat(path).st_mtime_ns if os.path.exists(path) else None

def forked(name):
    child = os.fork()
    if child == 0:
        # A group of its own: the loader's workers, which may outlive it, are killed with it.
        os.setpgid(0, 0)
        train(name)
        os._exit(0)
    os.setpgid(child, child)
    return child

if os.waitpid(forked("whole"), 0)[1]:
    sys.exit("the run that is not killed failed")
for _ in range(10):
    # Soon after the run was opened, or after an epoch was saved: in the midst of the next one.
    event = moments.choice(["run.json", "history.json"])
    before = changed(event)
    child = forked("killed")
    while changed(event) == before:
        time.sleep(0.001)
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("a run had ended before it was killed")
    time.sleep((0.1 if kind == "workers" else 0.03) * moments.random())
    os.killpg(child, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        sys.exit("a run had ended before it was killed")
train("killed")
"""


@pytest.mark.parametrize("kind", ["shuffled", "generator", "iterable", "workers"])
def test_a_run_killed_ten_times_at_random_moments_ends_with_the_bits_of_one_never_killed(
    tmp_path, kind
):
    status, said = forked.run(KILLED, [tmp_path, kind], tmp_path)
    assert status == 0, said
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (whole / "history.json").read_bytes() == (killed / "history.json").read_bytes()
    for name in ("last.safetensors", "best.safetensors", "model.safetensors"):
        assert same_checkpoint(whole / name, killed / name), name
