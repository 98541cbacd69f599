"""Links of built pages that lead nowhere are found, and those that lead somewhere are not."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[2] / "docs" / "html_links.py"


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("other.html", None),
        ("other.html#there", None),
        ("#here", None),
        ("sub/../other.html?q=1", None),
        ("picture%20one.png", None),
        ("https://arxiv.org/abs/1703.03400", None),
        ("mailto:a@b.c", None),
        ("missing.html", "no such file"),
        ("other.html#here", "no such anchor"),
        ("#there", "no such anchor"),
        ("gone.png", "no such file"),
        ("https://README", "no host"),
    ],
)
def test_a_link(link: str, wrong: str | None, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "picture one.png").touch()
    tag = f'<img src="{link}">' if link.endswith("png") else f'<a href="{link}">x</a>'
    pages = {
        tmp_path / "page.html": f'<h1 id="here">a</h1>{tag}',
        tmp_path / "other.html": '<h1 id="there">b</h1>',
    }
    for path, text in pages.items():
        path.write_text(text)
    found = list(runpy.run_path(str(CHECK))["broken_links"](pages))
    assert found == ([] if wrong is None else [f"page.html: {link} ({wrong})"])
