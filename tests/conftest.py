"""Settings of every test."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from typing import Any

# The tensors here are small: a second thread costs more than it brings, and takes another worker's
# core. Set before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

with warnings.catch_warnings():
    # Peer libraries and torch's own extensions warn while being imported; that is theirs to mend.
    warnings.simplefilter("ignore")
    import torch.utils.tensorboard

from support.once import once
from support.two_processes import found_together

torch.set_num_threads(1)

# pytest attaches its log handlers to each logger that does not propagate, three times a test; torch
# has more than fifty of these.
for _name, _logger in logging.root.manager.loggerDict.items():
    if _name.startswith("torch") and isinstance(_logger, logging.Logger):
        _logger.propagate = True


def pytest_collection_finish() -> None:
    """Leave all that was imported out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quiet_console() -> None:
    """Keep runs from filling the captured output; tests of the console set their own level."""
    logging.getLogger("metaweight").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found in all checks of :mod:`support.each_process`."""
    found: list[dict[str, Any]] = once(tmp_path_factory, "together", found_together)
    return found
