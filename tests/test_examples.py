"""The programs in examples/ run, and say what they say."""

import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
SAYS = {
    "own_array.py": "nll@256",
    "own_dataset.py": "drawn: (4, 1, 16, 16)",
    "own_loop.py": "epoch 10: −ELBO",
    "several_processes.py": "2 processes: test −ELBO",
    "patched_flow.py": "one pass in either direction",
    "sbi_two_moons.py": "one pass in either direction",
}
# Arguments that make an example do less, and what it imports that need not be installed.
ARGUMENTS = {
    "own_dataset.py": ["runs/own-dataset", "2"],
    "sbi_two_moons.py": ["maf_rqs", "200", "500"],
}
PEERS = {"patched_flow.py": "zuko", "sbi_two_moons.py": "sbi"}


def test_every_example_is_run():
    assert sorted(SAYS) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_its_docstring_says(tmp_path, name):
    if name in PEERS:
        pytest.importorskip(PEERS[name], reason=f"{PEERS[name]}, a peer, is not installed")
    file, arguments = ROOT / "examples" / name, ARGUMENTS.get(name, [])
    variables = {"ACCELERATE_USE_CPU": "true"}
    if name == "several_processes.py":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        ended = subprocess.run(
            [*command, "--nproc-per-node", "2", str(file), *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                **variables,
                "PYTHONPATH": str(ROOT),
                "PYTHONIOENCODING": "utf-8",
            },
            capture_output=True,
            timeout=240,
        )
        status, said = ended.returncode, (ended.stdout + ended.stderr).decode("utf-8")
    else:
        code = file.read_text("utf-8")
        status, said = forked.run(code, arguments, tmp_path, **variables)
    assert status == 0, said
    assert SAYS[name] in said
