"""What the package is made of: what a wheel carries, and what its parts import."""

import re
from pathlib import Path

import pytest
from setuptools import find_packages
from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "rhovae_kernels").rglob("*.py"))
SPECIFICATION = sorted((ROOT / "python_ref").glob("*.py"))


def imported(path: Path) -> set[str]:
    """The first names of what a module imports; "" where it is relative."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^\s*(?:from ([\w.]+) import|import ([\w.]+))", text, re.MULTILINE)
    return {(a or b).partition(".")[0] for a, b in found}


def test_a_wheel_has_one_package_at_its_top_and_the_specification_within():
    find = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]
    packages = find_packages(str(ROOT), **find["packages"]["find"])
    assert {name.partition(".")[0] for name in packages} == {"rhovae_kernels"}
    assert "rhovae_kernels.python_ref" in packages


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_takes_the_specification_from_within_the_package(path):
    assert "python_ref" not in imported(path)


@pytest.mark.parametrize("path", SPECIFICATION, ids=lambda path: path.name)
def test_the_specification_imports_nothing_of_the_package(path):
    assert not imported(path) & {"rhovae_kernels", "python_ref"}
