from __future__ import annotations

import numpy as np
import pytest

from metaweight import ConfigurationError
from metaweight.plots import training_curves


def test_draws_the_mean_in_a_band_of_one_deviation():
    figure = training_curves({"ce": ([10, 20], [[1, 2], [3, 6]])}, value_name="accuracy")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2, 4])
    band = axes.collections[0].get_paths()[0].vertices
    # Deviations 1 and 2 around means 2 and 4.
    assert {(10, 1), (10, 3), (20, 2), (20, 6)} <= {tuple(point) for point in band}
    assert axes.get_ylabel() == "accuracy"


def test_a_single_run_has_no_band():
    (axes,) = training_curves({"ce": ([1, 2, 3], [4, 5, 6])}).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [4, 5, 6])
    assert not axes.collections


def test_curves_may_have_steps_of_their_own():
    (axes,) = training_curves({"a": ([1, 2], [3, 4]), "b": ([5], [6])}).axes
    assert [line.get_label() for line in axes.lines] == ["a", "b"]


@pytest.mark.parametrize(
    ("curves", "message"),
    [({}, "curves is empty"), ({"a": ([1, 2], [3])}, "'a' has 1 values but there are 2 steps")],
)
def test_refuses_what_does_not_fit(curves, message):
    with pytest.raises(ConfigurationError, match=message):
        training_curves(curves)
