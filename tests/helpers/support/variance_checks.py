"""What a table of gradients does in each of two processes that share out batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaweight import ConfigurationError, Engine, VarianceReduction

from .checks import check
from .shared_out import parameters, program


def _program(rank: int, world: int, iterations: int) -> tuple[Engine, VarianceReduction]:
    hook = VarianceReduction()
    return program("saba", rank, world, hooks=[hook], train_iters=iterations), hook


@check
def gradients_corrected(rank: int, world: int, folder: Path) -> Any:
    """Parameters and tables, after two epochs and more."""
    engine, hook = _program(rank, world, 12)
    engine.run()
    return {**parameters(engine), "tables": hook.state_dict()["tables"]}


@check
def corrections_resumed(rank: int, world: int, folder: Path) -> Any:
    whole, first, again = (_program(rank, world, n)[0] for n in (12, 7, 12))
    whole.run()
    first.run()
    first.save(folder / "corrected.pt")
    again.load(folder / "corrected.pt")
    again.run()
    return parameters(whole), parameters(again)


@check
def at_other_batches(rank: int, world: int, folder: Path) -> Any:
    """One process has three batches, the other five."""
    hooks = [VarianceReduction(["low"])]
    engine = program("darts", rank, world, hooks=hooks, train_iters=12)
    del engine.low.source.loaders[0][3 + 2 * rank :]
    try:
        engine.run()
    except ConfigurationError as error:
        return str(error), engine.low.count
    return "", engine.low.count
