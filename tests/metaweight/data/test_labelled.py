from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from metaweight.data import LabelledTensors


def make(labels: list[int], clean: list[int] | None = None, num_classes: int = 3):
    size = len(labels)
    return LabelledTensors(
        torch.arange(2.0 * size).view(size, 2),
        torch.tensor(labels),
        torch.tensor(labels if clean is None else clean),
        torch.arange(10, 10 + size),
        num_classes,
    )


def test_subset_picks_in_the_order_given_as_a_loop_would():
    data = make([0, 1, 2, 1], [0, 2, 2, 1])
    positions = [3, 0, 3]
    part = data.subset(torch.tensor(positions))
    assert part.inputs.tolist() == [data.inputs[p].tolist() for p in positions]
    assert part.labels.tolist() == [1, 0, 1]
    assert part.clean_labels.tolist() == [1, 0, 1]
    assert part.indices.tolist() == [13, 10, 13]


def test_subset_accepts_a_mask():
    part = make([0, 1, 2, 1]).subset(torch.tensor([True, False, False, True]))
    assert part.indices.tolist() == [10, 13]


def test_subset_of_nothing_keeps_the_sample_shape():
    part = make([0, 1]).subset(torch.tensor([], dtype=torch.int64))
    assert len(part) == 0
    assert part.inputs.shape == (0, 2)
    assert part.class_counts().tolist() == [0, 0, 0]


def test_subset_does_not_share_memory():
    data = make([0, 1, 2])
    data.subset(torch.arange(3)).inputs.zero_()
    assert data.inputs.sum() == 15


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([0, 2]), r"positions 0 to 2 of 2 samples; give positions in \[0, 2\)"),
        (torch.tensor([-1]), "positions -1 to -1 of 2"),
        (torch.tensor([0.0]), r"dtype torch.float32 and shape \(1,\); give int64"),
        (torch.tensor([True]), r"bool mask of shape \(2,\)"),
    ],
)
def test_subset_refuses_what_is_no_position(positions, message):
    with pytest.raises(ValueError, match=message):
        make([0, 1]).subset(positions)


def test_with_labels_keeps_the_clean_ones():
    data = make([0, 1, 2])
    given = torch.tensor([0, 0, 1])
    noisy = data.with_labels(given)
    given.fill_(2)
    assert noisy.labels.tolist() == [0, 0, 1]
    assert noisy.clean_labels.tolist() == [0, 1, 2]
    assert noisy.wrong_labels.tolist() == [False, True, True]
    assert data.labels.tolist() == [0, 1, 2]
    assert not data.wrong_labels.any()


def test_one_tensor_given_for_both_labels_is_separated():
    labels = torch.tensor([0, 1])
    data = LabelledTensors(torch.zeros(2, 1), labels, labels, torch.arange(2), 2)
    data.labels[0] = 1
    assert data.clean_labels.tolist() == [0, 1]
    assert labels.tolist() == [0, 1]


def test_class_counts_count_the_labels_and_absent_classes():
    assert make([0, 1, 1], [2, 2, 2], num_classes=4).class_counts().tolist() == [1, 2, 0, 0]


def test_concat_appends_and_copies():
    first, second = make([0, 1]), make([2], [0])
    both = first.concat(second)
    assert both.labels.tolist() == [0, 1, 2]
    assert both.clean_labels.tolist() == [0, 1, 0]
    assert both.indices.tolist() == [10, 11, 10]
    both.inputs.zero_()
    assert first.inputs.sum() == 6


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make([0], num_classes=4), "num_classes 3 with data of num_classes 4"),
        (
            LabelledTensors(
                torch.zeros(1, 5), torch.tensor([0]), torch.tensor([0]), torch.arange(1), 3
            ),
            r"sample shape \(2,\) with data of sample shape \(5,\)",
        ),
        (
            LabelledTensors(
                torch.zeros(1, 2, dtype=torch.uint8),
                torch.tensor([0]),
                torch.tensor([0]),
                torch.arange(1),
                3,
            ),
            "input dtype torch.float32 with data of input dtype torch.uint8; make both alike",
        ),
    ],
)
def test_concat_refuses_different_data(other, message):
    with pytest.raises(ValueError, match=message):
        make([0]).concat(other)


def test_to_moves_every_tensor():
    moved = make([0, 1]).to("cpu")
    assert moved.device == torch.device("cpu")
    assert moved.labels.tolist() == [0, 1]


def test_nothing_can_be_reassigned():
    with pytest.raises(FrozenInstanceError):
        make([0]).num_classes = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0])}, r"labels has shape \(1,\) but inputs holds 2 samples"),
        ({"clean_labels": torch.zeros(2, 1).long()}, r"clean_labels has shape \(2, 1\)"),
        ({"labels": torch.tensor([0.0, 1.5])}, "labels of .* torch.float32.*index 1 holds 1.5"),
        ({"labels": torch.tensor([0, 2])}, r"labels span 0 to 2 but num_classes=2"),
        ({"clean_labels": torch.tensor([-1, 0])}, r"clean_labels span -1 to 0"),
        ({"indices": torch.tensor([-3, 0])}, "indices reach down to -3"),
        ({"num_classes": 0}, "num_classes=0 was given"),
        ({"inputs": torch.tensor(1.0)}, r"single number; give a tensor of shape \(N, ...\)"),
        ({"inputs": torch.zeros(2, 1, device="meta")}, "labels is on cpu but inputs on meta"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fields = {
        "inputs": torch.zeros(2, 1),
        "labels": torch.tensor([0, 1]),
        "clean_labels": torch.tensor([0, 1]),
        "indices": torch.arange(2),
        "num_classes": 2,
    }
    with pytest.raises(ValueError, match=message):
        LabelledTensors(**(fields | change))
