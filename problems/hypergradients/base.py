"""What every hypergradient algorithm offers.

For a problem with solution ``w*(θ)`` and an upper loss ``F(θ, w)``::

    dF/dθ = ∂F/∂θ + (dw*/dθ)ᵀ ∂F/∂w

An algorithm forms the second term for one edge of the graph: given ``v = ∂F/∂w`` it returns its
approximation of ``(dw*/dθ)ᵀ v``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..problem import Problem


class Hypergradient(ABC):
    """One way of differentiating through a lower problem.

    Subclass it to add an algorithm, and pass an instance as ``Config(type=...)`` of the lower
    problem. Instances hold settings only, never state.
    """

    @abstractmethod
    def product(
        self, problem: Problem, vector: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return ``(dw*/dθ)ᵀ v``.

        Args:
            problem: The lower problem, after the optimizer step(s) that are differentiated. Its
                ``window`` holds the batches and random states of the last one.
            vector: ``v``, one tensor per ``problem.meta_trainable_parameters()``.
            wanted: ``θ``, parameters of the problem above it on the path.

        Returns:
            One tensor per entry of ``wanted``, zeros where the lower loss does not depend on it.
        """

    def check(self, problem: Problem) -> None:
        """Refuse a problem the algorithm cannot serve, when the engine is built.

        Raises:
            ConfigurationError: Naming the problem and what to choose instead.
        """
        del problem

    def after_update(self, problem: Problem) -> None:
        """Read what the algorithm needs right after the optimizer step, while ``.grad`` exists."""
        del problem
