"""What ``torchrun --max-restarts=1`` starts twice: two processes of which one is killed.

The launcher is torchrun's own; its processes are forked rather than started with a new interpreter.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from metaweight import Engine, Hook

from .process_checks import parameters, saving
from .shared_out import program


class Killed(Hook):
    """Kills the second process in its fifth step, the first time."""

    only_shows = True

    def __init__(self, folder: Path) -> None:
        self._mark = folder / "killed"

    def iteration_end(self, engine: Engine) -> None:
        if engine.processes.rank == 1 and engine.global_step == 5 and not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(Hook):
    """Raises in the second process, with hundreds of steps left to the first."""

    def iteration_end(self, engine: Engine) -> None:
        if engine.processes.rank == 1 and engine.global_step == 2:
            raise RuntimeError("broken on purpose")


def train(place: str) -> None:
    """Run a program to its end, save what it ends with, and run another that fails."""
    torch.set_num_threads(1)
    folder, rank = Path(place), int(os.environ["RANK"])
    engine = saving(rank, 2, folder / "run", 7, every=2, hooks=[Killed(folder)])
    engine.run(resume="auto")
    torch.save(parameters(engine), folder / f"end_{rank}.pt")
    try:
        program("darts", rank, 2, hooks=[Fails()], train_iters=1000, strategy="distributed").run()
    except Exception:
        # A new interpreter would print it.
        traceback.print_exc()
        raise


if __name__ == "__main__":
    place, port = sys.argv[1:]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="restarted",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"rank": 0},
        max_restarts=1,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, train)(place)
