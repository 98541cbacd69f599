"""What is computed once for all workers of pytest-xdist."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def once(factory: pytest.TempPathFactory, name: str, compute: Callable[[Path], Any]) -> Any:
    """What a computation in an empty folder returns, done by the first worker that asks.

    Others wait for it, and read it: ``torch.save`` must be able to write it. A failure is the next
    worker's to repeat.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return compute(factory.mktemp(name))
    # The workers' folders lie side by side in that of the whole run.
    result = factory.getbasetemp().parent / f"{name}.pt"
    with result.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            value = compute(factory.mktemp(name))
            part = result.with_suffix(".part")
            torch.save(value, part)
            part.replace(result)
            return value
    return torch.load(result, weights_only=True)
