"""Settings of every test."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    # Peer libraries and torch's own extensions warn while being imported; that is theirs to mend.
    warnings.simplefilter("ignore")
    import torch.utils.tensorboard

from support.two_processes import found_together

# The tensors here are small: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet_console() -> None:
    """Keep runs from filling the captured output; tests of the console set their own level."""
    logging.getLogger("metaweight").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found in all checks of :mod:`support.each_process`."""
    return found_together(tmp_path_factory.mktemp("two"))
