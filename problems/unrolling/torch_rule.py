"""A differentiable step of any torch optimizer that supports ``differentiable=True``."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor

from .rules import Settings, State

# Adaptive optimizers have an infinite derivative at a zero gradient. The square of this number is
# still normal in single precision.
NUDGE = 1e-18


def optimizer_copy(optimizer: torch.optim.Optimizer) -> Any:
    """Return a copy without schedulers and hooks, to which groups and state can be assigned."""
    twin: Any = copy.copy(optimizer)
    # A scheduler replaces ``step`` on the instance.
    twin.__dict__.pop("step", None)
    twin._optimizer_step_pre_hooks = OrderedDict()
    twin._optimizer_step_post_hooks = OrderedDict()
    return twin


def differentiable_step(
    optimizer: torch.optim.Optimizer, w: Tensor, g: Tensor, state: State, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return parameters and state after a step of a copy of ``optimizer``, with their graph."""
    parameter = w.clone()
    parameter.grad = g + NUDGE * (g == 0)
    twin = optimizer_copy(optimizer)
    switches = {"differentiable": True, "foreach": False, "capturable": False, "fused": None}
    group = {k: switches.get(k, v) for k, v in settings.items()}
    twin.defaults = {**optimizer.defaults, "differentiable": True}
    twin.param_groups = [{**group, "params": [parameter]}]
    twin.state = defaultdict(dict)
    if state:
        twin.state[parameter] = {
            k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()
        }
    type(optimizer).step(twin)
    after = {k: v for k, v in twin.state[parameter].items() if isinstance(v, Tensor)}
    return parameter, after
