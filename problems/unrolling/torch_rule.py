"""A differentiable step of any torch optimizer that supports ``differentiable=True``."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..base import vectors
from ..base.errors import HypergradientError
from .rules import Settings, State

# Adaptive optimizers have an infinite derivative at a zero gradient. The square of this number is
# still normal in single precision.
NUDGE = 1e-18

# What a copy is given of its own.
GIVEN = ("defaults", "param_groups", "state")


def optimizer_copy(optimizer: torch.optim.Optimizer) -> Any:
    """Return a copy without schedulers and hooks, to which groups and state can be assigned.

    Its other attributes are those of ``optimizer``; see :func:`why_not_copied`.
    """
    # Optimizers leave attributes of their own out of what copy.copy takes.
    twin: Any = object.__new__(type(optimizer))
    twin.__dict__.update(vars(optimizer))
    # A scheduler replaces ``step`` on the instance.
    twin.__dict__.pop("step", None)
    twin._optimizer_step_pre_hooks = OrderedDict()
    twin._optimizer_step_post_hooks = OrderedDict()
    return twin


def why_not_copied(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why a step of a copy would change what is not the copy's; ``None`` if it would not."""
    for name, value in vars(optimizer).items():
        if name in GIVEN:
            continue
        for held in _held(value):
            if isinstance(held, torch.optim.Optimizer):
                return f"it steps another optimizer, its attribute {name!r}"
            if isinstance(held, Tensor):
                return f"it keeps tensors in its attribute {name!r} and not in its state"
    return None


def _held(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value
    else:
        yield value


def differentiable_step(
    optimizer: torch.optim.Optimizer, w: Tensor, g: Tensor, state: State, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return parameters and state after a step of a copy of ``optimizer``, with their graph.

    Raises:
        HypergradientError: When a class's own step computes without a graph.
    """
    parameter = w.clone()
    parameter.grad = _nudged(g)
    twin = optimizer_copy(optimizer)
    switches: dict[str, Any] = {
        "differentiable": True,
        "foreach": False,
        "capturable": False,
        "fused": None,
    }
    group = {k: switches.get(k, v) for k, v in settings.items()}
    has_momentum = isinstance(optimizer, torch.optim.SGD) and group["momentum"] != 0
    if has_momentum and state.get("momentum_buffer") is None:
        # torch detaches the gradient that is to be the first buffer. From a buffer of 0 the step
        # without dampening is the same.
        state = {**state, "momentum_buffer": torch.zeros_like(w)}
        group["dampening"] = 0.0
    twin.defaults = {**optimizer.defaults, "differentiable": True}
    twin.param_groups = [{**group, "params": [parameter]}]
    twin.state = defaultdict(dict)
    if state:
        twin.state[parameter] = {
            k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()
        }
    with _Watch() as watch:
        type(optimizer).step(twin)
    if watch.lost_graph:
        raise HypergradientError(
            f"{type(optimizer).__name__}.step computes with parameters or gradients under "
            "torch.no_grad() or by their .data, so that it cannot be differentiated; let it run "
            "under torch.set_grad_enabled(self.defaults['differentiable']), or choose an implicit "
            "method such as type='cg'. Parameters are as they were."
        )
    after = {k: v for k, v in twin.state[parameter].items() if isinstance(v, Tensor)}
    return parameter, after


def _nudged(g: Tensor) -> Tensor:
    parts = vectors.real(g)
    nudged = parts + NUDGE * (parts == 0)
    return torch.view_as_complex(nudged) if g.is_complex() else nudged


class _Watch(TorchFunctionMode):
    """Notes whether something is computed of tensors with a graph while gradients are disabled."""

    lost_graph = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        inputs = [t for arg in args for t in (arg if isinstance(arg, (list, tuple)) else [arg])]
        with_graph = any(isinstance(t, Tensor) and t.requires_grad for t in inputs)
        found = func(*args, **(kwargs or {}))
        if with_graph and _loses_graph(func, found):
            self.lost_graph = True
        return found


def _loses_graph(func: Callable[..., Any], found: Any) -> bool:
    # Attributes, such as .grad, are read and set, and not computed.
    if func.__name__ in ("__get__", "__set__", "__delete__"):
        return getattr(func, "__self__", None) is Tensor.data
    computes = isinstance(found, (Tensor, list, tuple)) or func.__name__.endswith("_")
    return computes and not torch.is_grad_enabled()
