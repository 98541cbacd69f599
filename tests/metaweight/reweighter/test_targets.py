"""What labels of every type say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from metaweight.reweighter import Reweighter
from metaweight.reweighter.targets import Numbers

X = np.random.default_rng(0).normal(size=(40, 3))
TEXT = np.array(["a", "b"])[(X[:, 0] > 0).astype(int)].astype(object)
TEXT[:2] = "a", "b"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16])
def test_numbers_of_few_bits_are_scaled_in_double_precision(dtype: type) -> None:
    """The squares of these do not fit into 16 bits; rounded to them they differ by 1/1000."""
    numbers = 500 * np.random.default_rng(0).normal(size=40)
    found = Numbers.scaled(numbers.astype(dtype))
    np.testing.assert_allclose(found.mean, numbers.mean(), rtol=2e-2)
    np.testing.assert_allclose(found.deviation, numbers.std(), rtol=2e-3)


@pytest.mark.parametrize("where", ["y", "clean"])
@pytest.mark.parametrize(
    ("label", "said"),
    [
        (None, "Reweighter received the label None at index 7; give every sample a label"),
        (3, "received the labels 'a' at index 0 and 3 at index 7, which have no order; make all"),
    ],
)
def test_labels_without_an_order_are_refused(label: Any, said: str, where: str) -> None:
    broken = TEXT.copy()
    broken[7] = label
    y, clean = (broken, TEXT) if where == "y" else (TEXT, broken)
    with pytest.raises(ValueError, match=said):
        Reweighter(epochs=1).fit(X, y, clean=(X[:20], clean[:20]))


def test_sparse_labels_are_those_of_rows() -> None:
    rows = np.stack([X[:, 0] > 0, X[:, 1] > 0], 1).astype(int)
    found = [
        Reweighter(epochs=1, random_state=0).fit(X, kind(rows), clean=(X[:20], kind(rows[:20])))
        for kind in (np.asarray, csr_matrix)
    ]
    np.testing.assert_array_equal(*(model.predict_proba(X) for model in found))
