"""Which parameters a loss depends on, read from its graph.

In ``L = f(w, θ) + g(θ)`` only the first term has a mixed second derivative, so a parameter counts
as one that ``w`` answers to where it shares a term with ``w``. Terms are separated as far as sums,
means, shapes and constant factors allow; everything else counts as one term.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

LINEAR = frozenset(
    f"{name}Backward{number}"
    for name in (
        *("Add", "Sub", "Neg", "Sum", "Mean", "Stack", "Cat", "ToCopy", "Clone", "Alias"),
        *("Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias", "Expand", "Select"),
    )
    for number in range(2)
)
PRODUCTS = ("MulBackward0", "DivBackward0")


def reaches(loss: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Return whether the graph of ``loss`` contains one of ``parameters``."""
    return bool(reached(loss, parameters))


def reached(loss: Tensor, parameters: Iterable[Tensor]) -> set[Tensor]:
    """Return those of ``parameters`` that the graph of ``loss`` contains."""
    looked_for = dict.fromkeys(parameters)
    if loss in looked_for:
        return {loss}
    return _named(list(looked_for), _contents(loss.grad_fn, list(looked_for)).get(loss.grad_fn, 0))


def reached_beside(
    loss: Tensor, parameters: Iterable[Tensor], weights: Iterable[Tensor]
) -> set[Tensor]:
    """Return those of ``parameters`` that share a term of ``loss`` with one of ``weights``.

    Where the graph contains no weight at all, as with weights that are sharded or replaced, every
    term counts as having one.
    """
    looked_for, beside = list(dict.fromkeys(parameters)), list(dict.fromkeys(weights))
    contents = _contents(loss.grad_fn, [*looked_for, *beside])
    weight = ((1 << len(beside)) - 1) << len(looked_for)
    if not contents.get(loss.grad_fn, 0) & weight:
        return reached(loss, looked_for)
    found = 0
    for term in _terms(loss.grad_fn):
        found |= contents[term] if contents[term] & weight else 0
    return _named(looked_for, found)


def _named(tensors: list[Tensor], bits: int) -> set[Tensor]:
    return {tensor for i, tensor in enumerate(tensors) if bits >> i & 1}


def _contents(root: Any, tensors: list[Tensor]) -> dict[Any, int]:
    """Return for every node of a graph which of the tensors are below it, as bits."""
    bits: dict[Any, int] = {tensor: 1 << i for i, tensor in enumerate(tensors)}
    found: dict[Any, int] = {}
    stack = [] if root is None else [root]
    while stack:
        node = stack[-1]
        below = [following for following, _ in node.next_functions if following is not None]
        waiting = [] if node in found else [n for n in below if n not in found]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if node not in found:
            found[node] = bits.get(getattr(node, "variable", None), 0)
            for following in below:
                found[node] |= found[following]
    return found


def _terms(root: Any) -> list[Any]:
    """Return nodes whose sum, with constant factors, is the root's value."""
    terms, stack, seen = [], [root], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        below = [following for following, _ in node.next_functions]
        name = node.name()
        # A factor, or a divisor, without a graph is a constant.
        by_constant = (name in PRODUCTS and None in below[1:]) or (
            name == PRODUCTS[0] and None in below
        )
        if name in LINEAR or by_constant:
            stack += [following for following in below if following is not None]
        else:
            terms.append(node)
    return terms
