"""The benchmarks as scripts, run the way a user runs them."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

# Nothing listens on the discard port, so that a download fails at once even with a network.
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_script(tmp_path: Path) -> Script:
    """Run a benchmark in an empty folder."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(FOLDER / name), *arguments],
            cwd=tmp_path,
            env={**os.environ, **NO_NETWORK},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the modules beside the scripts importable, for this test only."""
    for name in [name for name in sys.modules if name.split(".")[0] == "study"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(FOLDER))


def _write(path: Path, content: dict[str, object]) -> str:
    text = pickle.dumps(content, protocol=2)
    path.write_bytes(text)
    return hashlib.md5(text).hexdigest()


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve training and two test images a class in the official layout, checksums to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0)

    def batch(name: str, per_class: int) -> list[str]:
        images = pixels.integers(0, 256, (10 * per_class, 3072), dtype=np.uint8)
        return [name, _write(folder / name, {"data": images, "labels": [*range(10)] * per_class})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}", 4) for i in (1, 2, 3)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 2)])
    meta = _write(folder / "batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    return tmp_path
