"""What a hypergradient algorithm returns, and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from .base import Hypergradient


@dataclass(frozen=True)
class Status:
    """How a product was computed. Tensors stay on their device; reading one synchronises with it.

    Attributes:
        method: Class name of the algorithm.
        iterations: Solver iterations, or optimizer steps differentiated through; 0 if neither.
        residual: ``||(H + damping) x - v|| / ||v||`` of a linear solve, a 0-dim tensor.
        values: Further 0-dim tensors or numbers, by name.
        advice: What to change, in words, of which a run warns once; empty if all is well.
    """

    method: str
    iterations: int = 0
    residual: Tensor | None = None
    values: Mapping[str, Tensor | float] = field(default_factory=dict)
    advice: str = ""

    def describe(self) -> str:
        """Return the status as one line of text; synchronises with the device."""
        pieces = [self.method]
        if self.iterations:
            pieces.append(f"iterations {self.iterations}")
        if self.residual is not None:
            pieces.append(f"residual {float(self.residual):.3g}")
        pieces += [f"{name} {float(value):.3g}" for name, value in self.values.items()]
        return ", ".join(pieces)


@dataclass(frozen=True)
class Approximation:
    """How a method approximates derivatives; read by ``engine.check_hypergradient()``.

    Attributes:
        alpha: Length of its displacement.
        setting: Name of that length in the settings.
        with_alpha: Returns the method with another length and without side effects.
        moves_detached: Whether it differentiates what the loss detaches.
    """

    alpha: float
    setting: str
    with_alpha: Callable[[float], Hypergradient]
    moves_detached: bool


class Product(NamedTuple):
    """``(dw*/dθ)ᵀ v``, one tensor per upper parameter, and the status of its computation.

    A method with ``keeps_state`` adds what the next product along the same path starts from.
    """

    values: list[Tensor]
    status: Status
    state: Mapping[str, Any] | None = None


class ConvergedSolve(NamedTuple):
    """A method that takes the linear solve of another to convergence; read by
    ``engine.check_hypergradient()``.

    Attributes:
        method: The method to compare with.
        remedy: What to change for a smaller residual.
    """

    method: Hypergradient
    remedy: str
