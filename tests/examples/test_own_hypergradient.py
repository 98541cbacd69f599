"""The example of a hypergradient of one's own."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "own_hypergradient.py"


def test_it_is_exact_along_one_direction_and_not_along_five() -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    # Rounding of double precision, over some hundred operations.
    assert main(1, steps=10) < 1e-13
    assert main(5, steps=10) > 0.1
