"""Whether a loss reads a parameter that stands elsewhere for the time of a pass.

A list of parameters that was made before, or the parameter of another module, stays the original
where a pass puts other tensors in the places of the problem's module; its derivatives are then
those of a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..base.errors import LossError
from ..base.nested import leaves
from ..problem import Problem

# What is asked of a tensor apart from its values, or takes these for constants.
_ASKED = {
    *("__get__", "detach", "size", "dim", "ndimension", "numel", "nelement", "stride", "__len__"),
    *("is_floating_point", "is_complex", "element_size", "data_ptr", "get_device", "type"),
    *("is_contiguous", "storage_offset", "untyped_storage", "__hash__", "__repr__", "__format__"),
}


def without_references(
    problem: Problem, instead: Mapping[Tensor, Tensor]
) -> AbstractContextManager[object]:
    """Refuse that a loss reads parameters which others stand in for, inside a ``with`` statement:
    in the first such pass of a problem.

    Args:
        problem: The problem.
        instead: The parameters, and what stands in for each.

    Raises:
        LossError: Naming the parameter.
    """
    if problem.config.compile or not problem.step_state.looks_for_references():
        return nullcontext()
    names = {id(p): key for key, p in problem.module.named_parameters() if p in instead}
    return _Watch(problem.name, names)


class _Watch(TorchFunctionMode):
    def __init__(self, problem: str, names: Mapping[int, str]) -> None:
        super().__init__()
        self._problem = problem
        self._names = names

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if getattr(func, "__name__", "") not in _ASKED:
            for part in leaves([*args, *(kwargs or {}).values()]):
                if id(part) in self._names:
                    raise LossError(
                        f"The loss of problem {self._problem!r} reads the parameter "
                        f"{self._names[id(part)]!r} by a reference of its own, such as a list made "
                        "before, and not through self.module, in whose places its hypergradient "
                        "puts other tensors; read it from self.module in every step."
                    )
        return func(*args, **(kwargs or {}))
