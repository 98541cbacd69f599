"""Tensors that are kept, made where ``torch.inference_mode`` may be on, as in a validation.

A tensor made in inference mode can never be written to, or enter a graph, outside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


def without_graph(function: F) -> F:
    """Let a function run without a graph and out of inference mode, so that it can keep tensors."""
    return torch.inference_mode(mode=False)(torch.no_grad()(function))


@without_graph
def ordinary(value: T) -> T:
    """Return a tensor made in inference mode as one that can be used outside."""
    made_there = isinstance(value, torch.Tensor) and value.is_inference()
    return value.clone() if made_there else value  # type: ignore[attr-defined,no-any-return]


@without_graph
def with_ordinary_buffers(module: nn.Module) -> None:
    """Replace buffers that were made in inference mode by equal ones that can be used outside."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if buffer.is_inference():
                owner._buffers[name] = ordinary(buffer)
