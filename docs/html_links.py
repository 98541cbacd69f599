"""A Sphinx extension: every link within the built pages leads to a page, file and anchor.

Sphinx warns of references that it resolves itself. This looks at the result instead: links of any
spelling, anchors of headings, images. Links to other sites are not followed, only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ADDRESSES = {"a": "href", "img": "src", "link": "href", "script": "src"}


class Page(HTMLParser):
    """The anchors of a page, and what it links to.

    Args:
        text: Its HTML.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchor and the link of a tag."""
        found = dict(attrs)
        self.anchors |= {a for a in (found.get("id"), found.get("name")) if a}
        address = found.get(ADDRESSES.get(tag, ""))
        if address:
            self.links.append(address)


def broken_links(pages: Mapping[Path, str]) -> Iterator[str]:
    """Yield ``page: link (what is wrong)`` for the links that lead nowhere.

    Args:
        pages: The HTML of each page, by its file.
    """
    read = {path.resolve(): Page(text) for path, text in pages.items()}
    for path, page in read.items():
        for link in page.links:
            wrong = _what_is_wrong(link, path, read)
            if wrong:
                yield f"{path.name}: {link} ({wrong})"


def _what_is_wrong(link: str, path: Path, read: Mapping[Path, Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        odd = parts.scheme in ("http", "https") and "." not in parts.netloc
        return "no host" if odd else None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in read and anchor not in read[target].anchors:
        return "no such anchor"
    return None


def check(app: Sphinx, error: Exception | None) -> None:
    """Fail the build where a link of a page leads nowhere."""
    if error is not None or app.builder.name != "html":
        return
    from sphinx.errors import SphinxError  # noqa: PLC0415

    files = [Path(app.outdir, f"{name}.html") for name in sorted(app.env.found_docs)]
    broken = list(broken_links({file: file.read_text() for file in files}))
    if broken:
        raise SphinxError("links that lead nowhere:\n" + "\n".join(broken))


def setup(app: Sphinx) -> dict[str, bool]:
    """Join Sphinx's run, which may read and write pages in several processes."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
