"""State as plain data: everything comes back as it was, and nothing else comes in."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from metaweight.problems.state.plain_data import LABEL, from_plain, to_plain
from torch import nn

from metaweight import CheckpointError


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    more: Any = None


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(to_plain(value, "It"), file)
    file.seek(0)
    return from_plain(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        2**80,
        0.1,
        float("inf"),
        1 + 2j,
        "text",
        b"bytes",
        torch.float16,
        torch.device("cpu"),
        torch.Size([2, 3]),
        [1, (2, [3])],
        {"a": {1: 2.0, None: "x", (1, "b"): ()}},
        OrderedDict(a=1, b=2),
        Counter("abca"),
        {1, 2},
        frozenset({"a"}),
        deque([1, 2], 5),
        Pair(1, (2, 3)),
    ],
    ids=repr,
)
def test_values_come_back_as_they_were(value: Any) -> None:
    found = through_a_file(value)
    assert found == value
    assert type(found) is type(value)


def test_a_queue_keeps_its_limit_and_a_default_dictionary_becomes_a_plain_one() -> None:
    assert through_a_file(deque([1], 2)).maxlen == 2
    assert through_a_file(defaultdict(int, a=1)) == {"a": 1}


@pytest.mark.parametrize("dtype", ["float32", "uint32", "int64", "bool"])
def test_arrays_and_their_numbers(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    found = through_a_file({"array": array[:, ::-1], "number": array[1, 1]})
    assert found["array"].dtype == array.dtype
    assert (found["array"] == array[:, ::-1]).all()
    assert found["number"] == array[1, 1] and type(found["number"]) in (int, float, bool)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.zeros(()).expand(4, 5),
        torch.arange(100)[40:50:2],
        torch.arange(10)[:0],
        torch.tensor([True, False]),
        torch.randn(3).bfloat16(),
        nn.Parameter(torch.randn(2)),
    ],
    ids=lambda t: f"{tuple(t.shape)} {t.dtype}",
)
def test_tensors_keep_values_types_and_strides(tensor: torch.Tensor) -> None:
    found = through_a_file(tensor)
    assert type(found) is torch.Tensor and not found.requires_grad
    assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride())
    assert torch.equal(found, tensor)


def test_a_slice_does_not_take_the_whole_of_its_tensor_along() -> None:
    plain = to_plain(torch.zeros(10_000)[:10], "It")
    assert plain.untyped_storage().nbytes() == 40


def test_a_copy_shares_nothing() -> None:
    tensor = torch.zeros(3)
    shared, copied = to_plain([tensor], "It"), to_plain([tensor], "It", copy=True)
    tensor += 1
    assert shared[0].sum() == 3 and copied[0].sum() == 0


def test_dataclasses_and_named_tuples_are_filled_without_a_call() -> None:
    found = through_a_file([Batch(torch.ones(2), {"k": Pair(1, 2)}), Pair(torch.ones(1), None)])
    assert isinstance(found[0], Batch) and torch.equal(found[0].inputs, torch.ones(2))
    assert found[0].more == {"k": Pair(1, 2)}
    assert isinstance(found[1], Pair)


def test_the_state_of_a_module_keeps_its_metadata() -> None:
    state = nn.BatchNorm1d(2).state_dict()
    found = through_a_file(state)
    assert found._metadata == state._metadata  # type: ignore[attr-defined]


class Thing:
    pass


class ReadsMore(dict):  # type: ignore[type-arg]
    pass


def local_class() -> Any:
    return namedtuple("Local", "a")(1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Thing(), r"It cannot be saved, because it is of type Thing; make it tensors, numbers"),
        ({"a": [Thing()]}, r"It\['a'\]\[0\] cannot be saved, because it is of type Thing"),
        ({Thing(): 1}, "a key of It cannot be saved, because it is of type Thing; use text"),
        (ReadsMore(a=1), "is of type ReadsMore; make it a dict"),
        (local_class(), "is of type Local; .* defined at the top of a module"),
        (lambda: 1, "is of type function"),
        (np.array(["a"]), "It cannot be saved, because it is of type <U1; give numbers"),
        ({LABEL: "deque"}, "a key of It cannot be saved"),
    ],
)
def test_anything_else_is_refused_by_its_place(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        to_plain(value, "It")


@pytest.mark.parametrize(
    "plain",
    [
        {LABEL: "code", "value": "1"},
        {LABEL: "class", "place": "os:system", "fields": {"command": "ls"}},
        {LABEL: "class", "place": "subprocess:Popen", "fields": {}},
        {LABEL: "class", "place": "not.imported:Anything", "fields": {}},
        {LABEL: "class", "place": f"{__name__}:Thing", "fields": {}},
        {LABEL: "class", "place": f"{__name__}:Pair", "fields": {"left": 1}},
        {LABEL: "class", "place": "", "fields": {}},
    ],
)
def test_labels_and_classes_that_are_not_ours_are_refused(plain: Any) -> None:
    with pytest.raises(CheckpointError, match="The checkpoint holds"):
        from_plain(plain)
