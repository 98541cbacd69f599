"""What each of two processes does where ``accelerate`` has put them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from metaweight import Config, ConfigurationError, Engine, ImplicitProblem

from .checks import check
from .shared_out import batches, parameters, program, run_config

KINDS = ("darts", "cg", "unroll one-sided")


def forget_accelerator() -> None:
    """Let the process be as if it had never made an Accelerator."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@check
def accelerated(rank: int, world: int, folder: Path) -> Any:
    """By an Accelerator of the script's own, and by one the engine makes."""
    own = Accelerator(cpu=True) if world > 1 else None
    found = {}
    for kind in KINDS:
        engine = program(kind, rank, world, accumulation=2, strategy="accelerate" if own else "cpu")
        assert own is None or engine.processes.rank == own.process_index
        engine.run()
        found[kind] = parameters(engine)
    forget_accelerator()
    if world > 1:
        engine = program("darts", rank, world, strategy="accelerate")
        assert AcceleratorState().num_processes == engine.processes.world == 2
        forget_accelerator()
    return found


@check
def prepared_by_accelerator(rank: int, world: int, folder: Path) -> Any:
    """Each part that ``prepare`` returns, given to a problem; the message that refuses it."""
    own = Accelerator(cpu=True)
    messages = []
    for number in range(4):
        net = nn.Linear(3, 1).double()
        optimizer: Any = torch.optim.SGD(net.parameters(), 0.1)
        scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        loader: Any = torch.utils.data.DataLoader(batches(1, 1, 0, 1)[0][0], 2)
        parts: list[Any] = [net, optimizer, scheduler, loader]
        if number == 2:
            parts[1], parts[2] = own.prepare(optimizer, scheduler)
            parts[1] = optimizer
        else:
            parts[number] = own.prepare(parts[number])
        try:
            problem = ImplicitProblem("fit", Config(), *parts)
            problem.training_step = lambda batch: 0.0  # type: ignore[method-assign]
            Engine([problem], run_config(world, strategy="accelerate"))
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
    forget_accelerator()
    return messages


@check
def uncounted(rank: int, world: int, folder: Path) -> Any:
    """An Accelerator that does not know of the group it is in."""
    Accelerator()
    try:
        program("darts", rank, world, strategy="accelerate")
    except ConfigurationError as error:
        return str(error)
    finally:
        forget_accelerator()
