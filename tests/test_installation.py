"""What is installed: every module, once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("metaweight", "problems", "engines")
BUILD = "import sys; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("sources")
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


def built(sources: Path, folder: Path) -> Path:
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=sources, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_holds_every_module_once(sources: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(built(sources, tmp_path)).namelist()
    found = sorted(name for name in names if ".dist-info/" not in name)
    expected = sorted(
        str(Path("" if folder == "metaweight" else "metaweight") / path.relative_to(sources))
        for folder in FOLDERS
        for path in (sources / folder).rglob("*")
        if path.suffix in (".py", ".typed")
    )
    assert found == expected
