"""A run holds after ten thousand steps what it held after two thousand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.fork_server import start_module
from support.long_runs import PROGRAMS, Leak, observed

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")

# Both are multiples of the lengths of all loops, accumulations, epochs and intervals of hooks.
EARLY, LATE = 2_040, 10_080
MEGABYTE = 2**20


def growth(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the process holds more of at the end than at the beginning, by its name."""
    first, last = found[0], found[-1]
    grown = {k: last[k] - first[k] for k in ("tensors", "bytes", "files") if last[k] > first[k]}
    before, after = json.loads(first["objects"]), json.loads(last["objects"])
    # The collector stops tracking tuples of numbers and text when it has looked at them.
    spare = {"tuple": 4}
    return grown | {
        k: n - before.get(k, 0) for k, n in after.items() if n > before.get(k, 0) + spare.get(k, 0)
    }


def in_a_child(kind: str, place: Path, at: list[int]) -> list[dict[str, Any]]:
    """Return what a program of a process of its own holds: threads of other tests make objects."""
    done = start_module("support.long_runs", kind, str(place), *map(str, at)).wait(1800)
    assert done.returncode == 0, done.stderr
    holdings: list[dict[str, Any]] = json.loads(done.stdout)
    return holdings


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(PROGRAMS))
def test_nothing_grows_in_ten_thousand_steps(kind: str, tmp_path: Path) -> None:
    """Tensors, their bytes, open files and Python objects of every type exactly; tuples but for 4.

    Resident memory may grow by the pages an allocator spreads over; a tensor of every step in a
    list would be 8 MB.
    """
    first, last = in_a_child(kind, tmp_path, [EARLY, LATE])
    assert not growth([first, last])
    assert last["resident"] - first["resident"] < 4 * MEGABYTE


def test_nothing_grows_in_a_few_steps(tmp_path: Path) -> None:
    assert not growth(in_a_child("meta-weight-net", tmp_path, [60, 120]))


def test_a_tensor_kept_of_every_step_is_noticed(tmp_path: Path) -> None:
    grown = growth(observed("meta-weight-net", tmp_path, [12, 24], lambda: [Leak()]))
    # Both problems step 12 times.
    assert grown["tensors"] == grown["Tensor"] == 24
