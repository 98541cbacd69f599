from __future__ import annotations

import sys

import numpy as np
import pytest

from metaweight import ConfigurationError
from metaweight.plots import reweighting_summary

LOSSES, WEIGHTS, SUSPICIOUS = [0.1, 0.3, 2.0], [1.5, 1.3, 0.2], [False, False, True]


def test_what_is_drawn(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    history = {"epoch": [1, 2], "loss": [0.9, 0.5], "accuracy": [0.6, 0.8]}
    figure = reweighting_summary(LOSSES, WEIGHTS, SUSPICIOUS, history)
    points, bars, shares, curves = figure.axes
    others, suspicious = (part.get_offsets() for part in points.collections)
    np.testing.assert_array_equal(others, [[0.1, 1.5], [0.3, 1.3]])
    np.testing.assert_array_equal(suspicious, [[2.0, 0.2]])
    names = [text.get_text() for text in bars.get_legend().get_texts()]
    assert names == ["others (2)", "suspicious (1)"]
    for panel, name in ((curves, "loss"), (shares, "accuracy")):
        (line,) = panel.lines
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xydata(), np.stack([[1, 2], history[name]], 1))


def test_a_history_may_be_empty():
    assert len(reweighting_summary(LOSSES, WEIGHTS, SUSPICIOUS, {}).axes) == 4


@pytest.mark.parametrize(
    ("losses", "history", "message"),
    [
        (LOSSES[:2], {}, "losses has 2 values but there are 3 weights"),
        (LOSSES, {"epoch": [1], "loss": [1, 2]}, "has 2 values but there are 1 epochs"),
    ],
)
def test_refuses_what_does_not_fit(losses, history, message):
    with pytest.raises(ConfigurationError, match=message):
        reweighting_summary(losses, WEIGHTS, SUSPICIOUS, history)
