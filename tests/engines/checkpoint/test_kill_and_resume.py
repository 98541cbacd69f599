"""A process killed at any moment and started again ends where an uninterrupted one does."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills as Unix does")

# Imports once and then runs each program in a process of its own, which takes a second instead of
# five: the program is built, resumed and run there, as in a new script.
NURSERY = """
import logging, os, sys, traceback
logging.getLogger("metaweight").setLevel(logging.ERROR)
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from support.resuming import end_workers, killed_program, rows

def run(kind, place):
    engine = killed_program(kind, place)
    engine.run(resume="auto")
    end_workers(engine)
    state = {p.name: [*p.module.parameters(), *p.module.buffers()] for p in engine.problems}
    logs = {name: str(text) for name, text in rows(place / "logs").items()}
    torch.save({"state": state, "rows": logs}, place / "end.pt")

print("ready", flush=True)
for line in sys.stdin:
    kind, place = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            run(kind, Path(place))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Starts programs, and kills them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, kind: str, folder: Path, kill_after: float | None = None) -> int:
        """Run a program to its end, or kill it and its workers; return its exit code."""
        sent, heard = self._process.stdin, self._process.stdout
        assert sent is not None and heard is not None
        sent.write(f"{kind}\t{folder}\n")
        sent.flush()
        child = int(heard.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        return int(heard.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    helpers = Path(__file__).parents[2] / "helpers"
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(helpers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Nursery(process)
        process.stdin.close()


def kill_and_compare(nursery: Nursery, kind: str, folder: Path, kills: int) -> None:
    whole, killed = folder / "whole", folder / "killed"
    whole.mkdir()
    killed.mkdir()
    before = time.monotonic()
    assert nursery.run(kind, whole) == 0
    length = time.monotonic() - before
    expected = torch.load(whole / "end.pt")
    generator, done, resumed = random.Random(kind), 0, 0
    while done < kills:
        code = nursery.run(kind, killed, generator.uniform(0.05, 0.8 * length))
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            # It came to its end between two kills; begin again.
            compare(expected, killed)
            shutil.rmtree(killed)
            killed.mkdir()
        else:
            done += 1
            resumed += (killed / "saved").exists() and any((killed / "saved").glob("step-*.ckpt"))
    assert resumed, "no kill came after a checkpoint"
    assert nursery.run(kind, killed) == 0
    compare(expected, killed)


def compare(expected: dict[str, dict[str, list[torch.Tensor]]], folder: Path) -> None:
    found = torch.load(folder / "end.pt")
    assert found["rows"] == expected["rows"]
    for name, tensors in expected["state"].items():
        for a, b in zip(tensors, found["state"][name], strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", ["weights", "unrolled", "mean teacher"])
def test_a_few_kills(nursery: Nursery, kind: str, tmp_path: Path) -> None:
    kill_and_compare(nursery, kind, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "unrolled", "mean teacher"])
def test_fifty_kills(nursery: Nursery, kind: str, tmp_path: Path) -> None:
    kill_and_compare(nursery, kind, tmp_path, 50)
