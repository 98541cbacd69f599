"""The benchmarks as scripts, run the way a user runs them, but in this process.

Importing torch takes seconds, which a process for each script would spend again, and for each of
its contenders once more. What a benchmark starts by ``spawn`` is forked here from a server that has
imported it. ``bash .ci/run`` runs scripts as processes.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import pickle
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.fork_server import context
from torchvision.datasets import CIFAR10

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

# Nothing listens on the discard port, so that a download fails at once even with a network.
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}


class Done(NamedTuple):
    """What a script left."""

    returncode: int
    stdout: str
    stderr: str


Script = Callable[..., Done]


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Scripts set how many threads they take, and what is logged."""
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    yield
    torch.set_num_threads(threads)
    logging.disable(disabled)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork from a server what would be spawned."""
    get_context = multiprocessing.get_context
    server = context()

    def instead(method: str | None = None) -> Any:
        return server if method == "spawn" else get_context(method)

    monkeypatch.setattr(multiprocessing, "get_context", instead)


@pytest.fixture
def run_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark_modules: None, forked: None
) -> Script:
    """Run a benchmark in an empty folder."""
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> Done:
        path = str(FOLDER / name)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        code: Any = 0
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
        return Done(code, out.getvalue(), err.getvalue())

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
