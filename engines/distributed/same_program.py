"""Check that all processes have built the same program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaweight.problems import GraphError, Problem
from metaweight.problems.data.loader_parts import length_of
from metaweight.problems.persistence.problem_state import form_of, form_of_module
from torch import nn

from ..program.config import EngineConfig

if TYPE_CHECKING:
    from .processes import Processes

SETTINGS = (
    *("unroll_steps", "gradient_accumulation", "warmup_steps", "gradient_clipping"),
    "precision",
)
RUN = ("train_iters", "epochs", "valid_step", "roll_back", "checkpoint_step")


def require_same_program(
    processes: Processes, problems: Sequence[Problem], config: EngineConfig
) -> None:
    """Refuse a program that differs between processes; all processes raise.

    Raises:
        GraphError: Naming the first difference.
    """
    if processes.world == 1:
        return
    _require_same(processes, _description(problems, config), "built different programs")


def require_same_module(processes: Processes, problem: str, module: nn.Module) -> None:
    """Refuse a module that differs between processes; all processes raise.

    Raises:
        GraphError: Naming the first difference.
    """
    own = _of_module(problem, form_of_module(module))
    _require_same(processes, own, "put different modules in place")


def _of_module(problem: str, form: Mapping[str, str]) -> dict[str, str]:
    return {f"{name!r} in the module of problem {problem!r}": form[name] for name in form}


def _require_same(processes: Processes, own: Mapping[str, Any], done: str) -> None:
    everyone = processes.gather(own)
    for rank, other in enumerate(everyone):
        difference = _difference(everyone[0], other)
        if difference is not None:
            what, first, here = difference
            raise GraphError(
                f"The processes have {done}: {what} is {first} in process 0 and "
                f"{here} in process {rank}; build the same in all."
            )


def _description(problems: Sequence[Problem], config: EngineConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "the list of problems": [p.name for p in problems],
        **{f"EngineConfig({name})": getattr(config, name) for name in RUN},
    }
    for problem in problems:
        own = f"of problem {problem.name!r}"
        form = form_of(problem)
        found.update(_of_module(problem.name, form["module"]))
        for part in ("optimizer", "groups", "scheduler", "loss scaler"):
            found[f"the {part} {own}"] = form[part]
        for name in SETTINGS:
            found[f"Config({name}) {own}"] = getattr(problem.config, name)
        if type(problem).get_batch is Problem.get_batch:
            for index, loader in enumerate(problem.train_data_loader or ()):
                found[f"the number of batches of loader {index} {own}"] = length_of(loader)
        found[f"the type {own}"] = type(problem.hypergradient).__name__
        found[f"the list of hypergradient paths {own}"] = [
            [step.name for step in path] for path in problem.paths
        ]
    return found


def _difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    for what in dict.fromkeys([*first, *other]):
        here, there = first.get(what, "absent"), other.get(what, "absent")
        if here != there:
            return what, here, there
    return None
