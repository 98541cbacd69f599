"""Rows of padding of embeddings, which their gradient leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def shared_tables(networks: Iterable[nn.Module]) -> list[nn.Embedding]:
    """Return the embeddings with a row of padding whose table other layers of their network use."""
    return [
        layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None
        if sum(p is layer.weight for m in network.modules() for p in m._parameters.values()) > 1
    ]


@contextmanager
def held_padding_rows(tables: Iterable[nn.Embedding]) -> Iterator[None]:
    """Let embeddings return the present rows for padding inside a ``with`` statement.

    A table that other layers use too may be displaced in these rows. A difference of passes would
    then be the derivative by lookups that the gradient leaves out.
    """
    with ExitStack() as stack:
        for layer in tables:
            hook = _returning(layer.weight.detach()[layer.padding_idx].clone())
            handle = layer.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _returning(row: Tensor) -> Callable[..., Tensor]:
    def hook(layer: nn.Embedding, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        index = args[0] if args else kwargs["input"]
        return torch.where((index == layer.padding_idx).unsqueeze(-1), row, output)

    return hook
