"""What every hypergradient algorithm offers.

For a problem with solution ``w*(θ)`` and an upper loss ``F(θ, w)``::

    dF/dθ = ∂F/∂θ + (dw*/dθ)ᵀ ∂F/∂w

An algorithm forms the second term for one edge of the graph: given ``v = ∂F/∂w`` it returns its
approximation of ``(dw*/dθ)ᵀ v``, and says how it came about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..base.errors import HypergradientError
from ..kernels.activation_reuse import ReusableActivations
from ..products.recorded_loss import RecordedLoss, require_recorded
from ..recording.trajectory import RecordedStep, Recording
from ..unrolling.replay import Repeatable


class LowerProblem(RecordedLoss, Repeatable, Protocol):
    """What an algorithm sees of the problem it differentiates through.

    From :class:`~metaweight.problems.products.recorded_loss.RecordedLoss` it has a ``name`` for
    messages, the parameters ``weights``, the recorded ``trajectory``, the ``loss`` of a recorded
    step, the ``sample_loss`` it may declare, the ``evaluation`` to compute these in, and the
    ``mean`` over processes. From :class:`~metaweight.problems.unrolling.replay.Repeatable` come its
    ``optimizer_step``, and ``evaluate`` and ``owns`` for taking steps again. What follows here
    tells where it stands.

    Anything that has these members can be differentiated through; a
    :class:`~metaweight.problems.Problem` is shown to algorithms as one by
    :func:`~metaweight.problems.step.lower_view.lower_view`.
    """

    @property
    def count(self) -> int:
        """Steps it has taken, for seeds that differ from one to the next."""

    @property
    def number_of_processes(self) -> int:
        """How many processes train it together."""

    @property
    def has_chosen_weights(self) -> bool:
        """Whether its configuration chooses the parameters hypergradients go through."""

    @property
    def has_problems_below(self) -> bool:
        """Whether it differentiates through other problems itself."""

    @property
    def paths(self) -> Sequence[tuple[str, ...]]:
        """The paths of hypergradients that go through it: names of problems, from the upper one
        down and up again."""

    def reusable(
        self, step: RecordedStep, also: Sequence[Tensor] = ()
    ) -> ReusableActivations | None:
        """Return what notes a pass over a micro-batch, to repeat of it what displaced weights
        change; nothing where that would be all of it.

        Args:
            step: The micro-batch.
            also: What else changes, or is differentiated by.
        """


def last_loss(lower: LowerProblem) -> Callable[..., Tensor]:
    """Return the mean loss of the last recorded optimizer step as a function for products.

    It is computed at the parameters' present values, so that it leaves its arguments aside: ::

        with lower.evaluation(second_order=True):
            mixed_vector_product(last_loss(lower), lower.weights, upper_parameters, vector)

    Raises:
        HypergradientError: When no step has been recorded.
    """
    steps = require_recorded(lower).steps

    def loss(*at: object) -> Tensor:
        del at
        return torch.stack([lower.loss(step) for step in steps]).mean()

    return loss


@dataclass(frozen=True)
class Status:
    """How a product was found. Tensors stay on their device; reading one waits for it.

    Attributes:
        method: Name of the algorithm's class.
        iterations: Iterations of its solver or optimizer steps it went back through, 0 if neither.
        residual: ``||(H + damping) x - v|| / ||v||`` of a linear solve, a 0-dim tensor.
        values: Whatever else is worth knowing, 0-dim tensors or numbers by name.
    """

    method: str
    iterations: int = 0
    residual: Tensor | None = None
    values: Mapping[str, Tensor | float] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the status as one line of text; reads the host."""
        pieces = [self.method]
        if self.iterations:
            pieces.append(f"iterations {self.iterations}")
        if self.residual is not None:
            pieces.append(f"residual {float(self.residual):.3g}")
        pieces += [f"{name} {float(value):.3g}" for name, value in self.values.items()]
        return ", ".join(pieces)


@dataclass(frozen=True)
class Approximation:
    """What a method takes for a derivative; told to the check of hypergradients.

    Attributes:
        alpha: Length of its displacement.
        setting: What users call that length.
        with_alpha: The method with another length, and without lasting effects.
        moves_detached: Whether it differentiates what the loss detaches.
    """

    alpha: float
    setting: str
    with_alpha: Callable[[float], Hypergradient]
    moves_detached: bool


class Product(NamedTuple):
    """``(dw*/dθ)ᵀ v``, one tensor per parameter asked for, and how it was found."""

    values: list[Tensor]
    status: Status


class Hypergradient(ABC):
    """One way of differentiating through a lower problem.

    Subclass it to add an algorithm, such as one that takes the inverse Hessian for the identity: ::

        class Identity(Hypergradient):
            def vjp(self, lower, vector, upper_parameters):
                with lower.evaluation(second_order=True):
                    mixed = mixed_vector_product(
                        last_loss(lower), lower.weights, upper_parameters, vector
                    )
                return Product([-t for t in mixed], Status("Identity"))

    Pass an instance as ``Config(type=...)`` of the lower problem. To give it a name that
    ``Config(type="name")`` understands, declare the class as an entry point of the group
    ``metaweight.hypergradients`` in your package. Instances hold settings only, never state.

    Attributes:
        zeroth_order: Whether it measures the upper loss instead of taking its gradient.
    """

    zeroth_order: ClassVar[bool] = False

    @abstractmethod
    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """Return ``(dw*/dθ)ᵀ v`` and how it was found.

        Args:
            lower: The lower problem, after the optimizer step(s) that are differentiated. Its
                ``trajectory`` holds what :meth:`recording` asked for: at least the batches and
                random states of the last step.
            vector: ``v``, one tensor per entry of ``lower.weights``; of several processes the same
                in all.
            upper_parameters: ``θ``, parameters of the problem above it on the path.

        Returns:
            One tensor per entry of ``upper_parameters``, zeros where the lower loss does not
            depend on it, and a status. Of several processes each returns the product of its own
            lower loss, and they are averaged afterwards; what has to be averaged on the way goes
            through ``lower.mean``.

        Raises:
            HypergradientError: When the result cannot be formed, for instance by a diverged solve.
                Of several processes in all or in none, so it must be decided by what is the same
                in all, such as means.
        """

    def recording(self, lower: LowerProblem) -> Recording:
        """Return what is to be kept of the problem's steps; by default the last one's batches."""
        del lower
        return Recording()

    def takes_first_derivatives(self, lower: LowerProblem) -> bool:
        """Whether it gets by with losses and ``lower.gradients``, differentiating nothing twice and
        nothing forward. It can then serve a problem whose parameters are sharded over processes;
        vectors along these are sharded alike. By default it does not."""
        del lower
        return False

    def approximation(self, lower: LowerProblem) -> Approximation | None:
        """Return how the method approximates derivatives; nothing when it takes them exactly."""
        del lower
        return None

    def check(self, lower: LowerProblem) -> None:
        """Refuse a problem the algorithm cannot serve, when the engine is built.

        Raises:
            ConfigurationError: Naming the problem and what to choose instead.
        """
        del lower


def require_finite(values: Sequence[Tensor], lower: RecordedLoss, method: str, remedy: str) -> None:
    """Refuse a result that is not finite, in all processes or in none. Reads the host once.

    Raises:
        HypergradientError: Naming the problem, the method and what to change.
    """
    (sums,) = lower.mean([torch.stack([t.sum().double() for t in values])])
    if not bool(torch.isfinite(sums).all()):
        raise HypergradientError(
            f"The hypergradient of {method} through problem {lower.name!r} is not finite; "
            f"{remedy}. Parameters are as they were."
        )
