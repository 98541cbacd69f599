"""Check which problem trains which parameter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..base.errors import GraphError
from ..problem import Problem
from ..state.shared_memory import overlapping


def require_own_parameters(problems: Sequence[Problem]) -> None:
    """Refuse parameters whose updates by two problems would conflict.

    These are a parameter trained by two problems of one hypergradient path, and a parameter in the
    optimizer of a problem that does not train it. Problems without a path between them may train
    the same module, if neither accumulates gradients. Different parameters must not share memory.

    Raises:
        GraphError: Naming the parameter and both problems.
    """
    trained = {problem: list(problem.trainable_parameters()) for problem in problems}
    for problem in problems:
        _require_own_optimizer(problem, trained)
    _require_no_mixture(trained)
    _require_own_memory(trained)
    for problem in problems:
        for path in problem.paths:
            for lower in path[1:-1]:
                for other in path[: path.index(lower)]:
                    _require_disjoint(lower, other, trained)


def _require_own_optimizer(problem: Problem, trained: dict[Problem, list[Tensor]]) -> None:
    groups = [] if problem.optimizer is None else problem.optimizer.param_groups
    own = set(trained[problem])
    foreign = [p for group in groups for p in group["params"] if p not in own]
    for other, parameters in trained.items():
        shared = set(foreign).intersection(parameters)
        if shared and other is not problem:
            raise GraphError(
                f"The optimizer of problem {problem.name!r} holds {_name_of(shared, other)} of "
                f"problem {other.name!r}, which {problem.name!r} does not train; build it over the "
                "parameters of its own module."
            )


def _require_no_mixture(trained: dict[Problem, list[Tensor]]) -> None:
    for problem, parameters in trained.items():
        for other, others in trained.items():
            shared = set(parameters).intersection(others)
            if other is not problem and shared and problem.config.gradient_accumulation > 1:
                raise GraphError(
                    f"Problems {problem.name!r} and {other.name!r} both train "
                    f"{_name_of(shared, problem)}, and {problem.name!r} has Config("
                    f"gradient_accumulation={problem.config.gradient_accumulation}), so that their "
                    "gradients would be mixed up; use 1, or give each its own module."
                )


def _require_own_memory(trained: dict[Problem, list[Tensor]]) -> None:
    owners = {p: problem for problem, parameters in trained.items() for p in parameters}
    pair = overlapping(list(owners))
    if pair is not None:
        first, second = (f"{_name_of({p}, owners[p])} of problem {owners[p].name!r}" for p in pair)
        raise GraphError(
            f"{first} and {second} are different parameters that share memory, so that a step of "
            "one would change the other behind its back. To tie them, assign the same "
            "nn.Parameter to both modules; otherwise clone one."
        )


def _require_disjoint(lower: Problem, other: Problem, trained: dict[Problem, list[Tensor]]) -> None:
    shared = set(trained[lower]).intersection(trained[other])
    if shared:
        raise GraphError(
            f"Problems {other.name!r} and {lower.name!r} both train {_name_of(shared, lower)}, "
            f"and {other.name!r} differentiates through {lower.name!r}: it cannot be above and "
            "below itself. Give each problem its own module, or freeze it in one of them "
            "(requires_grad_(False), or leave it out of the optimizer)."
        )


def _name_of(shared: set[Tensor], problem: Problem) -> str:
    """Return the name of one of the parameters in the problem's module."""
    names = [name for name, p in problem.module.named_parameters() if p in shared]
    return repr(names[0]) if names else f"a parameter of shape {tuple(next(iter(shared)).shape)}"
