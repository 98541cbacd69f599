"""The README stays short, and its example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from support.fork_server import start_code

README = Path(__file__).resolve().parents[2] / "README.md"


def example() -> str:
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 1, "the README has one example"
    return blocks[0]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_example_has_fifteen_lines_as_its_heading_says() -> None:
    assert len([line for line in example().splitlines() if line]) == 15


def test_the_example_runs_when_pasted(tmp_path: Path) -> None:
    strict = "import warnings\nwarnings.simplefilter('error')\n"
    done = start_code(strict + example(), cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    weights = [float(w) for w in re.findall(r"[01]\.\d+", done.stdout.partition(":")[2])]
    assert len(weights) == 7
    assert all(0 <= w <= 1 for w in weights)
    # A sample with a large loss is trusted less than one with a small loss.
    assert weights[-1] < weights[0]
