"""Labels as people have them: every tool reads every kind alike, and leaves out what has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.label_tools import MEANS, OWN, WHOLE
from support.labelled_batch import HOT, KEPT, MISSING, B, X, Y, close

from metaweight import DataError, LossError
from metaweight._labels import read_labels
from metaweight.noise import (
    stratified_folds,
)

FOLDS = {"stratified_folds": lambda x, y: stratified_folds(y, 3)}


INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint64)


KINDS: dict[str, Any] = {
    **{str(dtype).removeprefix("torch."): Y.to(dtype) for dtype in INTEGERS},
    "NumPy": Y.numpy(),
    "NumPy, big endian": Y.numpy().astype(">i4"),
    "NumPy, backwards": Y.numpy()[::-1].copy()[::-1],
    "pandas": pd.Series(Y.numpy(), index=range(100, 100 + B)),
    "pandas Int64": pd.Series(Y.numpy(), dtype="Int64"),
    "pandas category": pd.Series(Y.numpy(), dtype="category"),
    "list": Y.tolist(),
    "tuple": tuple(Y.tolist()),
    "list of tensors": list(Y),
    "one-hot": HOT,
    "one-hot uint8": HOT.byte(),
    "one-hot bool": HOT.bool(),
    "one-hot NumPy": HOT.numpy(),
    "one-hot pandas": pd.get_dummies(pd.Series(Y.numpy())),
}


# Programs take time to make, and read labels as functions do.
FROM_PROGRAMS = ("FixMatch", "MeanTeacher", "MixMatch")


FEW_KINDS = ("uint8", "int32", "pandas", "list", "one-hot")


# All students read their batches alike.
READING = [tool for tool in MEANS | WHOLE | FOLDS if tool not in ("ICT", "PseudoLabel", "VAT")]


@pytest.mark.parametrize("tool", READING)
def test_labels_of_every_kind_are_read_alike(tool: str) -> None:
    value = (MEANS | WHOLE | FOLDS)[tool]
    right = value(X, Y)
    program = tool in FROM_PROGRAMS or "Classifier" in tool or "Learner" in tool
    for kind, labels in KINDS.items():
        if program and kind not in FEW_KINDS:
            continue
        if "one-hot" in kind and any(word in tool for word in OWN):
            continue  # A loss of one's own may be one of several labels each.
        found = value(X, labels)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(right)), kind


@pytest.mark.parametrize("tool", READING)
def test_floating_one_hot_labels_are_read_as_classes_or_probabilities(tool: str) -> None:
    if any(word in tool for word in (*OWN, "class weights")):
        pytest.skip("what it makes of probabilities is a matter of the loss")
    value = (MEANS | WHOLE | FOLDS)[tool]
    # In double precision, rounding of one sum over classes in place of a look-up.
    close(value(X, HOT.double()), value(X, Y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tool", MEANS)
@pytest.mark.parametrize("mark", [-1, -100, "both"])
def test_samples_without_a_label_count_nowhere(tool: str, mark: int | str) -> None:
    value = MEANS[tool]
    labels = Y.clone()
    labels[MISSING] = torch.tensor([-1, -100, -100, -1]) if mark == "both" else mark
    # In double precision, rounding of sums in another order.
    right = value(X[KEPT], Y[KEPT])
    given = labels.to(torch.int8).numpy() if mark == -100 else labels
    close(value(X, given), right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tool", [t for t in MEANS if "confident_learning" not in t])
def test_a_batch_without_any_label_has_the_value_zero(tool: str) -> None:
    found = torch.as_tensor(MEANS[tool](X, torch.full_like(Y, -1)))
    if tool == "confident_thresholds":
        assert found.eq(2).all(), "no probability reaches the threshold"
    else:
        assert not found.any()


@pytest.mark.parametrize("tool", WHOLE)
@pytest.mark.parametrize("mark", [-1, -100])
def test_where_every_sample_needs_one_a_missing_label_is_named(tool: str, mark: int) -> None:
    labels = Y.clone()
    labels[4] = mark
    with pytest.raises((LossError, DataError), match=f"leave out samples.* {mark} at index 4"):
        WHOLE[tool](X, labels)


@pytest.mark.parametrize("place", [(1,), (1, 0)])
def test_labels_that_are_masked_are_refused(place: tuple[int, ...]) -> None:
    labels = np.ma.array(np.eye(3, dtype=int) if len(place) > 1 else [0, 1, 2])
    found = read_labels(labels).classes
    assert found.tolist() == [0, 1, 2]
    labels[place] = np.ma.masked
    with pytest.raises(LossError, match=r"are masked at index .*; give what stands for that"):
        read_labels(labels)
