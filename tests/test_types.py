"""An editable install, in the form that CONTRIBUTING.md names, is seen by type checkers."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WRONG = 'Fit("fit", Config(), module=nn.Linear(1, 1)).module.no_such_thing()'
SCRIPT = f"""
from torch import Tensor, nn
from typing_extensions import assert_type

from metaweight import ImplicitProblem
from metaweight.problems import Config


class Fit(ImplicitProblem[nn.Linear]):
    def training_step(self, batch: Tensor) -> Tensor:
        assert_type(self.module, nn.Linear)
        return (self.module.weight - batch).square().sum()


{WRONG}
"""


def documented() -> list[str]:
    """The arguments of pip that CONTRIBUTING.md gives."""
    (command,) = re.findall(
        r"`pip install ([^`]*editable_mode[^`]*)`", read(ROOT / "CONTRIBUTING.md")
    )
    return shlex.split(command)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_editable_install_has_types(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for name in tracked:
        if name.startswith(("metaweight/", "problems/", "engines/")) or "/" not in name:
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
    builder = venv.EnvBuilder(symlinks=True)
    builder.create(tmp_path / "env")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # Only what is imported by the package is borrowed, not an install of the package itself.
    places = [p for p in map(Path, sys.path) if p.name == "site-packages"]
    (site / "borrowed.pth").write_text("".join(f"{place}\n" for place in places))
    python = tmp_path / "env" / "bin" / "python"
    offline = ["--quiet", "--no-deps", "--no-build-isolation"]
    pip = [python, "-m", "pip", "install", *offline, *documented()]
    subprocess.run(pip, cwd=source, check=True, capture_output=True)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "script.py").write_text(SCRIPT)
    scripts = [elsewhere / "script.py"]
    for example in sorted((ROOT / "examples").glob("*.py")):
        text = read(example)
        if "transformers" not in text or importlib.util.find_spec("transformers"):
            scripts.append(elsewhere / example.name)
            scripts[-1].write_text(text, encoding="utf-8")
    # Packages without types, such as pandas, are no fault of an example.
    untyped = "--disable-error-code=import-untyped"
    options = ["--strict", untyped, "--config-file", "", "--python-executable", str(python)]
    checker = [sys.executable, "-m", "mypy", *options, *(path.name for path in scripts)]
    done = subprocess.run(checker, cwd=elsewhere, capture_output=True, text=True, check=False)
    wrong = 1 + SCRIPT.splitlines().index(WRONG)
    assert re.search(rf"^script.py:{wrong}: error: .* not callable", done.stdout, re.MULTILINE)
    assert "Found 1 error in 1 file" in done.stdout, done.stdout
