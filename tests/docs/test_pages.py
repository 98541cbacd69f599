"""What README and pages refer to is there: files, headings, names of ours."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
FILES = sorted([*(ROOT / name for name in NAMED), *(ROOT / "docs").rglob("*.md")])
# The changelog names what earlier versions had too.
PRESENT = [path for path in FILES if path.name != "CHANGELOG.md"]
# Names that look like modules of ours and are none: the group of entry points.
NOT_MODULES = {"metaweight.hypergradients"}
# Their packages may be missing; test_integrations.py runs what the page shows of them.
DOORS = {f"metaweight.integrations.{name}" for name in ("huggingface", "trl", "lightning")}
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: +(\S+)|(?:href|src)=\"([^\"]+)\"", re.MULTILINE)
FENCED = re.compile(r"^(`{3,}|:{3,}).*?^\1", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^```\{(?:literalinclude|image|figure)\} +(\S+)", re.MULTILINE)
FILE = re.compile(r"\b(?:examples|benchmarks|docs|tests)/[\w/]+\.(?:py|md)\b")
NAME = re.compile(r"\bmetaweight(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(r"^ *from metaweight[\w.]* import (?:\([^)]*\)|[^\n(]+)", re.MULTILINE)
# MyST gives no anchor to a heading of a fourth level.
HEADING = re.compile(r"^#{1,3} +(.+)$", re.MULTILINE)
# Markdown ends a paragraph at a line that begins with a comment; a table is a block of its own.
BROKEN = re.compile(r"^ *<!-- (?!end)[^\n]*?-->[^\n]+$", re.MULTILINE)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchor(heading: str) -> str:
    """Return how GitHub and MyST call a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(text: str) -> set[str]:
    found: list[str] = []
    for heading in map(anchor, HEADING.findall(FENCED.sub("", text))):
        found.append(f"{heading}-{found.count(heading)}" if heading in found else heading)
    return set(found)


def broken_links(path: Path) -> Iterator[str]:
    text = path.read_text()
    for target in map("".join, LINK.findall(FENCED.sub("", text))):
        if urlsplit(target).scheme:
            if not well_formed(target):
                yield target
            continue
        name, _, heading = target.partition("#")
        file = path if not name else path.parent / name
        if (
            not file.exists()
            or (heading and heading not in anchors(file.read_text()))
            or leaves_the_pages(path, file)
        ):
            yield target
    yield from (name for name in SHOWN.findall(text) if not (path.parent / name).exists())


def well_formed(address: str) -> bool:
    """Whether an address of another site can be one; nothing is asked of the network."""
    parts = urlsplit(address)
    if parts.scheme == "mailto":
        return "@" in parts.path
    return parts.scheme == "https" and "." in parts.netloc and address[-1] not in ".,;:'"


def leaves_the_pages(path: Path, target: Path) -> bool:
    """Whether a page of the documentation links to a file that is not built with it."""
    pages = (ROOT / "docs").resolve()
    return pages in path.resolve().parents and pages not in target.resolve().parents


def unknown_names(text: str) -> Iterator[str]:
    for name in set(NAME.findall(text)) - NOT_MODULES - DOORS:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            yield name
    for statement in IMPORT.findall(text):
        (node,) = ast.parse(statement.strip()).body
        assert isinstance(node, ast.ImportFrom)
        if node.module in DOORS:
            continue
        module = importlib.import_module(str(node.module))
        yield from (f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_links_lead_somewhere(path: Path) -> None:
    assert not list(broken_links(path))


@pytest.mark.parametrize("path", PRESENT, ids=ids)
def test_files_that_are_named_are_there(path: Path) -> None:
    assert not [name for name in set(FILE.findall(path.read_text())) if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", PRESENT, ids=ids)
def test_names_of_ours_are_real(path: Path) -> None:
    assert not list(unknown_names(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_numbers_from_records_break_no_paragraph(path: Path) -> None:
    assert not BROKEN.findall(path.read_text())


def test_a_line_that_begins_with_a_number_is_noticed() -> None:
    text = "gains\n<!-- gain a b -->3<!-- end --> points\n\n<!-- table t -->\n| 1 |\n<!-- end -->\n"
    assert BROKEN.findall(text) == ["<!-- gain a b -->3<!-- end --> points"]
    assert BROKEN.findall("- gains\n  <!-- gain a b -->3<!-- end --> points\n")


def test_what_is_not_there_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n## One\n#### Deep\n```\n# code\n[f](gone.md)\n```\n"
        "[a](#one) [b](#two) [c](other.md) [d](page.md#one) [e](https://x.y) "
        "[f](#one-1) [g](#code) [h](#deep) [i](http://x.y) "
        "[j](https://xy/z) [k](https://x.y/z.) ![l](no.png)\n\n"
        '[m]: lost.md\n<a href="away.md">\n```{literalinclude} none.py\n```\n'
    )
    assert list(broken_links(page)) == [
        *("#two", "other.md", "#code", "#deep", "http://x.y", "https://xy/z", "https://x.y/z."),
        *("no.png", "lost.md", "away.md", "none.py"),
    ]
    assert leaves_the_pages(ROOT / "docs" / "faq.md", ROOT / "README.md")
    assert not leaves_the_pages(ROOT / "README.md", ROOT / "docs" / "faq.md")
    text = "metaweight.nowhere metaweight.noise\nfrom metaweight import Engine, Motor"
    assert sorted(unknown_names(text)) == ["metaweight.Motor", "metaweight.nowhere"]


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for index in (ROOT / "docs/index.md", ROOT / "docs/api/index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {index.parent / f"{name}.md" for name in names}
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs/index.md"}
    assert listed == pages


def rooms() -> list[Path]:
    return sorted(
        path for house in ("problems", "engines") for path in ROOT.glob(f"{house}/*/__init__.py")
    )


@pytest.mark.parametrize("room", rooms(), ids=ids)
def test_contributors_read_what_every_room_knows(room: Path) -> None:
    sentence = str(ast.get_docstring(ast.parse(room.read_text()))).partition("\n\n")[0]
    told = " ".join(sentence.split()).rstrip(".")
    row = f"| `{room.parent.name}/` | {told[0].lower()}{told[1:]} |"
    assert row in (ROOT / "CONTRIBUTING.md").read_text().splitlines()
