"""Batches of every structure, moved to a device that can be told apart from the CPU."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import pytest
import torch
from metaweight.problems.data.batches import move_batch
from torch.nn.utils.rnn import pack_sequence

META = torch.device("meta")
CPU = torch.device("cpu")


def tensor() -> torch.Tensor:
    return torch.ones(2)


class Pair(NamedTuple):
    inputs: Any
    labels: Any


class Encoding(collections.UserDict):  # type: ignore[type-arg]
    """What a tokenizer returns: a mapping that moves itself."""

    def to(self, device: torch.device) -> Encoding:
        return Encoding({key: value.to(device) for key, value in self.items()})


class Graph:
    """A graph batch: no mapping, but it can be moved."""

    def __init__(self, nodes: torch.Tensor) -> None:
        self.nodes = nodes

    def to(self, device: torch.device) -> Graph:
        return Graph(self.nodes.to(device))


def devices(batch: Any) -> list[str]:
    """Return the device types of all tensors in plain containers, in order."""
    if isinstance(batch, torch.Tensor):
        return [batch.device.type]
    if isinstance(batch, collections.abc.Mapping):
        return devices(list(batch.values()))
    if isinstance(batch, (list, tuple)):
        return [device for item in batch for device in devices(item)]
    return []


@pytest.mark.parametrize(
    ("batch", "tensors"),
    [
        (tensor(), 1),
        ((tensor(), tensor()), 2),
        ([tensor(), tensor()], 2),
        (Pair(tensor(), tensor()), 2),
        ({"x": tensor(), "y": tensor()}, 2),
        ({"x": {"ids": tensor(), "mask": [tensor()]}, "y": (tensor(),)}, 3),
        (collections.OrderedDict(b=tensor(), a=tensor()), 2),
        (collections.UserDict(x=tensor()), 1),
        (Encoding(x=tensor(), y=tensor()), 2),
        ((Pair({"x": tensor()}, [tensor()]), "name", 3, None), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_tensor_moves_and_the_structure_stays(batch: Any, tensors: int) -> None:
    moved = move_batch(batch, META)
    assert type(moved) is type(batch)
    assert devices(moved) == ["meta"] * tensors
    assert devices(batch) == ["cpu"] * tensors, "the batch given was changed"


def test_names_and_order_are_kept() -> None:
    moved = move_batch(Pair({"b": tensor(), "a": tensor()}, 5), META)
    assert moved._fields == ("inputs", "labels")
    assert list(moved.inputs) == ["b", "a"]
    assert moved.labels == 5


def test_an_object_that_can_move_is_asked_to() -> None:
    graph = Graph(tensor())
    assert move_batch([graph], META)[0].nodes.device == META
    assert graph.nodes.device == CPU


def test_a_packed_sequence_moves_by_its_own_rule() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(1)])
    moved = move_batch(packed, META)
    assert moved.data.device == META
    assert moved.batch_sizes.device == CPU
    assert type(moved) is type(packed)


@pytest.mark.parametrize("value", ["text", b"bytes", 3, 0.5, None, frozenset("ab"), object()])
def test_what_is_no_tensor_is_passed_through(value: Any) -> None:
    assert move_batch(value, META) is value
    assert move_batch((value, tensor()), META)[0] is value


def test_a_mapping_that_cannot_be_rebuilt_becomes_a_dictionary() -> None:
    class Fixed(collections.abc.Mapping):  # type: ignore[type-arg]
        def __init__(self, *, x: torch.Tensor) -> None:
            self._x = x

        def __getitem__(self, key: str) -> torch.Tensor:
            return {"x": self._x}[key]

        def __iter__(self) -> Any:
            return iter(["x"])

        def __len__(self) -> int:
            return 1

    moved = move_batch(Fixed(x=tensor()), META)
    assert type(moved) is dict
    assert devices(moved) == ["meta"]


def test_tensors_already_there_are_not_copied() -> None:
    given = tensor()
    assert move_batch(given, CPU) is given
    assert move_batch({"x": [given]}, CPU)["x"][0] is given
