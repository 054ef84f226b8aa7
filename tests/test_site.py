"""What the checker of the documentation site finds."""

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / "tools" / "site" / "check.py"
SPEC = importlib.util.spec_from_file_location("check_site", PATH)
assert SPEC is not None and SPEC.loader is not None
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

WHOLE = '<h1 id="start">Start</h1><a href="#start">up</a><img src="a.png" alt="a">'
INDEXED = ("index.html", "index.html#start")


def site(folder: Path, body: str = WHOLE, indexed=INDEXED) -> Path:
    (folder / "search").mkdir()
    (folder / "a.png").touch()
    (folder / "index.html").write_text(body)
    entries = {"docs": [{"location": location} for location in indexed]}
    (folder / "search" / "search_index.json").write_text(json.dumps(entries))
    return folder


def test_nothing_is_wrong_with_a_whole_site(tmp_path):
    assert check.faults_of(site(tmp_path)) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('<a href="gone.html">', "gone.html leads to no file"),
        ('<a href="#gone">', "#gone leads to no anchor"),
        ('<img src="gone.png" alt="b">', "gone.png leads to no file"),
        ('<img src="a.png">', "a.png has no alternative text"),
        ('<script src="https://example.org/a.js"></script>', "loaded from the network"),
        ('<link rel="stylesheet" href="//example.org/a.css">', "loaded from the network"),
        ("<p>$$ x $$</p>", "a formula is not rendered"),
        (r'<span class="arithmatex">\(x\)</span>', "a formula is not rendered"),
        ("<p>&gt;&gt;&gt; 1 + 1</p>", "an example is no block of code"),
    ],
    ids=[
        "file",
        "anchor",
        "picture",
        "picture without words",
        "script",
        "style",
        "display formula",
        "inline formula",
        "doctest",
    ],
)
def test_a_fault_of_a_page_is_named(added, fault, tmp_path):
    assert any(fault in found for found in check.faults_of(site(tmp_path, WHOLE + added)))


@pytest.mark.parametrize(
    ("indexed", "fault"),
    [
        ((), "index.html is not in the index"),
        ((*INDEXED, "gone.html"), "gone.html leads to no page"),
        ((*INDEXED, "index.html#gone"), "index.html#gone leads to no anchor"),
    ],
    ids=["missing page", "page", "anchor"],
)
def test_a_fault_of_the_search_index_is_named(indexed, fault, tmp_path):
    assert f"search: {fault}" in check.faults_of(site(tmp_path, indexed=indexed))


def test_what_stands_in_code_is_no_fault(tmp_path):
    body = WHOLE + "<code>echo $$ &gt;&gt;&gt;</code>"
    assert check.faults_of(site(tmp_path, body)) == []


def test_the_command_fails_where_there_is_a_fault(tmp_path, capsys):
    assert check.main(site(tmp_path, WHOLE + '<a href="gone.html">')) == 1
    assert "gone.html leads to no file" in capsys.readouterr().out
