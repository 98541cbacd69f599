"""Changes of gradients and parameters beside the optimizer, which a hypergradient cannot see."""

from __future__ import annotations

import warnings

from ..hypergradients.base import Hypergradient
from ..kernels.torch_internals import gradient_hooks, optimizer_hooks, post_accumulate_hooks
from ..problem import Problem
from .lower_view import lower_view


def unseen_changes(problem: Problem, method: Hypergradient) -> list[str]:
    """Return the names of what may change the problem's steps unseen by a method; none for methods
    that do not differentiate its steps."""
    if not method.repeats_steps(lower_view(problem)):
        return []
    kind = type(problem)
    found = [
        f"{kind.__name__}.{name}"
        for name in ("grad_callback", "param_callback")
        if getattr(kind, name) is not getattr(Problem, name) or name in vars(problem)
    ]
    found += problem.step_state.changing_hooks
    for name, parameter in problem.module.named_parameters():
        if parameter in problem.step_state.hooks_without_graph:
            found.append(f"A hook that leaves no graph, of register_hook on parameter {name!r},")
        elif gradient_hooks(parameter) and not method.follows_gradient_hooks:
            found.append(f"A hook of register_hook on parameter {name!r}")
        if post_accumulate_hooks(parameter):
            found.append(f"A hook of register_post_accumulate_grad_hook on parameter {name!r}")
    for hook in optimizer_hooks(problem.optimizer):
        if not str(getattr(hook, "__module__", "")).startswith("metaweight."):
            called = getattr(hook, "__qualname__", type(hook).__name__)
            found.append(f"The step hook {called} of {type(problem.optimizer).__name__}")
    return found


def warn_of_unseen_changes(problem: Problem, method: Hypergradient) -> None:
    """Warn once of each change that the method cannot see."""
    for name in problem.step_state.not_mentioned(unseen_changes(problem, method)):
        warnings.warn(
            f"{name} may change the steps of problem {problem.name!r} in a way "
            f"{type(method).__name__} cannot see; what it changes is ignored.",
            stacklevel=2,
        )
