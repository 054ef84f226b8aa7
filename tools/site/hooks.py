"""What mkdocs does to the pages of docs/ besides: formulas become MathML, links out of docs/ turn.

Pages are read on the site and in the repository alike. Where a page links to a file of the
repository outside docs/, the site holds that file under `repository/`, and its link goes there.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository"

IN_NAVIGATION = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Files outside docs/ that are pages of the site."""

LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</(?:span|div)>', re.DOTALL
)
# A function's name and what it is of, where no bracket stands between.
APPLIED = re.compile(r"(<mi>[a-z]{3,}</mi>|<mo>(?:sech|diag)</mo>)(?=<m(?:i|n|sub|sup|subsup)>)")


def outside(page: str, link: str) -> str | None:
    """The file of the repository, outside docs/, that a page of docs/ links to, or None."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    if target.startswith(("docs/", "..")) or not (ROOT / target).is_file():
        return None
    return target


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to."""
    targets = {*IN_NAVIGATION}
    for file in files.documentation_pages():
        found = (outside(file.src_uri, link) for link in LINK.findall(file.content_string))
        targets |= {target for target in found if target is not None}
    for target in sorted(targets):
        source = str(ROOT / target)
        files.append(File.generated(config, f"{FOLDER}/{target}", abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn the links that go out of docs/."""
    here = page.file.src_uri
    if here.startswith(f"{FOLDER}/"):
        return markdown

    def turned(match: re.Match[str]) -> str:
        target = outside(here, match[1])
        if target is None:
            return match[1]
        return posixpath.relpath(f"{FOLDER}/{target}", posixpath.dirname(here) or ".")

    return LINK.sub(turned, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Render the formulas."""

    def rendered(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        formula = convert(html.unescape(match[2]).strip(), display=display)
        formula = formula.replace("<mo>&#x0007C;</mo>", '<mo lspace="0" rspace="0">|</mo>')
        return APPLIED.sub(r'\1<mspace width="0.17em"/>', formula)

    return FORMULA.sub(rendered, content)
