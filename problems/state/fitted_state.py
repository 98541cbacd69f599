"""State of a problem from another number of processes, fitted to the shards there are here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..base.shards import as_sharded_as, is_sharded


def fitted_state(module: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a problem's state with tensors sharded where its parameters are, and else whole.

    Tensors of other shapes than their parameter's are left as they are.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    numbered = dict(enumerate(p for group in groups for p in group["params"]))
    saved = state.get("module"), state.get("optimizer")
    sharded = any(map(is_sharded, numbered.values())) or any(map(is_sharded, module.parameters()))
    if not (sharded or _holds_shards(saved)):
        return state
    found = dict(state)
    named = dict(module.named_parameters(remove_duplicate=False))
    if isinstance(saved[0], Mapping):
        kind: Any = type(saved[0])
        found["module"] = kind({k: _fitted(v, named.get(k)) for k, v in saved[0].items()})
        if hasattr(saved[0], "_metadata"):
            found["module"]._metadata = saved[0]._metadata
    if isinstance(saved[1], Mapping) and isinstance(saved[1].get("state"), Mapping):
        states = {
            number: {k: _fitted(v, numbered.get(number)) for k, v in entries.items()}
            for number, entries in saved[1]["state"].items()
        }
        found["optimizer"] = {**saved[1], "state": states}
    return found


def _fitted(value: Any, parameter: Tensor | None) -> Any:
    if isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape:
        return as_sharded_as(value, parameter)
    return value


def _holds_shards(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_shards, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_shards, value))
    return is_sharded(value)
