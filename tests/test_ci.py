"""The files that run the checks: continuous integration, and git's hooks before a commit."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
JOBS = {
    f"{path.name} {name}": job
    for path in WORKFLOWS
    for name, job in yaml.safe_load(path.read_text("utf-8"))["jobs"].items()
}


def made_by(commands: str) -> list[str]:
    """The targets that these shell commands have `make` make."""
    return re.findall(r"^ *make +([\w-]+)", commands, re.MULTILINE)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_job_makes_one_target_that_the_makefile_has(job):
    # What runs only where the target failed shows why.
    runs = [step["run"] for step in job["steps"] if "run" in step and "if" not in step]
    assert len(runs) == 1
    assert [runs[0]] == [f"make {target}" for target in made_by(runs[0])]
    assert set(made_by(runs[0])) <= TARGETS


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_job_works_on_the_commit_and_with_a_python_that_it_names(job):
    used = {step["uses"].split("@")[0]: step.get("with") for step in job["steps"] if "uses" in step}
    assert {"actions/checkout", "actions/setup-python"} <= set(used)
    named = used["actions/setup-python"]["python-version"]
    versions = job["strategy"]["matrix"]["python"] if "matrix" in str(named) else [named]
    # Unquoted, 3.10 is the number 3.1.
    assert all(re.fullmatch(r"3\.\d+", version) for version in versions)


def test_the_script_of_what_must_pass_makes_targets_that_the_makefile_has():
    made = made_by((ROOT / ".ci" / "run").read_text("utf-8"))
    assert {"check", "test", "gates"} <= set(made) <= TARGETS


def test_every_target_is_declared_to_be_no_file():
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(declared[1].split()) == TARGETS


def test_the_oldest_and_the_newest_torch_of_the_matrix_are_those_of_make_compat():
    promised = re.search(r"^COMPAT \?= (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    matrix = JOBS["ci.yml test"]["strategy"]["matrix"]["torch"]
    assert promised[1].split() == [matrix[0], matrix[-1]]


def test_hooks_before_a_commit_call_the_tools_of_make_check():
    configured = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    (local,) = configured["repos"]
    called = [hook["entry"].split()[0] for hook in local["hooks"]]
    assert local["repo"] == "local"
    assert called == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
    assert all(hook["language"] == "system" for hook in local["hooks"])
