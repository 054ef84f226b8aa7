"""Checks the site as it was built: links, anchors, pictures, formulas, the search index.

    python tools/site/check.py build/site

Prints what is wrong, a line each, and exits with status 1 if anything is.
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}
"""What a browser loads with a page, and the attribute that says from where."""

NOT_LOADED = {"canonical", "prev", "next", "edit"}
"""The relations of a <link> that are links alone."""


class Page(HTMLParser):
    """The links, anchors and text of a page of HTML.

    Attributes:
        ids: its anchors.
        links: where its <a> lead.
        loaded: what comes with it.
        formulas: how many it holds.
        faults: what is wrong in itself.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.formulas = 0
        self.faults: list[str] = []
        self._code = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value or "" for name, value in attrs}
        if "id" in of:
            self.ids.add(of["id"])
        if tag == "a" and "href" in of:
            self.links.append(of["href"])
        if tag in LOADED and of.get(LOADED[tag]) and of.get("rel") not in NOT_LOADED:
            self.loaded.append(of[LOADED[tag]])
        if tag == "img" and not of.get("alt"):
            self.faults.append(f"the picture {of.get('src')} has no alternative text")
        if tag == "math":
            self.formulas += 1
        if tag == "merror" or "arithmatex" in of.get("class", ""):
            self.faults.append("a formula is not rendered")
        self._code += tag in ("code", "script", "style", "math")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "script", "style", "math")

    def handle_data(self, data: str) -> None:
        if not self._code and re.search(r"\$\$|\\[(\[a-z]", data):
            self.faults.append(f"a formula is not rendered: {data.strip()[:60]}")
        if not self._code and ">>>" in data:
            self.faults.append(f"an example is no block of code: {data.strip()[:60]}")


def target_of(page: Path, address: str) -> tuple[Path, str]:
    """The file and the anchor that a relative address leads to."""
    parts = urlsplit(address)
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
    return path / "index.html" if path.is_dir() else path, unquote(parts.fragment)


def faults_of(site: Path) -> list[str]:
    """Everything that is wrong with the site, a line each."""
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    # Its addresses are absolute: it is shown in the place of any page.
    pages.pop(site.resolve() / "404.html", None)
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: {fault}" for fault in page.faults]
        found += [
            f"{name}: {address} is loaded from the network"
            for address in page.loaded
            if urlsplit(address).scheme not in ("", "data") or address.startswith("//")
        ]
        for address in page.links + page.loaded:
            if urlsplit(address).scheme:
                continue
            target, anchor = target_of(path, address)
            if not target.is_file():
                found.append(f"{name}: {address} leads to no file")
            elif anchor and target in pages and anchor not in pages[target].ids | {"__skip"}:
                found.append(f"{name}: {address} leads to no anchor")
    return found + faults_of_search(site, pages)


def faults_of_search(site: Path, pages: dict[Path, Page]) -> list[str]:
    """What is wrong with the search index: what leads nowhere, and pages that are not in it."""
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    found, seen = [], set()
    for entry in index["docs"]:
        target, anchor = target_of(site / "index.html", entry["location"])
        if target not in pages:
            found.append(f"search: {entry['location']} leads to no page")
        elif anchor and anchor not in pages[target].ids:
            found.append(f"search: {entry['location']} leads to no anchor")
        seen.add(target)
    missing = sorted(set(pages) - seen)
    return found + [f"search: {path.name} is not in the index" for path in missing]


def main(site: Path) -> int:
    found = faults_of(site)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
