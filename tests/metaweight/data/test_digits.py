from __future__ import annotations

import numpy as np
import pytest
import sklearn.datasets
import torch

from metaweight.data import load_digits


def test_both_parts_together_are_the_source():
    source = sklearn.datasets.load_digits()
    train, test = load_digits(test_size=300, seed=3)
    assert (len(train), len(test)) == (1497, 300)
    both = train.concat(test)
    assert sorted(both.indices.tolist()) == list(range(1797))
    np.testing.assert_allclose(
        both.inputs.numpy()[:, 0] * 16, source.images[both.indices.numpy()], atol=1e-6
    )
    np.testing.assert_array_equal(both.labels, source.target[both.indices.numpy()])
    assert torch.equal(both.labels, both.clean_labels)


def test_shape_range_and_class_counts():
    train, test = load_digits()
    assert test.inputs.shape == (500, 1, 8, 8)
    assert train.inputs.dtype == torch.float32
    assert (train.inputs.min(), train.inputs.max()) == (0, 1)
    total = train.class_counts() + test.class_counts()
    assert total.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_seed_alone_decides_the_split():
    before = torch.random.get_rng_state()
    first, again, other = (load_digits(seed=s)[1].indices for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("size", [0, 1797])
def test_an_empty_part_is_refused(size):
    with pytest.raises(ValueError, match=f"asked for {size} test samples of 1797; use 1 to 1796"):
        load_digits(test_size=size)
