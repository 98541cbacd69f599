from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from metaweight import DataError
from metaweight.data import LabelledTensors, RandomCropFlip, TensorLoader


def make(size: int = 10) -> LabelledTensors:
    labels = torch.arange(size) % 3
    inputs = torch.arange(float(size)).unsqueeze(1)
    return LabelledTensors(inputs, labels, labels, torch.arange(size), 3)


def make_images(size: int = 10) -> LabelledTensors:
    inputs = torch.rand(size, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(size, dtype=torch.int64)
    return LabelledTensors(inputs, labels, labels, torch.arange(size), 1)


def endless(loader: TensorLoader) -> Iterator[tuple[torch.Tensor, ...]]:
    while True:
        yield from loader


def positions(loader: TensorLoader) -> list[list[int]]:
    return [batch[2].tolist() for batch in loader]


def test_batches_hold_the_samples_at_their_positions():
    data = make()
    loader = TensorLoader(data, 4, with_indices=True)
    seen = []
    for inputs, labels, where in loader:
        for i, position in enumerate(where.tolist()):
            assert torch.equal(inputs[i], data.inputs[position])
            assert labels[i] == data.labels[position]
        seen += where.tolist()
    assert sorted(seen) == list(range(10))


def test_without_indices_a_batch_is_a_pair():
    inputs, labels = next(iter(TensorLoader(make(), 4)))
    assert (inputs.shape, labels.shape) == ((4, 1), (4,))


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
def test_length_is_the_number_of_batches(batch_size, drop_last, replacement):
    loader = TensorLoader(
        make(), batch_size, drop_last=drop_last, with_replacement=replacement, with_indices=True
    )
    sizes = [len(batch) for batch in positions(loader)]
    if replacement:
        expected = {1: [1] * 10, 3: [3] * (3 if drop_last else 4), 5: [5, 5]}
        assert sizes == expected.get(batch_size, [batch_size])
    else:
        whole = {1: [1] * 10, 3: [3, 3, 3], 5: [5, 5]}.get(batch_size, [10])
        assert sizes == whole + ([1] if batch_size == 3 and not drop_last else [])
    assert len(loader) == len(sizes)


def test_without_shuffle_the_order_is_that_of_the_data():
    loader = TensorLoader(make(7), 3, shuffle=False, with_indices=True)
    assert positions(loader) == [[0, 1, 2], [3, 4, 5], [6]]
    assert positions(loader) == [[0, 1, 2], [3, 4, 5], [6]]


def test_the_seed_decides_the_sequence_and_epochs_differ():
    before = torch.random.get_rng_state()
    one, same, other = (TensorLoader(make(), 4, seed=s, with_indices=True) for s in (5, 5, 6))
    first, second = positions(one), positions(one)
    assert first != second
    assert [positions(same), positions(same)] == [first, second]
    assert positions(other) != first
    given = torch.Generator().manual_seed(5)
    assert positions(TensorLoader(make(), 4, generator=given, with_indices=True)) == first
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_order_is_as_likely():
    loader = TensorLoader(make(3), 3, with_indices=True)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(3000):
        order = tuple(positions(loader)[0])
        counts[order] = counts.get(order, 0) + 1
    # Each of 6 orders has mean 500 and standard deviation 20.4.
    assert len(counts) == 6
    assert all(abs(c - 500) < 102 for c in counts.values())


def test_replacement_draws_uniformly_and_repeats():
    loader = TensorLoader(make(4), 10_000, with_replacement=True, with_indices=True)
    (batch,) = positions(loader)
    counts = torch.bincount(torch.tensor(batch), minlength=4)
    # Binomial with n = 10 000 and p = 1/4: five standard deviations are 217.
    assert (counts - 2500).abs().max() < 217


def test_the_transform_sees_the_inputs_of_the_batch():
    loader = TensorLoader(make(5), 2, shuffle=False, transform=torch.neg)
    assert [inputs.flatten().tolist() for inputs, _ in loader] == [[0, -1], [-2, -3], [-4]]


def test_batches_do_not_share_memory_with_the_data():
    data = make()
    for inputs, labels in TensorLoader(data, 10, shuffle=False, device="cpu"):
        inputs.zero_()
        labels.zero_()
    assert data.inputs.sum() == 45
    assert data.labels.sum() == 9


def test_two_iterators_do_not_disturb_each_other():
    loader = TensorLoader(make(), 5, seed=2, with_indices=True)
    reference = TensorLoader(make(), 5, seed=2, with_indices=True)
    epochs = [positions(reference), positions(reference)]
    both = [(a[2].tolist(), b[2].tolist()) for a, b in zip(loader, loader, strict=True)]
    assert both == list(zip(*epochs, strict=True))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("delivered", [0, 1, 2, 3, 5])
def test_a_restored_loader_goes_on_where_it_was(delivered, replacement, shared):
    def build() -> TensorLoader:
        order = torch.Generator().manual_seed(1)
        crops = order if shared else torch.Generator().manual_seed(2)
        return TensorLoader(
            make_images(),
            4,
            generator=order,
            transform=RandomCropFlip(2, generator=crops),
            with_replacement=replacement,
            with_indices=True,
        )

    original, restored = build(), build()
    batches = endless(original)
    for _ in range(delivered):
        next(batches)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for expected, got in zip([next(batches) for _ in range(7)], endless(restored), strict=False):
        assert all(torch.equal(e, g) for e, g in zip(expected, got, strict=True))


def test_a_restored_epoch_has_only_its_remaining_batches():
    original = TensorLoader(make(), 4)
    iterator = iter(original)
    next(iterator)
    restored = TensorLoader(make(), 4)
    restored.load_state_dict(original.state_dict())
    assert [len(list(restored)), len(list(restored))] == [2, 3]
    next(iterator)
    next(iterator)
    restored.load_state_dict(original.state_dict())
    assert [len(list(restored)), len(list(restored))] == [0, 3]
    assert next(iterator, None) is None
    restored.load_state_dict(original.state_dict())
    assert len(list(restored)) == 3


def test_a_state_between_epochs_leads_to_the_same_next_epoch():
    original, restored = (TensorLoader(make(), 4, with_indices=True) for _ in range(2))
    list(original)
    restored.load_state_dict(original.state_dict())
    assert positions(restored) == positions(original)


def test_leaving_an_epoch_early_starts_a_new_one():
    loader = TensorLoader(make(), 4)
    next(iter(loader))
    assert len(list(loader)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 3}, "'batch_size': 4.* was given to one with .*'batch_size': 3"),
        ({"batch_size": 4, "transform": RandomCropFlip()}, "do not both have a state"),
    ],
)
def test_a_state_of_another_loader_is_refused(arguments, message):
    state = TensorLoader(make(), 4).state_dict()
    with pytest.raises(ValueError, match=message):
        TensorLoader(make(), **arguments).load_state_dict(state)


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (0, {"batch_size": 4}, "data without samples; give at least one"),
        (3, {"batch_size": 0}, "batch_size=0 was given; use at least 1"),
        (
            3,
            {"batch_size": 1, "with_replacement": True, "shuffle": False},
            "with_replacement=True was given with shuffle=False",
        ),
    ],
)
def test_impossible_loaders_are_refused(size, arguments, message):
    with pytest.raises(ValueError, match=message):
        TensorLoader(make(size), **arguments)


ROWS, CLASSES = [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]], [2, 0, 1]
PAIRS = {
    "tensors": (torch.tensor(ROWS), torch.tensor(CLASSES)),
    "NumPy": (np.array(ROWS), np.array(CLASSES, dtype=np.uint8)),
    "pandas": (pd.DataFrame(ROWS), pd.Series(CLASSES, dtype="int32")),
    "pandas, Int64": (pd.DataFrame(ROWS), pd.Series(CLASSES, dtype="Int64")),
    "lists": (ROWS, CLASSES),
    "TensorDataset": TensorDataset(torch.tensor(ROWS), torch.tensor(CLASSES, dtype=torch.int16)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_inputs_and_labels_are_read_as_labelled_tensors(kind):
    inputs, labels = next(iter(TensorLoader(PAIRS[kind], 3, shuffle=False)))
    assert torch.equal(inputs, torch.tensor(ROWS)) and inputs.dtype == torch.float32
    assert torch.equal(labels, torch.tensor(CLASSES)) and labels.dtype == torch.int64
    first = [batch[2].tolist() for batch in TensorLoader(PAIRS[kind], 2, seed=3, with_indices=True)]
    assert first == positions(TensorLoader(make(3), 2, seed=3, with_indices=True))


def test_only_numbers_that_are_no_tensor_take_the_default_type():
    for given, dtype in (
        (torch.tensor(ROWS, dtype=torch.float64), torch.float64),
        (np.array(ROWS), torch.float32),
        (np.array(ROWS, dtype=np.float16), torch.float16),
        (np.array([[1], [2], [3]], dtype=np.int32), torch.int32),
    ):
        assert TensorLoader((given, CLASSES), 3).data.inputs.dtype == dtype
    torch.set_default_dtype(torch.float64)
    try:
        assert TensorLoader((np.array(ROWS), CLASSES), 3).data.inputs.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_data_that_are_no_pair_are_refused():
    three = TensorDataset(*[torch.zeros(2)] * 3)
    for given, message in (
        ((torch.zeros(2),), r"type tuple of 1 parts; give LabelledTensors, a tuple \(inputs, lab"),
        (three, "type TensorDataset of 3 parts; give"),
        ([torch.zeros(2), [0, 1]], "type list; give"),
    ):
        with pytest.raises(DataError, match=message):
            TensorLoader(given, 2)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\) but inputs holds 3 samples"):
        TensorLoader((ROWS, [0, 1]), 2)
