"""A run names the solves that are left with Betty's one iteration, once, and nothing else."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from support.small import bilevel, problem, single

from metaweight import Config, ConjugateGradient, Neumann, Nystrom


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is logged, and how loudly."""
    monkeypatch.setattr(logging.getLogger("metaweight"), "propagate", True)
    return lambda: [(r.levelname, r.getMessage()) for r in caplog.records]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            Config(type="cg"),
            "ConjugateGradient of problem 'inner' takes 1 iteration, the default, .* set "
            r"ConjugateGradient\(iterations=...\) or Config\(cg_iterations=...\)",
        ),
        (
            Config(type="neumann"),
            "Neumann of problem 'inner' takes 1 iteration, the default, .* set "
            r"Neumann\(iterations=...\) or Config\(neumann_iterations=...\)",
        ),
        (Config(type=ConjugateGradient(damping=0.1)), "ConjugateGradient of problem 'inner'"),
        (Config(type=Neumann(alpha=0.5)), "Neumann of problem 'inner'"),
    ],
)
def test_the_default_is_named(config: Config, words: str, said: Any) -> None:
    bilevel(inner_config=config, steps=3).run()
    ((level, text),) = said()
    assert level == "WARNING"
    assert re.match(words, text)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(type="cg", cg_iterations=1),
        Config(type="neumann", neumann_iterations=1),
        Config(type=ConjugateGradient(iterations=1)),
        Config(type=Neumann(iterations=1)),
        Config(type=Nystrom(rank=1)),
        Config(type="unroll"),
    ],
    ids=lambda config: repr(config.type),
)
def test_what_was_chosen_is_not(config: Config, said: Any) -> None:
    bilevel(inner_config=config, steps=2).run()
    assert said() == []


def test_nor_is_a_solve_that_nobody_asks_for(said: Any) -> None:
    single(problem(config=Config(type="cg")), steps=2).run()
    assert said() == []


def test_the_default_is_a_number_like_any_other() -> None:
    assert Config() == Config(cg_iterations=1, neumann_iterations=1, log_step=-1)
    assert repr(ConjugateGradient()) == repr(ConjugateGradient(iterations=1))
    assert ConjugateGradient() == ConjugateGradient(iterations=1)
