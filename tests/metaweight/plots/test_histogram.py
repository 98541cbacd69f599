from __future__ import annotations

import sys

import pytest
import torch

from metaweight import ConfigurationError
from metaweight.plots import weight_histogram


def test_counts_right_and_wrong_labels_apart():
    weights = torch.tensor([0.1, 0.2, 0.9, 1.0])
    figure = weight_histogram(weights, torch.tensor([True, True, False, True]), bins=2)
    (axes,) = figure.axes
    # Bars from 0 to 0.5 and 0.5 to 1: first of the right labels, then of the wrong ones.
    assert [bar.get_height() for bar in axes.patches] == [0, 1, 2, 1]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["right labels (1)", "wrong labels (3)"]


def test_equal_weights_are_drawn():
    weight_histogram([0.0, 0.0], [False, True])


def test_needs_no_display_and_registers_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    weight_histogram([0.5, 0.7], [False, True])


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0.5], "weights has 1 values but there are 2 labels"), ([], "none empty")],
)
def test_refuses_what_does_not_fit(weights, message):
    with pytest.raises(ConfigurationError, match=message):
        weight_histogram(weights, [False, True])
