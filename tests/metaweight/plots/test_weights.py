from __future__ import annotations

import matplotlib.figure
import numpy as np
import pytest
import torch

from metaweight import ConfigurationError
from metaweight.plots import weight_against_loss


def test_one_function_gives_a_line_per_stage():
    losses = torch.linspace(0, 2, 5)
    moments = {"start": torch.full((5,), 0.5), "end": torch.tensor([1.0, 0.8, 0.5, 0.2, 0.1])}
    figure = weight_against_loss(losses, moments, title="weights")
    assert isinstance(figure, matplotlib.figure.Figure)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["start", "end"]
    np.testing.assert_allclose(axes.lines[1].get_xdata(), [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [1, 0.8, 0.5, 0.2, 0.1], rtol=1e-6)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("loss", "weight")


def test_groups_give_a_panel_per_moment_and_a_line_per_group(tmp_path):
    moments = {"start": [[1, 1], [1, 1], [1, 1]], "end": [[1, 2], [3, 4], [5, 6]]}
    figure = weight_against_loss([0, 1], moments, ["a", "b", "c"])
    start, end = figure.axes
    assert (start.get_title(), end.get_title()) == ("start", "end")
    assert [line.get_label() for line in end.lines] == ["a", "b", "c"]
    np.testing.assert_allclose(end.lines[1].get_ydata(), [3, 4])
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_weights_with_a_graph_are_drawn():
    weights = torch.rand(4, requires_grad=True)
    weight_against_loss(torch.rand(4), {"now": weights})


def test_many_groups_have_colours_of_their_own():
    figure = weight_against_loss([0, 1], {"now": np.random.rand(30, 2), "then": np.zeros((30, 2))})
    colours = {tuple(line.get_color()) for line in figure.axes[0].lines}
    assert len(colours) == 30


@pytest.mark.parametrize(
    ("moments", "names", "message"),
    [
        ({}, None, "weights is empty"),
        ({"a": [1, 2, 3]}, None, r"weights\['a'\] has 3 values but there are 2 losses"),
        ({"a": [[1, 2], [3, 4]], "b": [1, 2]}, None, "1 groups but the first stage has 2"),
        ({"a": [[1, 2], [3, 4]]}, ["only"], "1 group names were given for 2 groups"),
        ({"a": [[1, 2], [3]]}, None, "give rows of equal length"),
        ({"a": []}, None, "none empty"),
    ],
)
def test_refuses_what_does_not_fit(moments, names, message):
    with pytest.raises(ConfigurationError, match=message):
        weight_against_loss([0, 1], moments, names)
