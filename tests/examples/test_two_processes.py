"""The example that stops, goes on, and runs in two processes."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "two_processes.py"


def printed(text: str) -> tuple[int, list[float]]:
    steps = int(re.findall(r"steps: (\d+)", text)[-1])
    line = text.splitlines()[-1].partition(":")[2]
    return steps, [float(number) for number in line.split()]


@pytest.mark.slow
def test_a_run_that_stops_ends_as_one_that_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(str(tmp_path / "whole"), steps=140)
    whole = printed(capsys.readouterr().out)
    main(str(tmp_path / "halves"), steps=120)
    half = printed(capsys.readouterr().out)
    main(str(tmp_path / "halves"), steps=140)
    assert printed(capsys.readouterr().out) == whole
    assert half[0] == 120 and half[1] != whole[1]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(SCRIPT))["main"](str(tmp_path / "one"), steps=140)
    one = printed(capsys.readouterr().out)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(SCRIPT)]
    two = [*launch, "--folder", str(tmp_path / "two"), "--steps", "140"]
    done = subprocess.run(two, capture_output=True, text=True, timeout=300, check=True)
    # They add in another order; differences divide that by a small displacement.
    assert printed(done.stdout)[0] == one[0]
    assert printed(done.stdout)[1] == pytest.approx(one[1], abs=2e-3)
