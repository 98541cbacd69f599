"""The devices that a test runs on, and a check that the host does not wait for a card.

A test that takes a device runs on the CPU in every run, and on a CUDA card where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Refuse what makes the host wait for a card inside a ``with`` statement."""
    if device == "cpu":
        yield
        return
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(previous)
