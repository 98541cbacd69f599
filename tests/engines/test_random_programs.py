"""Programs drawn at random: what must hold of all of them, and what a loop by hand gives.

A failure shows the seed and the program; ``draw(seed)`` makes it again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.drawn_checks import check, check_streams
from support.drawn_naive import check_exact, check_still_uppers, exact
from support.random_programs import draw

FAST, SLOW = 5, 505
"""Where the seeds of the fast tests end, and those of the slow ones."""


def check_seeds(seeds: range, folder: Path) -> float:
    """Check programs; return the share of valid ones."""
    valid = 0
    for seed in seeds:
        valid += check(draw(seed), folder / str(seed))
        check_streams(draw(seed))
    return valid / len(seeds)


# The steps are counted by hooks of the optimizers.
COUNTED = pytest.mark.filterwarnings("ignore:The step hook Watch")

# Programs are drawn without regard for what a method advises against.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The hypergradient through problem .* difference, and its"),
    pytest.mark.filterwarnings("ignore:ConjugateGradient.* leaves a residual"),
]


@COUNTED
@pytest.mark.parametrize("first", range(0, FAST, 5))
def test_what_holds_of_every_program(first: int, tmp_path: Path) -> None:
    assert check_seeds(range(first, first + 5), tmp_path) > 0.5


@COUNTED
@pytest.mark.slow
@pytest.mark.parametrize("first", range(FAST, SLOW, 50))
def test_what_holds_of_every_program_of_many(first: int, tmp_path: Path) -> None:
    # Those that are refused are a quarter or so.
    assert check_seeds(range(first, first + 50), tmp_path) > 0.5


def test_leaves_under_upper_problems_that_do_not_move_train_as_if_alone() -> None:
    assert sum(check_still_uppers(draw(seed)) for seed in range(10)) > 4


@pytest.mark.slow
def test_many_leaves_under_upper_problems_that_do_not_move_train_as_if_alone() -> None:
    assert sum(check_still_uppers(draw(seed)) for seed in range(10, 300)) > 150


@pytest.mark.parametrize("seed", range(6))
def test_exact_unrolls_are_the_derivative_of_the_whole_loop(seed: int) -> None:
    check_exact(exact(seed))


@pytest.mark.slow
def test_many_exact_unrolls_are_the_derivative_of_the_whole_loop() -> None:
    for seed in range(6, 300):
        check_exact(exact(seed))
