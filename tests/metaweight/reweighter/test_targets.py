"""What labels of every type say."""

from __future__ import annotations

import numpy as np
import pytest

from metaweight.reweighter.targets import Numbers


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16])
def test_numbers_of_few_bits_are_scaled_in_double_precision(dtype: type) -> None:
    """The squares of these do not fit into 16 bits; rounded to them they differ by 1/1000."""
    numbers = 500 * np.random.default_rng(0).normal(size=40)
    found = Numbers.scaled(numbers.astype(dtype))
    np.testing.assert_allclose(found.mean, numbers.mean(), rtol=2e-2)
    np.testing.assert_allclose(found.deviation, numbers.std(), rtol=2e-3)
