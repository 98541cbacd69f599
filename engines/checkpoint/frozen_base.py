"""What a checkpoint leaves out with ``EngineConfig(adapters_only=True)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from metaweight.problems.persistence.frozen import fingerprints, frozen_tensors

if TYPE_CHECKING:
    from ..engine import Engine


class FrozenBase:
    """The buffers and frozen parameters of a program as it was built, by their fingerprints.

    Args:
        asked: Whether checkpoints leave out what has not changed since.
    """

    def __init__(self, asked: bool) -> None:
        self._asked = asked
        self._built: Mapping[str, Mapping[str, int]] | None = None

    def note(self, engine: Engine) -> None:
        """Take what is there as what the program was built with; only the first call does.

        Call it before a state is loaded: of a program that is resumed, what is loaded is no longer
        as it was built.
        """
        if self._asked and self._built is None:
            self._built = _present(engine)

    def unchanged(self, engine: Engine) -> dict[str, dict[str, int]]:
        """Return the fingerprints of what is frozen and as it was built, for each problem."""
        self.note(engine)
        if self._built is None:
            return {}
        return {
            problem: {n: f for n, f in found.items() if self._built[problem].get(n) == f}
            for problem, found in _present(engine).items()
        }


def _present(engine: Engine) -> dict[str, dict[str, int]]:
    return {p.name: fingerprints(frozen_tensors(p.module)) for p in engine.problems}
