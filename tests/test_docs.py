"""What the documentation shows runs, and prints what it says."""

import doctest
import importlib
import pkgutil
import re
import types
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


def described(namespace: str) -> list[object]:
    """What a page of the API describes."""
    text = PAGES[f"docs/api/{namespace}.md"].read_text("utf-8")
    return [pkgutil.resolve_name(path) for path in re.findall(r"(?m)^::: (\S+)$", text)]


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
            ("linear_scan_backward", lambda x, row, k: (x, row, x, None, False, scanned)),
        ),
        "`linear_scan`, a gate for each element": (
            ("linear_scan", lambda x, row, k: (x, x)),
            ("linear_scan_backward", lambda x, row, k: (x, x, x, None, False, scanned)),
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
