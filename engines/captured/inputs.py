"""What a graph is given: the tensors of the program, and batches as they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from metaweight.problems import ConfigurationError
from torch import Tensor

from .operations import Graph, storage_of


class Inputs:
    """The inputs of a graph.

    A batch is read where its loader has put it. It is copied to the place of the one that was
    captured if it lies in memory in another way, or if the steps write to it.

    Args:
        graph: The graph.
        places: The tensors of the batches that were captured.
    """

    def __init__(self, graph: Graph, places: Sequence[Tensor]) -> None:
        self._all = graph.inputs
        self._forms = list(map(_form_of, graph.inputs))
        numbers = {id(tensor): number for number, tensor in enumerate(graph.inputs)}
        written = {storage_of(tensor) for tensor in graph.written}
        self._written = written - {storage_of(tensor) for tensor in places}
        self._places = [
            (numbers[id(t)], t, None if storage_of(t) in written else _layout_of(t))
            if id(t) in numbers
            else None
            for t in places
        ]

    def are_as_captured(self) -> bool:
        """Return whether the tensors of the program still lie in memory as they did."""
        return self._forms == list(map(_form_of, self._all))

    def require_apart(self, values: Sequence[Tensor]) -> None:
        """Refuse batches that share memory with what the steps write to.

        Raises:
            ConfigurationError: For such batches.
        """
        if any(storage_of(value) in self._written for value in values):
            raise ConfigurationError(
                "EngineConfig(capture=...) draws the batches of several steps before it takes the "
                "first of them, and a batch shares memory with a parameter, a buffer or another "
                "tensor that these steps write to; read that in training_step, or leave capture "
                "out."
            )

    def kept(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of batches, copies of those that steps write to.

        So that the same steps can be taken again, after Python has taken them.
        """
        pairs = zip(values, self._places, strict=True)
        return [t.clone() if place and place[2] is None else t for t, place in pairs]

    @torch.no_grad()
    def given(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs.

        Args:
            values: The tensors of the batches, one for each place.
        """
        found = list(self._all)
        apart: tuple[list[Tensor], list[Tensor]] = [], []
        for value, place in zip(values, self._places, strict=True):
            if place is None:
                continue
            number, tensor, layout = place
            if layout is not None and layout == _layout_of(value):
                found[number] = value
            else:
                apart[0].append(tensor)
                apart[1].append(value)
        if apart[0]:
            torch._foreach_copy_(*apart)
        return found


def _layout_of(tensor: Tensor) -> Any:
    """Return how a tensor lies in memory; nothing for one of which that is not all."""
    is_plain = type(tensor) is Tensor and tensor.layout is torch.strided
    if not is_plain or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.device, tensor.stride()


def _form_of(tensor: Tensor) -> Any:
    strides = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    return tensor.dtype, tensor.device, tensor.shape, strides
