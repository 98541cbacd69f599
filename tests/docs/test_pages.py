"""What README and pages refer to is there: files, headings, names of ours."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
# Names that look like modules of ours and are none: the group of entry points.
NOT_MODULES = {"metaweight.hypergradients"}
# Their packages may be missing; test_integrations.py runs what the page shows of them.
DOORS = {f"metaweight.integrations.{name}" for name in ("huggingface", "lightning")}
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAME = re.compile(r"\bmetaweight(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(r"^ *from metaweight[\w.]* import (?:\([^)]*\)|[^\n(]+)", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchor(heading: str) -> str:
    """Return how GitHub and MyST call a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def broken_links(path: Path) -> Iterator[str]:
    for target in LINK.findall(path.read_text()):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = path if not name else path.parent / name
        headings = (
            HEADING.findall(file.read_text()) if file.suffix == ".md" and file.exists() else []
        )
        if not file.exists() or (heading and heading not in map(anchor, headings)):
            yield target


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


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_names_of_ours_are_real(path: Path) -> None:
    assert not list(unknown_names(path.read_text()))


def test_what_is_not_there_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](#one) [b](#two) [c](other.md) [d](page.md#one) [e](https://x.y)")
    assert list(broken_links(page)) == ["#two", "other.md"]
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
