"""Check whether a loss depends on parameters."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def reaches(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Return whether the graph of ``loss`` contains one of ``parameters``."""
    upper_parameters = set(parameters)
    if loss in upper_parameters:
        return True
    stack, seen = [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) in upper_parameters:
            return True
        stack += [following for following, _ in node.next_functions]
    return False
