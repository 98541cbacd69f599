"""What the tests of several processes let each of two do; ``each_process`` runs all of it.

Every check returns what the tests look at; an error is returned as its text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Check = Callable[[int, int, Path], Any]
RESULTS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Let every process run a function of rank, number of processes and a folder, by its name."""
    assert function.__name__ not in RESULTS
    RESULTS[function.__name__] = function
    return function
