"""What a process holds at some steps of a long run, to see whether it grows."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from metaweight.engines import Hook, NormLogger
from torch import Tensor

from metaweight import Engine, Unroll
from metaweight.averaging import EMAHook
from metaweight.consistency import MeanTeacher
from support.resuming import (
    Build,
    Unrolled,
    data_loader,
    seed_all,
    semi_supervised,
    two_levels,
)

PROGRAMS: dict[str, Build] = {
    "meta-weight-net": two_levels(
        hooks=lambda: [EMAHook("lower", 0.9, validate_teacher=True), NormLogger(every=10)],
        non_finite="skip",
    ),
    "loader of torch": two_levels(data=data_loader(0), roll_back=True),
    "unrolled": two_levels(
        Unrolled, lower={"unroll_steps": 3, "gradient_accumulation": 2}, upper={"type": "cg"}
    ),
    "kept graphs": two_levels(Unrolled, lower={"unroll_steps": 2, "type": Unroll(memory="full")}),
    "mean teacher": semi_supervised(MeanTeacher),
}


class Leak(Hook):
    """Keeps a tensor of every step."""

    only_shows = True

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def after_step(self, engine: Engine, problem: Any, result: Any) -> None:
        self.kept.append(result.loss.detach())


class Inventory(Hook):
    """Notes after some steps what the process holds."""

    only_shows = True

    def __init__(self, at: Sequence[int]) -> None:
        self.at = at
        self.found: list[dict[str, Any]] = []

    def run_start(self, engine: Engine) -> None:
        # What is made when it is first asked for is there before the first look.
        holdings()

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step in self.at:
            self.found.append(holdings())


def holdings() -> dict[str, Any]:
    """Return live tensors and their bytes, objects by type, open files and resident memory.

    Objects that were frozen before (``gc.freeze``) are left out.
    """
    gc.collect()
    objects = gc.get_objects()
    tensors = [o for o in objects if issubclass(type(o), Tensor)]
    return {
        "tensors": len(tensors),
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
        # As text, since a mapping would be an object more the next time.
        "objects": json.dumps(Counter(type(o).__qualname__ for o in objects)),
        "files": len(os.listdir("/proc/self/fd")),
        "resident": int(Path("/proc/self/statm").read_text().split()[1])
        * os.sysconf("SC_PAGE_SIZE"),
    }


def observed(
    kind: str, place: Path, at: Sequence[int], hooks: Callable[[], list[Hook]] = list
) -> list[dict[str, Any]]:
    """Run a program and return what the process held after the steps ``at``, besides what it held
    before it."""
    gc.collect()
    gc.freeze()
    inventory = Inventory(at)
    seed_all(0)
    engine = PROGRAMS[kind](
        train_iters=at[-1],
        valid_step=200,
        checkpoint_dir=place / "saved",
        checkpoint_step=500,
        log_dir=place / "logs",
        logger_type="jsonl",
    )
    engine.hooks = type(engine.hooks)([*engine.hooks.hooks, *hooks(), inventory])
    try:
        engine.run()
    finally:
        gc.unfreeze()
    return inventory.found


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("metaweight").setLevel(logging.ERROR)
    name, folder, *steps = sys.argv[1:]
    print(json.dumps(observed(name, Path(folder), [int(s) for s in steps])))
