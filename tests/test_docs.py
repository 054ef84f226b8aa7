"""What the documentation shows runs, and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import python_ref
import rhovae_kernels

ROOT = Path(__file__).resolve().parent.parent


def modules():
    for package in (python_ref, rhovae_kernels):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            # Triton's kernels are not examples; the compiled module has none.
            if ".triton" not in module.name and not module.name.endswith("._C"):
                yield module.name


@pytest.mark.parametrize("name", list(modules()))
def test_examples_in_docstrings_print_what_they_say(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert result.failed == 0


def test_every_public_op_has_an_example_and_says_what_it_raises():
    for name in rhovae_kernels.ops.__all__:
        documentation = getattr(rhovae_kernels.ops, name).__doc__
        for heading in ("Args:", "Returns:", "Raises:", "Source:", "Example:"):
            assert heading in documentation, f"{name} lacks {heading}"


def test_the_python_of_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_every_file_that_the_readme_links_to_is_there():
    text = (ROOT / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
