"""Loading of an optimizer's state without a change of precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what ``optimizer.state_dict()`` returned, every number in the precision it had.

    torch converts all but ``step`` to the parameter's type: for NAdam in double precision also the
    product of momenta, which is kept in single precision, so that the resumed run would differ from
    the uninterrupted one.
    """
    optimizer.load_state_dict(dict(state))
    saved = [number for group in state["param_groups"] for number in group["params"]]
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in zip(saved, owned, strict=True):
        entries = optimizer.state.get(parameter, {})
        for name, value in state["state"].get(number, {}).items():
            loaded = entries.get(name)
            both = isinstance(value, Tensor) and isinstance(loaded, Tensor)
            if both and loaded.dtype != value.dtype:
                entries[name] = value.detach().clone().to(loaded.device)
