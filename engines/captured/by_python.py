"""Iterations of a captured program that are left to Python."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from .feeding import Eager, fed
from .recorded import WrittenBack

if TYPE_CHECKING:
    from ..engine import Engine
    from ..execution import Execution


class ByPython:
    """Takes iterations by Python, and leaves states of methods in the tensors that a graph reads.

    Args:
        engine: Whose iterations.
        execution: What takes them.

    Attributes:
        pending: Batches that were drawn for steps that an error ended.
        done: How many iterations were taken since :meth:`begin`.
    """

    def __init__(self, engine: Engine, execution: Execution) -> None:
        self._engine, self._execution = engine, execution
        self.pending: Eager | None = None
        self.done = 0

    def begin(self) -> None:
        """Count iterations from here."""
        self.done = 0

    def drop(self) -> None:
        """Drop the batches that are left."""
        self.pending = None

    def take(self, iterations: int, feeding: Eager) -> int:
        """Take iterations on the batches that ``feeding`` has; return how many.

        After an error the next ones are taken on what is left.
        """
        self.pending = feeding
        try:
            with fed(self._engine.problems, feeding), self.keeping_methods():
                for _ in range(iterations):
                    self._execution.take()
                    self.done += 1
        finally:
            if feeding.is_empty:
                self.pending = None
        return iterations

    def take_one(self) -> int:
        """Take an iteration on batches of the loaders; return 1."""
        with self.keeping_methods():
            self._execution.take()
        return 1

    def keeping_methods(self) -> AbstractContextManager[None]:
        """Return a context at whose end new states of methods are written to the old tensors."""
        return WrittenBack([p.step_state.method_states for p in self._engine.problems])
