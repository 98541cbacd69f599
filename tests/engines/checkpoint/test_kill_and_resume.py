"""A process killed at any moment and started again ends where an uninterrupted one does."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.fork_server import start_code

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills as Unix does")

PROGRAM = """
import logging, sys
from pathlib import Path
import torch
from support.resuming import end_workers, killed_program, rows

logging.getLogger("metaweight").setLevel(logging.ERROR)
torch.set_num_threads(1)
kind, place = sys.argv[1], Path(sys.argv[2])
engine = killed_program(kind, place)
engine.run(resume="auto")
end_workers(engine)
state = {p.name: [*p.module.parameters(), *p.module.buffers()] for p in engine.problems}
logs = {name: str(text) for name, text in rows(place / "logs").items()}
torch.save({"state": state, "rows": logs}, place / "end.pt")
"""


def run(
    kind: str, folder: Path, kill_after: float | None = None, *, once_saved: bool = False
) -> int:
    """Run a program to its end, or kill it and its workers; return its exit code.

    Args:
        kind: The program.
        folder: Where it saves.
        kill_after: Seconds from its start.
        once_saved: Wait for a checkpoint before the seconds.
    """
    started = start_code(PROGRAM, kind, str(folder))
    if kill_after is not None:
        while once_saved and started.process.is_alive() and not has_saved(folder):
            time.sleep(0.005)
        time.sleep(kill_after)
        with suppress(ProcessLookupError):
            os.killpg(started.process.pid, signal.SIGKILL)
    return started.wait().returncode


def has_saved(folder: Path) -> bool:
    return (folder / "saved").exists() and any((folder / "saved").glob("step-*.ckpt"))


def kill_and_compare(kind: str, folder: Path, kills: int) -> None:
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir()
    killed.mkdir()
    # The first process of all waits for the server to import torch.
    assert start_code("pass").wait().returncode == 0
    before = time.monotonic()
    assert run(kind, whole) == 0
    length = time.monotonic() - before
    expected = torch.load(whole / "end.pt")
    generator, done, resumed = random.Random(kind), 0, 0
    while done < kills:
        # On a busy machine all other kills may come too early.
        last = done == kills - 1 and not resumed
        seconds = generator.uniform(0.0, 0.1) if last else generator.uniform(0.05, 0.8 * length)
        code = run(kind, killed, seconds, once_saved=last)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            # It came to its end between two kills; begin again.
            compare(expected, killed)
            shutil.rmtree(killed)
            killed.mkdir()
        else:
            done += 1
            resumed += has_saved(killed)
    assert resumed, "no kill came after a checkpoint"
    assert run(kind, killed) == 0
    compare(expected, killed)


def compare(expected: dict[str, dict[str, list[torch.Tensor]]], folder: Path) -> None:
    found = torch.load(folder / "end.pt")
    assert found["rows"] == expected["rows"]
    for name, tensors in expected["state"].items():
        for a, b in zip(tensors, found["state"][name], strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", ["weights", "unrolled", "mean teacher"])
def test_a_few_kills(kind: str, tmp_path: Path) -> None:
    kill_and_compare(kind, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "unrolled", "mean teacher"])
def test_fifty_kills(kind: str, tmp_path: Path) -> None:
    kill_and_compare(kind, tmp_path, 50)
