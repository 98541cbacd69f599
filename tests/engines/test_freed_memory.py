"""The memory that a step frees stays with the process, for the next step."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from metaweight.engines import engine
from metaweight.engines.freed_memory import keep_freed_memory
from support.reweighting import program

FEW = 1280
"""A tenth of the pages of 50 MiB: room for what else a process does."""

LOOP = """
import resource
import torch
from metaweight.engines.freed_memory import keep_freed_memory

torch.set_num_threads(1)

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        del [torch.ones(2**18) for _ in range(50)][:]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

faults(5)
before = faults(20)
{act}
faults(5)
print(before, faults(20))
"""


def faults_a_round(act: str, **environment: str) -> tuple[float, float]:
    """Page faults of a loop that allocates 50 MiB and frees it, before and after an act."""
    # What torch's import frees differs from start to start; where it was a large block, glibc has
    # learned from it already.
    for _ in range(8):
        before, after = _measured(act, environment)
        if before > FEW:
            break
    return before, after


def _measured(act: str, environment: Mapping[str, str]) -> tuple[float, float]:
    plain = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "LD_PRELOAD"}
    done = subprocess.run(
        [sys.executable, "-c", LOOP.replace("{act}", act)],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(float, done.stdout.split())
    return before, after


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="Other libraries keep what they keep."
)
def test_a_step_does_not_wait_for_memory_that_the_last_one_freed() -> None:
    before, after = faults_a_round("keep_freed_memory()")
    assert before > FEW
    assert after < FEW


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="Other libraries keep what they keep."
)
def test_what_the_environment_says_about_freed_memory_holds() -> None:
    before, after = faults_a_round("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072")
    assert before > FEW
    assert after > FEW


def test_an_engine_on_the_cpu_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    monkeypatch.setattr(engine, "keep_freed_memory", lambda: asked.append(None))
    program()
    assert asked == [None]


FILLED = """
import resource, torch
from metaweight.engines.freed_memory import keep_freed_memory
torch.use_deterministic_algorithms(True)
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
keep_freed_memory()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_it_occupies_no_memory_where_torch_fills_what_it_allocates() -> None:
    """32 MiB are 8,192 pages."""
    done = subprocess.run(
        [sys.executable, "-c", FILLED], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100


def test_without_that_much_memory_there_is_none_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **settings: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "UntypedStorage", refused)
    keep_freed_memory()
