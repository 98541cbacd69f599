from __future__ import annotations

import numpy as np
import pytest

from metaweight import ConfigurationError
from metaweight.plots import per_class_accuracy


def test_few_classes_are_bars_of_the_mean_over_runs():
    figure = per_class_accuracy({"ce": [[10, 20], [30, 60]], "other": [50, 70]}, ["cat", "dog"])
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, [20, 40, 50, 70])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ce", "other"]


def test_many_classes_are_lines():
    (axes,) = per_class_accuracy({"ce": np.arange(100)}).axes
    assert not axes.patches
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.arange(100))


def test_a_class_that_was_not_tested_does_not_count():
    (axes,) = per_class_accuracy({"ce": [[10, np.nan], [30, 60]]}).axes
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [20, 60])


@pytest.mark.parametrize(
    ("accuracies", "names", "message"),
    [
        ({}, None, "accuracies is empty"),
        ({"a": [1, 2], "b": [1]}, None, r"accuracies\['b'\] has 1 values but there are 2 classes"),
        ({"a": [1, 2]}, ["cat"], "1 class names were given for 2 classes"),
    ],
)
def test_refuses_what_does_not_fit(accuracies, names, message):
    with pytest.raises(ConfigurationError, match=message):
        per_class_accuracy(accuracies, names)
