from __future__ import annotations

import subprocess
import sys

import pytest

from metaweight.plots import reweighting_summary, weight_histogram

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_notebook_shows_a_figure_as_a_picture():
    for figure in (
        weight_histogram([0.2, 0.9], [True, False]),
        reweighting_summary([0.1, 2.0], [0.9, 0.1], [False, True], {}),
    ):
        assert figure._repr_png_().startswith(PNG)


def test_it_is_shown_where_pyplot_was_never_imported():
    # IPython shows figures by itself once pyplot is set up, which would hide a missing picture.
    program = (
        "import sys\n"
        "from IPython.core.formatters import DisplayFormatter\n"
        "from metaweight.plots import weight_histogram\n"
        "shown, _ = DisplayFormatter().format(weight_histogram([0.2, 0.9], [True, False]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'image/png' in shown, sorted(shown)\n"
    )
    pytest.importorskip("IPython")
    subprocess.run([sys.executable, "-c", program], check=True)
