"""What the documentation shows runs, and prints what it says."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import rhovae_kernels
from rhovae_kernels.ops.cost import Cost, cost

ROOT = Path(__file__).resolve().parent.parent


def modules():
    for module in pkgutil.walk_packages(rhovae_kernels.__path__, "rhovae_kernels."):
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


PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page].read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)])
def test_the_python_of_a_page_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in python_of(page):
        exec(compile(block, page, "exec"), namespace)


def test_the_model_of_pyro_that_a_page_shows_runs():
    pyro = pytest.importorskip("pyro", reason="pyro, a peer, is not installed")
    text = PAGES["docs/posteriors.md"].read_text("utf-8")
    (block,) = re.findall(r"```\n(import pyro\n.*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    namespace: dict = {}
    exec(compile(block, "docs/posteriors.md", "exec"), namespace)
    pyro.clear_param_store()
    assert sum(namespace["losses"][-50:]) < sum(namespace["losses"][:50])
    assert namespace["rho"] > 0.5


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page):
    text = PAGES[page].read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (PAGES[page].parent / target).exists(), target


EXPLAINED = "gaussians", "flows"

# The modules among the public names.
NAMESPACES = {
    name: module
    for name in rhovae_kernels.__all__
    if isinstance(module := getattr(rhovae_kernels, name), types.ModuleType)
}


def paths_on(page: str) -> list[str]:
    """The paths of what a page of the API describes."""
    return re.findall(r"(?m)^::: (\S+)$", PAGES[page].read_text("utf-8"))


def described(namespace: str) -> list[object]:
    """What a page of the API describes."""
    return [pkgutil.resolve_name(path) for path in paths_on(f"docs/api/{namespace}.md")]


def public_names(module: types.ModuleType) -> list[str]:
    """Its `__all__`, or, where it has none, what is defined in it."""
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    return getattr(module, "__all__", own)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_api_describes_every_public_name_of(namespace):
    module, found = NAMESPACES[namespace], described(namespace)
    missing = [name for name in public_names(module) if not _is_in(getattr(module, name), found)]
    assert not missing, f"docs/api/{namespace}.md lacks {missing}"


def test_the_api_describes_every_public_name_of_the_package():
    pages = [
        page.removeprefix("docs/api/").removesuffix(".md") for page in PAGES if "/api/" in page
    ]
    found = [value for page in pages for value in described(page)]
    names = [name for name in rhovae_kernels.__all__ if name not in NAMESPACES]
    missing = [name for name in names if not _is_in(getattr(rhovae_kernels, name), found)]
    assert not missing


def _is_in(value: object, found: list[object]) -> bool:
    return any(value is each for each in found)


# What the pages of the API describe, by its path.
DESCRIBED = {
    path: pkgutil.resolve_name(path) for page in PAGES if "/api/" in page for path in paths_on(page)
}
CALLED = [path for path, value in DESCRIBED.items() if callable(value)]
CLASSES = [path for path, value in DESCRIBED.items() if inspect.isclass(value)]
MEMBERS = types.FunctionType | classmethod | staticmethod | property | cached_property


def docstring(path: str) -> str:
    """Its own, none that it inherits; of a constant, the string that follows it."""
    value = DESCRIBED[path]
    if path in CALLED:
        return inspect.cleandoc(value.__doc__ or "")
    return next(strings_after(path.rpartition(".")[2], value), "")


def strings_after(name: str, value: object) -> Iterator[str]:
    """What follows the assignments of a constant, wherever in the package it is made."""
    for module in [sys.modules[each] for each in sys.modules if each.startswith("rhovae_kernels.")]:
        if vars(module).get(name) is not value:
            continue
        body = ast.parse(inspect.getsource(module)).body
        for statement, after in pairwise(body):
            match statement, after:
                case (
                    ast.Assign(targets=[ast.Name(id=assigned)])
                    | ast.AnnAssign(target=ast.Name(id=assigned)),
                    ast.Expr(value=ast.Constant(value=str() as text)),
                ) if assigned == name:
                    yield text


def described_parameters(documentation: str) -> set[str]:
    """What the sections Args and Attributes of a docstring name: `a, b: what they are`."""
    sections = re.findall(r"(?m)^(?:Args|Attributes):\n((?:(?: .*)?\n)+)", documentation + "\n")
    entries = re.findall(r"(?m)^ {4}(\w+(?:, \w+)*):", "".join(sections))
    return {name for entry in entries for name in entry.split(", ")}


def parameters(value: object) -> list[str]:
    """What it takes, but for `*args, **kwargs`, which hand on what another signature names."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return []  # what a dictionary takes, or an exception of Python's
    return [name for name in signature.parameters if name not in ("args", "kwargs")]


@pytest.mark.parametrize("path", DESCRIBED)
def test_a_public_name_has_a_docstring(path):
    assert docstring(path)


@pytest.mark.parametrize("path", CALLED)
def test_every_parameter_of_a_public_name_is_described(path):
    described = described_parameters(docstring(path))
    assert not [name for name in parameters(DESCRIBED[path]) if name not in described]


@pytest.mark.parametrize("path", CALLED)
def test_a_public_name_that_is_called_has_an_example(path):
    assert re.search(r"(?m)^Example:\n(?: {4}.*\n)* {4}>>> ", docstring(path))


@pytest.mark.parametrize("path", CLASSES)
def test_every_public_method_and_property_has_a_docstring(path):
    own = [
        name
        for name, member in vars(DESCRIBED[path]).items()
        if isinstance(member, MEMBERS) and not name.startswith("_")
    ]
    assert not [name for name in own if not inspect.getdoc(getattr(DESCRIBED[path], name))]


def test_every_public_op_is_in_the_table_of_ops_and_explained():
    table = PAGES["docs/how/index.md"].read_text("utf-8")
    sections = "".join(PAGES[f"docs/how/{page}.md"].read_text("utf-8") for page in EXPLAINED)
    for name in rhovae_kernels.ops.__all__:
        assert f"| `{name}(" in table, name
        assert f"\n## {name}\n" in sections, name


def growth(op: str, arguments) -> Cost:
    """What an op costs for each element more in its rows: bytes, in units of float32."""

    def of(d: int) -> Cost:
        x, row = torch.empty(1, d, device="meta"), torch.empty(1, 1, device="meta")
        return cost(op, *arguments(x, row, row[:, 0]))

    read, written, flops = (b - a for a, b in zip(of(1000), of(2000), strict=True))
    return Cost(read // 4000, written // 4000, flops / 1000)


def test_the_table_of_what_an_op_moves_is_the_models():
    state = torch.empty(2, dtype=torch.int64, device="meta")
    one, three, scanned = (True,), (True, True, True), (True, True, False)

    def coupling(inverse: bool, bound: str):
        op = "affine_coupling"
        return (
            (op, lambda x, row, k: (x, x, x, mask(x), inverse, bound)),
            (f"{op}_backward", lambda x, row, k: (x, k, x, x, x, mask(x), inverse, bound, three)),
        )

    def mask(x):
        # A byte for all rows: no tensor as long as one.
        return torch.empty(x.shape[-1], dtype=torch.bool, device="meta")

    couplings = {
        "forward": (False, "none"),
        "forward, tanh": (False, "tanh"),
        "inverse": (True, "none"),
        "inverse, tanh": (True, "tanh"),
    }
    calls = {
        "`linear_scan`, a gate for each row": (
            ("linear_scan", lambda x, row, k: (row, x)),
            ("linear_scan_backward", lambda x, row, k: (x, row, x, None, False, False, scanned)),
        ),
        "`linear_scan`, a gate for each element": (
            ("linear_scan", lambda x, row, k: (x, x)),
            ("linear_scan_backward", lambda x, row, k: (x, x, x, None, False, False, scanned)),
        ),
        "`ar1_reparam`, s·R": (
            ("ar1_reparam", lambda x, row, k: (x, row, row, x)),
            ("ar1_reparam_backward", lambda x, row, k: (x, k, x, row, row, x, (*three, False))),
        ),
        "`ar1_reparam`, s·R, with ∂ε": (
            ("ar1_reparam", lambda x, row, k: (x, row, row, x)),
            ("ar1_reparam_backward", lambda x, row, k: (x, k, x, row, row, x, (*three, True))),
        ),
        "`ar1_reparam`, D·R·D": (
            ("ar1_reparam", lambda x, row, k: (x, x, row, x)),
            ("ar1_reparam_backward", lambda x, row, k: (x, k, x, x, row, x, (*three, False))),
        ),
        "`ar1_reparam_rng`, s·R": (
            ("ar1_reparam_rng", lambda x, row, k: (x, row, row, state)),
            ("ar1_reparam_rng_backward", lambda x, row, k: (x, k, x, row, row, state, three)),
        ),
        "`ar1_log_prob`, s·R": (
            ("ar1_log_prob", lambda x, row, k: (x, x, row, row)),
            ("ar1_log_prob_backward", lambda x, row, k: (k, x, x, row, row, one * 4)),
        ),
        "`iaf_gate`": (
            ("iaf_gate", lambda x, row, k: (x, x, x)),
            ("iaf_gate_backward", lambda x, row, k: (x, k, x, x, x, three)),
        ),
        **{f"`affine_coupling`, {name}": coupling(*which) for name, which in couplings.items()},
    }
    lines = []
    for name, directions in calls.items():
        cells = [name]
        for op, arguments in directions:
            c = growth(op, arguments)
            cells += [f"{c.bytes_read} + {c.bytes_written}", f"{c.flops:g}"]
        lines.append(f"| {' | '.join(cells)} |")
    text = PAGES["docs/how/index.md"].read_text("utf-8")
    kept = re.search(r"\| op \| forward \|.*\n\|[-|:]+\n((?:\|.*\n)+)", text)
    assert kept and kept[1].splitlines() == lines, "the table is\n" + "\n".join(lines)
