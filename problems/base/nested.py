"""Nests: tuples, named tuples, lists, mappings and nestings of these, around tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def map_tensors(change: Callable[..., Any], nest: Any, *others: Any) -> Any:
    """Return a nest with ``change(tensor, …)`` in the place of each tensor.

    Its containers keep their type and order; other objects are passed through.

    Args:
        change: Called with a tensor of ``nest`` and those at the same place of ``others``.
        nest: The nest.
        *others: Nests of the same form.
    """
    if isinstance(nest, Tensor):
        return change(nest, *others)
    if isinstance(nest, Mapping):
        content = {k: map_tensors(change, v, *[o[k] for o in others]) for k, v in nest.items()}
        return with_content(nest, content)
    if isinstance(nest, (tuple, list)):
        items = [map_tensors(change, *parts) for parts in zip(nest, *others, strict=True)]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    return nest


def leaves(nest: Any) -> Iterator[Any]:
    """Yield what a nest holds that is no container."""
    parts = nest.values() if isinstance(nest, Mapping) else nest
    if isinstance(nest, (Mapping, tuple, list)):
        for part in parts:
            yield from leaves(part)
    else:
        yield nest


def with_content(like: Mapping[Any, Any], content: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the type of another, or a dictionary where that cannot be made."""
    if type(like) is dict:
        return content
    try:
        return type(like)(content)  # type: ignore[call-arg]
    except TypeError:
        return content
