"""Loaders of captured steps: their errors, and batches of other sizes.

In float64, replayed operations are Python's own, one by one: parameters agree to rounding of the
optimizers' rules, some 1e-16 a step; 1e-12 leaves room for sixty.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.captured import assert_same, batches, is_captured, program, state


class Broken:
    """A loader that raises an error once, in place of a batch."""

    def __init__(self, given: list[Any], at: int) -> None:
        self._given, self._at = given, at
        self.drawn = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        self.drawn += 1
        if self.drawn == self._at:
            raise OSError("The disk is gone.")
        return self._given[self.drawn % len(self._given)]


@pytest.mark.parametrize("level", ["classifier", "weights"])
@pytest.mark.parametrize("at", [2, 12, 28, 30])
def test_an_error_of_a_loader_comes_where_it_came(level: str, at: int) -> None:
    """At every place of a graph of five iterations, of either level; nothing else is lost."""
    engines = []
    for capture in ({}, {"capture": "replay", "capture_iterations": 5}):
        engine = program(**capture)
        problem = getattr(engine, level)
        problem.set_train_data_loader(Broken(batches(7, 3), at))
        with pytest.raises(OSError, match="The disk is gone") as raised:
            engine.run()
        notes = raised.value.__notes__
        seen = (engine.global_step, engine.run_state.iteration, notes, state(engine))
        engine.run()
        engines.append((seen, engine))
    (expected, plain), (found, captured) = engines
    assert found[:3] == expected[:3]
    for a, b in zip(found[3], expected[3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert is_captured(captured)
    assert_same(captured, plain)


def test_an_exceptional_first_batch_is_not_what_is_captured() -> None:
    """The third batch is the first that is captured, and the only one of its size for long."""
    sizes = (12, 12, 9, *[12] * 40)
    engines = []
    for capture in (None, "replay"):
        engine = program(capture=capture)
        engine.classifier.set_train_data_loader(batches(43, 1, sizes))
        engine.run()
        engines.append(engine)
    assert is_captured(engines[1])
    assert engines[1]._captured._recorded.taken > 30
    assert_same(engines[1], engines[0])


def test_batches_that_are_mostly_left_are_told(caplog: pytest.LogCaptureFixture) -> None:
    engine = program(capture="replay", sizes=(12, 9, 8, 7, 6, 5, 4), train_iters=200)
    with caplog.at_level("WARNING"):
        engine.run()
    assert "left 20 periods to Python" in caplog.text
    assert "let loaders give batches of one size, such as by drop_last=True" in caplog.text
    assert caplog.text.count("to Python, whose batches") == 1
