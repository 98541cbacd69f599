"""Runs all checks in one of several processes and writes down what they return."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from metaweight import MetaweightError

from . import accelerate_checks, hook_checks, non_finite_checks, process_checks  # noqa: F401 (they register themselves)
from .checks import RESULTS


def main(folder: Path, rank: int, world: int) -> None:
    """Run all checks and write what they return."""
    torch.set_num_threads(1)
    logging.getLogger("metaweight").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, function in RESULTS.items():
        place = folder / name
        place.mkdir(exist_ok=True)
        try:
            found[name] = function(rank, world, place)
        except Exception as error:
            if not isinstance(error, MetaweightError):
                traceback.print_exception(error)
            found[name] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / f"found_{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
