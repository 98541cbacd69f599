from __future__ import annotations

import pytest
import torch

from metaweight.data import LabelledTensors, meta_split


def noisy_data(size: int = 60, classes: int = 3) -> LabelledTensors:
    clean = torch.arange(size) % classes
    noisy = torch.where(torch.arange(size) % 5 == 0, (clean + 1) % classes, clean)
    inputs = torch.arange(float(size)).unsqueeze(1)
    return LabelledTensors(inputs, noisy, clean, torch.arange(100, 100 + size), classes)


def test_meta_is_balanced_clean_and_disjoint():
    data = noisy_data()
    rest, meta = meta_split(data, 4, generator=torch.Generator().manual_seed(0))
    assert meta.class_counts().tolist() == [4, 4, 4]
    assert not meta.wrong_labels.any()
    assert set(rest.indices.tolist()).isdisjoint(meta.indices.tolist())
    assert sorted(rest.indices.tolist() + meta.indices.tolist()) == data.indices.tolist()
    for part in (rest, meta):
        positions = part.indices - 100
        assert torch.equal(part.inputs, data.inputs[positions])
        assert torch.equal(part.clean_labels, data.clean_labels[positions])
    assert torch.equal(rest.labels, data.labels[rest.indices - 100])
    assert rest.wrong_labels.any()


def test_a_whole_class_may_be_taken():
    rest, meta = meta_split(noisy_data(6), 2, generator=torch.Generator())
    assert (len(rest), len(meta)) == (0, 6)


def test_the_generator_alone_decides():
    before = torch.random.get_rng_state()
    first, again, other = (
        meta_split(noisy_data(), 4, generator=torch.Generator().manual_seed(s))[1].indices
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_too_small_a_class_is_named():
    data = noisy_data(7)
    message = "asked for 3 samples of each of 3 classes, but class 1 has only 2; use per_class ≤ 2"
    with pytest.raises(ValueError, match=message):
        meta_split(data, 3, generator=torch.Generator())


def test_an_empty_meta_set_is_refused():
    with pytest.raises(ValueError, match="asked for 0 samples a class; use at least 1"):
        meta_split(noisy_data(), 0, generator=torch.Generator())
