"""Steps of torch's optimizers without the work of Python around them.

Around its own code, ``optimizer.step()`` opens a range for profilers, looks for hooks and tells
compilers of a break: more than the step of a small problem takes. Where nobody asks for any of it,
the optimizer's own code is called alone, which computes the same numbers. What torch does not tell
of is an execution trace observer, in whose trace the range is then missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

Step = Callable[[Any], object]

_torch_optimizer: Any = sys.modules[torch.optim.Optimizer.__module__]
_set_grad: Any = getattr(torch._C, "_set_grad_enabled", None)
_profiler_is_on: Any = getattr(torch.autograd, "_profiler_enabled", None)
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_NEEDED = {"defaults", *_HOOKS}
_HOOKS_OF_ALL = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


def take_step(optimizer: Any) -> None:
    """Take a step, as ``optimizer.step()`` does."""
    step = _own_code(optimizer)
    if step is None or _set_grad is None:
        optimizer.step()
        return
    before = torch.is_grad_enabled()
    _set_grad(False)
    try:
        step(optimizer)
    finally:
        _set_grad(before)


def _own_code(optimizer: Any) -> Step | None:
    """Return the code of the optimizer's step, if the rest of ``step()`` would do nothing."""
    kind = type(optimizer)
    function = getattr(kind, "step", None)
    found = _inside(function, getattr(kind, "_optimizer_step_code", None))
    if found is None or _profiler_is_on is None or _profiler_is_on():
        return None
    given = vars(optimizer)
    # Of what hands its attributes on to another optimizer, they are that one's.
    if not given.keys() >= _NEEDED or given["defaults"].get("differentiable", True):
        return None
    if any(map(given.get, _HOOKS)) or any(map(vars(_torch_optimizer).get, _HOOKS_OF_ALL)):
        return None
    instead = given.get("step")
    if instead is None:
        return found
    if not (hasattr(instead, "_wrapped_by_lr_sched") and _wrapped(instead) is function):
        return None
    # All that a scheduler's function does before it calls that of the class.
    optimizer._opt_called = True
    return found


@lru_cache(maxsize=128)
def _inside(function: Any, told: Any) -> Step | None:
    """Return what torch's two wrappers of a step call; nothing for what else may wrap it, and where
    something of one's own is ``told`` of each step."""
    if told is not getattr(torch.optim.Optimizer, "_optimizer_step_code", None):
        return None
    middle = _wrapped(function)
    outer_maker = getattr(torch.optim.Optimizer, "profile_hook_step", None)
    middle_maker = getattr(_torch_optimizer, "_use_grad_for_differentiable", None)
    known = _is_made_by(function, outer_maker) and _is_made_by(middle, middle_maker)
    inner: Step | None = _wrapped(middle)
    return inner if known and _wrapped(inner) is None else None


def _wrapped(function: Any) -> Any:
    return getattr(function, "__wrapped__", None)


def _is_made_by(function: Any, maker: Any) -> bool:
    made = getattr(getattr(maker, "__code__", None), "co_consts", ())
    return getattr(function, "__code__", maker) in made
