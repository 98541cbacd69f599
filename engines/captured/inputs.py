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
    captured if it lies in memory in another way, or if the steps read that place by another tensor.

    Args:
        graph: The graph.
        places: The tensors of the batches that were captured.

    Raises:
        ConfigurationError: For a graph that writes to a batch.
    """

    def __init__(self, graph: Graph, places: Sequence[Tensor]) -> None:
        written = {storage_of(tensor) for tensor in graph.written}
        if not written.isdisjoint(map(storage_of, places)):
            raise ConfigurationError(
                "EngineConfig(capture=...) reads batches where their loaders have put them, and a "
                "step writes to its batch, as x.clamp_() does; write to a copy, such as "
                "x.clone(), or leave capture out."
            )
        self._all, self._written = graph.inputs, graph.written
        by_id = {id(tensor): number for number, tensor in enumerate(graph.inputs)}
        numbers = [by_id.get(id(place)) for place in places]
        self._own = [t for n, t in enumerate(graph.inputs) if n not in set(numbers)]
        read_otherwise = set(map(storage_of, self._own))
        self._places = [
            (number, place, None if storage_of(place) in read_otherwise else _layout_of(place))
            if number is not None or storage_of(place) in read_otherwise
            else None
            for number, place in zip(numbers, places, strict=True)
        ]
        self._forms = _forms_of(self._own)
        self._look()

    def have_moved(self) -> bool:
        """Return whether tensors of the program are of other memory, or of another type."""
        return self._memory != _memory_of(self._own)

    def are_as_captured(self) -> bool:
        """Return whether tensors of the program lie in memory as they did, wherever that is."""
        self._look()
        return self._forms == _forms_of(self._own)

    def require_apart(self, values: Sequence[Tensor]) -> None:
        """Refuse batches that share memory with what the steps write to.

        Raises:
            ConfigurationError: For such batches.
        """
        if not set(map(storage_of, self._written)).isdisjoint(map(storage_of, values)):
            raise _shared()

    def given(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs.

        Args:
            values: The tensors of the batches, one for each place.

        Raises:
            ConfigurationError: For a batch that is a tensor of the program.
        """
        found = list(self._all)
        apart: tuple[list[Tensor], list[Tensor]] = [], []
        starts = self._starts
        for value, place in zip(values, self._places, strict=True):
            if place is None:
                continue
            # As _start_of says; a batch is dense.
            if value.data_ptr() in starts:
                raise _shared()
            number, tensor, layout = place
            if number is not None and layout is not None and _lies_so(value, *layout):
                found[number] = value
            else:
                apart[0].append(tensor)
                apart[1].append(value)
        if apart[0]:
            with torch.no_grad():
                torch._foreach_copy_(*apart)
        return found

    def _look(self) -> None:
        self._memory = _memory_of(self._own)
        self._starts = {_start_of(t) for t in self._written if t.numel()}


def _shared() -> ConfigurationError:
    return ConfigurationError(
        "EngineConfig(capture=...) draws the batches of several steps before it takes the first of "
        "them, and a batch shares memory with a parameter, a buffer or another tensor that these "
        "steps write to; read that in training_step, or leave capture out."
    )


def _layout_of(tensor: Tensor) -> tuple[torch.device, tuple[int, ...]] | None:
    """Return how a tensor lies in memory; nothing for one of which that is not all."""
    layout = tensor.device, tensor.stride()
    return layout if _lies_so(tensor, *layout) else None


def _lies_so(tensor: Tensor, device: torch.device, strides: tuple[int, ...]) -> bool:
    """Return whether a tensor lies in memory so, and that is all there is to it."""
    return (
        type(tensor) is Tensor
        and tensor.stride() == strides
        and tensor.device == device
        and not (tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor())
    )


def _start_of(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)


def _memory_of(tensors: Sequence[Tensor]) -> list[Any]:
    return [(_start_of(tensor), tensor.dtype) for tensor in tensors]


def _forms_of(tensors: Sequence[Tensor]) -> list[Any]:
    """Return all that operations are chosen by, and which tensors share memory."""
    storages = list(map(storage_of, tensors))
    found = []
    for tensor, storage in zip(tensors, storages, strict=True):
        strides = tensor.stride() if tensor.layout is torch.strided else None
        is_lazy = tensor.is_conj(), tensor.is_neg()
        found.append(
            (tensor.dtype, tensor.device, tensor.shape, strides, *is_lazy, storages.index(storage))
        )
    return found
