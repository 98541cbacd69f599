"""What tests of problems share."""

import pytest
from metaweight.problems.kernels.linear import LEAST


@pytest.fixture
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let linear layers of any size have weight gradients without values."""
    for kind in ("cpu", "cuda"):
        monkeypatch.setitem(LEAST, kind, 0)
