"""Positions of samples in batches: known wherever they stand, and never taken for labels."""

from __future__ import annotations

import pickle
from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from metaweight.problems import DataError
from metaweight.problems.base.nested import map_tensors
from metaweight.problems.data.batches import move_batch
from metaweight.problems.state.plain_data import from_plain, to_plain
from torch import Tensor

from metaweight import Engine
from metaweight._batch import split_batch
from metaweight.data import SampleLoader
from metaweight.weighting import MetaWeightNet, SampleWeights, WeightedClassifier, WeightLearner

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


class LabelFirst(NamedTuple):
    label: int
    image: Tensor


class Masked(NamedTuple):
    image: Tensor
    mask: Tensor
    label: int


class Grouped(NamedTuple):
    image: Tensor
    label: int
    group: int


IMAGES = [torch.full((2,), float(i)) for i in range(4)]
FORMS: dict[str, Any] = {
    "pairs": lambda i: (IMAGES[i], 10 + i),
    "more labels": lambda i: (IMAGES[i], 10 + i, 7, 8),
    "mappings": lambda i: {"image": IMAGES[i], "label": 10 + i},
    "names": lambda i: Grouped(IMAGES[i], 10 + i, 7),
    "names, label first": lambda i: LabelFirst(10 + i, IMAGES[i]),
    "names, label last": lambda i: Masked(IMAGES[i], IMAGES[3 - i], 10 + i),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [0, 1])
def test_positions_are_known_wherever_they_stand(form: str, workers: int) -> None:
    samples = [FORMS[form](i) for i in range(4)]
    (batch,) = SampleLoader(samples, 4, with_indices=True, num_workers=workers, shuffle=False)
    sent = pickle.loads(pickle.dumps(batch))
    kept = from_plain(to_plain(batch, "a batch"))
    for each in (
        batch,
        move_batch(batch, torch.device("cpu")),
        sent,
        kept,
        map_tensors(id_, batch),
    ):
        assert type(each) is type(batch)
        inputs, labels, indices = split_batch("A test", each)
        assert labels.tolist() == [10, 11, 12, 13]
        assert indices.tolist() == [0, 1, 2, 3]
        image = inputs["image"] if isinstance(inputs, dict) else inputs
        assert torch.equal(image, torch.stack(IMAGES))
    if hasattr(samples[0], "_fields"):
        assert batch._fields == (*samples[0]._fields, "indices")
        assert batch.label.tolist() == labels.tolist()


def id_(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("form", [*FORMS][2:])
def test_a_transform_sees_what_it_sees_without_positions(form: str) -> None:
    seen: list[Any] = []

    def note(given: Any) -> Any:
        seen.append(list(given) if isinstance(given, dict) else tuple(given.shape))
        return given

    for given in (False, True):
        samples = [FORMS[form](i) for i in range(4)]
        next(iter(SampleLoader(samples, 4, with_indices=given, transform=note)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("with_indices", [False, True])
def test_named_parts_have_places(with_indices: bool) -> None:
    samples = [FORMS["names, label last"](i) for i in range(4)]
    (batch,) = SampleLoader(samples, 4, with_indices=with_indices, shuffle=False)
    inputs, labels, indices = split_batch("A test", batch, 0, -1)
    assert torch.equal(inputs, torch.stack(IMAGES)) and labels.tolist() == [10, 11, 12, 13]
    assert (None if indices is None else indices.tolist()) == (
        [0, 1, 2, 3] if with_indices else None
    )


def test_positions_of_inputs_alone_are_no_labels() -> None:
    (batch,) = SampleLoader(IMAGES, 4, with_indices=True, shuffle=False)
    alone, positions = batch
    found = split_batch("A test", batch, labelled=False)
    assert found.inputs is alone and found.indices is positions and found.labels is None
    with pytest.raises(DataError, match=r"A test received .* without labels; give batches"):
        split_batch("A test", batch)


@pytest.mark.parametrize("form", ["more labels", "names, label last"])
def test_positions_are_found_in_compiled_steps(form: str) -> None:
    (batch,) = SampleLoader([FORMS[form](i) for i in range(4)], 4, with_indices=True, shuffle=False)

    @torch.compile(backend="eager", fullgraph=True)
    def places(batch: Any) -> Tensor:
        return split_batch("A test", batch).indices + 1

    assert places(batch).tolist() == [1, 2, 3, 4]


def test_a_mapping_keeps_its_type() -> None:
    def joined(samples: list[Any]) -> Any:
        return UserDict(image=torch.stack([s[0] for s in samples]))

    samples = [FORMS["pairs"](i) for i in range(4)]
    (batch,) = SampleLoader(samples, 4, with_indices=True, shuffle=False, collate_fn=joined)
    assert type(batch) is UserDict
    assert batch["indices"].tolist() == [0, 1, 2, 3]


def test_weights_are_recorded_by_positions() -> None:
    """Experts' labels are the third part of a sample: read as positions, they counted instead."""
    samples = [(torch.rand(4), i % 3, i // 2 % 3) for i in range(12)]
    net, weigh = torch.nn.Linear(4, 3), MetaWeightNet(4)
    loaders = [SampleLoader(samples, 4, with_indices=given) for given in (True, False)]
    lower = WeightedClassifier(
        "c",
        weights="w",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.1),
        train_data_loader=loaders[0],
    )
    upper = WeightLearner(
        "w",
        classifier="c",
        module=weigh,
        optimizer=torch.optim.SGD(weigh.parameters(), 0.1),
        train_data_loader=loaders[1],
    )
    hook = SampleWeights("c", 12)
    Engine.bilevel(upper, lower, train_iters=6, progress=False, hooks=[hook]).run()
    assert hook.counts.tolist() == [2] * 12


def test_a_part_that_is_called_as_positions_are_is_refused() -> None:
    samples = [{"x": torch.ones(2), "label": 0, "indices": torch.ones(3)}] * 4
    said = r"SampleLoader was to add the positions of samples as 'indices' to a dict with 'x'"
    with pytest.raises(DataError, match=said):
        next(iter(SampleLoader(samples, 2, with_indices=True)))
