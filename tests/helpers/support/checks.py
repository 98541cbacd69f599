"""What the tests of several processes let each of two do.

Every check returns what the tests look at; an error is returned as its text.
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metaweight import MetaweightError

Check = Callable[[int, int, Path], Any]
RESULTS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Let every process run a function of rank, number of processes and a folder, by its name."""
    assert function.__name__ not in RESULTS
    RESULTS[function.__name__] = function
    return function


def run_checks(checks: Mapping[str, Check], folder: Path, names: Sequence[str]) -> None:
    """Run checks, all or those named, and write what they return."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    logging.getLogger("metaweight").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name in names or checks:
        place = folder / name
        place.mkdir(exist_ok=True)
        try:
            found[name] = checks[name](rank, world, place)
        except Exception as error:
            if not isinstance(error, MetaweightError):
                traceback.print_exception(error)
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"found_{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
