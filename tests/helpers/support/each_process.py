"""Runs all checks of whole copies in one of several processes and writes down what they return."""

from __future__ import annotations

import sys
from pathlib import Path

from . import (  # noqa: F401 (they register themselves)
    absent_checks,
    accelerate_checks,
    criterion_checks,
    graph_checks,
    hook_checks,
    non_finite_checks,
    norm_checks,
    process_checks,
    sample_weight_checks,
    variance_checks,
)
from .checks import RESULTS, run_checks

if __name__ == "__main__":
    run_checks(RESULTS, Path(sys.argv[1]), sys.argv[2:])
