"""Runs of several processes."""

import json
import signal
import socket
from pathlib import Path

import pytest
from forked import Program

from rhovae_kernels.training import Checkpoint

MODEL = """
import os, signal, sys
import torch
import rhovae_kernels as rk

class Still(rk.posteriors.Diagonal):
    # Noise that the datum decides: whatever process draws it, it is the same.
    def rsample_and_kl(self, h, prior):
        q = self(h)
        eps = 2 * torch.sin(1000 * h[:, : self.latent].detach())
        z = q.base_dist.loc + q.base_dist.scale * eps
        return z, torch.distributions.kl_divergence(q, prior())

def build(posterior):
    torch.manual_seed(0)
    return rk.VAE(rk.nets.MLP((1, 8, 8), hidden=(16,)), posterior(2),
                  rk.priors.StandardNormal(2), rk.decoders.Bernoulli())
"""
SETTINGS = {"epochs": 2, "batch_size": 157, "quiet": True}

DRAWN = (
    MODEL
    + f"""
rk.fit(build(rk.posteriors.AR1), "digits", out=sys.argv[1], **{SETTINGS})
"""
)
INJECTED = (
    MODEL
    + f"""
rk.fit(build(Still), "digits", out=sys.argv[1], clip=5.0, accumulate=2, average=0.9,
       optimizer="adamw", schedule="cosine", **{SETTINGS})
"""
)
LOADED = (
    MODEL
    + """
from torch.utils.data import DataLoader, TensorDataset
x = rk.data.load("digits").values
loader = DataLoader(TensorDataset(x), batch_size=157, shuffle=True, num_workers=2)
rk.fit(build(Still), loader, out=sys.argv[1], epochs=2, quiet=True)
"""
)
KILLED = (
    MODEL
    + """
vae, steps = build(Still), 0

def count(module, inputs):
    global steps
    steps += module.training
    if steps == 18 and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)

vae.register_forward_pre_hook(count)
rk.fit(vae, "digits", epochs=3, out=sys.argv[1], batch_size=157, quiet=True, resume="auto")
"""
)


def run(tmp_path: Path, code: str, name: str, processes: int) -> list[tuple[int, str]]:
    """Exit status of each process and what it said, started as `torchrun` does, but not watched."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    variables = {"ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        variables |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in map(str, range(processes)):
        ranks = {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        said = tmp_path / f"{name} {rank}"
        started.append(Program(code, [tmp_path / name], tmp_path, said, **variables, **ranks))
    return [program.wait() for program in started]


def finished(tmp_path: Path, code: str, name: str, processes: int) -> list[dict[str, float]]:
    """The history of a run that went through."""
    for status, said in run(tmp_path, code, name, processes):
        assert status == 0, said
    return history(tmp_path / name)


def history(path: Path) -> list[dict[str, float]]:
    return json.loads((path / "history.json").read_text())


def test_there_are_two_processes(tmp_path):
    code = "import accelerate, sys; sys.exit(accelerate.Accelerator().num_processes)"
    assert [status for status, _ in run(tmp_path, code, "none", 2)] == [2, 2]


def test_two_processes_that_draw_their_own_noise_train_one_run_as_well_as_one_does(tmp_path):
    two, one = (finished(tmp_path, DRAWN, str(n), n)[-1] for n in (2, 1))
    # 1257 images in batches of 157: the last holds one image, of which one process has none.
    # The processes draw their samples from streams of their own, so nats differ by noise alone.
    assert two["test_negative_elbo"] == pytest.approx(one["test_negative_elbo"], rel=0.02)


@pytest.mark.parametrize("code", [INJECTED, LOADED], ids=["named set", "DataLoader"])
def test_two_processes_given_the_same_noise_give_the_history_of_one(tmp_path, code):
    for two, one in zip(*(finished(tmp_path, code, str(n), n) for n in (2, 1)), strict=True):
        # float32: sums of other orders, carried through Adam for two epochs.
        assert two == pytest.approx(one, rel=2e-5)


def test_a_process_that_is_killed_ends_the_run_with_its_last_epoch_whole(tmp_path):
    """Of nine batches an epoch, process 1 is killed at the last of the second."""
    (status, said), (killed, _) = run(tmp_path, KILLED, "run", 2)
    assert killed == -signal.SIGKILL
    # (PyTorch's own teardown may abort the process, once it has said why it ends.)
    assert status != 0, said
    assert "RuntimeError: another process of this run is gone" in said
    assert "resume='auto' goes on from there" in said
    kept = Checkpoint.load(tmp_path / "run" / "last.safetensors")
    assert len(kept.history) == 1 and all(x.isfinite().all() for x in kept.model.values())
    code = KILLED.replace("steps == 18", "False")
    assert finished(tmp_path, code, "run", 2) == finished(tmp_path, code, "whole", 2)
