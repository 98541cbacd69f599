"""Interface of hypergradient algorithms.

For a problem with solution ``w*(θ)`` and an upper loss ``F(θ, w)``::

    dF/dθ = ∂F/∂θ + (dw*/dθ)ᵀ ∂F/∂w

An algorithm forms the second term for one edge of the graph: given ``v = ∂F/∂w``, it returns an
approximation of ``(dw*/dθ)ᵀ v`` and a status.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import HypergradientError
from ..kernels.activation_reuse import ReusableActivations
from ..products.recorded_loss import RecordedLoss, require_recorded
from ..recording.recorded_steps import BatchNumber, RecordedStep, Recording
from ..unrolling.replay import Repeatable
from .product import Approximation, ConvergedSolve, Product


class LowerProblem(RecordedLoss, Repeatable, Protocol):
    """The lower problem, as an algorithm sees it.

    :class:`~metaweight.problems.products.recorded_loss.RecordedLoss` gives it a ``name`` for
    messages, the parameters ``weights``, the recorded ``trajectory``, the ``loss`` of a recorded
    step, the ``sample_loss`` it may declare, the ``evaluation`` context, and the ``mean`` over
    processes. :class:`~metaweight.problems.unrolling.replay.Repeatable` gives it an
    ``optimizer_step``, and ``evaluate`` and ``owns`` for the replay of steps.

    Any object with these members can be differentiated through.
    :func:`~metaweight.problems.step.lower_view.lower_view` makes one from a
    :class:`~metaweight.problems.Problem`.
    """

    @property
    def count(self) -> int:
        """Steps it has taken; makes seeds differ from step to step."""

    @property
    def has_chosen_weights(self) -> bool:
        """Whether ``Config(hypergradient_parameters=...)`` is set."""

    @property
    def has_problems_below(self) -> bool:
        """Whether it differentiates through other problems itself."""

    def computes_in(self, *, in_full_precision: bool = True) -> torch.dtype:
        """Return the type of numbers that passes over its loss compute in, with autocast or
        without."""

    @property
    def has_forward_derivatives(self) -> bool:
        """Whether dual numbers may pass through its network: it is neither sharded over processes
        nor scripted."""

    @property
    def path(self) -> tuple[str, ...]:
        """The path that the vector comes along: names of problems, from the upper problem whose
        loss it is the gradient of, down and back up to it. Empty outside of a program."""

    @property
    def state(self) -> Mapping[str, Any] | None:
        """What a method with ``keeps_state`` returned along this path for the upper problem's last
        accepted step; ``None`` before the first."""

    def draw(self, number: int = 1) -> list[RecordedStep]:
        """Return batches of the method's own, from the loaders that the problem trains on.

        They come after the batches of its steps, and count in its epochs. Asked again within one
        gradient of the upper problem, it returns the same ones.
        """

    @property
    def batch_numbers(self) -> tuple[BatchNumber | None, BatchNumber | None]:
        """The numbers of the last recorded batch, with ``Recording(numbers=True)``, and of the
        upper problem's present one, each among the batches of its loader."""

    def require_batch_numbers(self, method: str, instead: str) -> None:
        """Refuse loaders, of the problem and of those above it, whose batches differ from epoch to
        epoch or have no number.

        Args:
            method: Class name of the method.
            instead: What to do without such loaders.

        Raises:
            ConfigurationError: Naming the problem and what to give it.
        """

    def as_given(self) -> LowerProblem:
        """Return the same problem with its losses as it computes them, also where the optimizer
        maximises them; for methods that differentiate the optimizer's steps."""

    @property
    def paths(self) -> Sequence[tuple[str, ...]]:
        """Hypergradient paths through it: names of problems, from the upper problem down and back
        up to it."""

    def reusable(
        self, step: RecordedStep, also: Sequence[Tensor] = ()
    ) -> ReusableActivations | None:
        """Return a store of activations that do not depend on the weights, for a second pass at
        displaced weights; ``None`` if every activation depends on them.

        Args:
            step: The micro-batch.
            also: Further tensors that change, or that the loss is differentiated by.
        """


def last_loss(lower: LowerProblem) -> Callable[..., Tensor]:
    """Return the mean loss of the last recorded optimizer step as a function for products.

    The function ignores its arguments: it uses the present values of the parameters. ::

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


class Hypergradient(ABC):
    """An algorithm that differentiates through a lower problem.

    Subclass it to add one. This one replaces the inverse Hessian by the identity: ::

        class Identity(Hypergradient):
            def vjp(self, lower, vector, upper_parameters):
                with lower.evaluation(second_order=True):
                    mixed = mixed_vector_product(
                        last_loss(lower), lower.weights, upper_parameters, vector
                    )
                return Product([-t for t in mixed], Status("Identity"))

    Pass an instance as ``Config(type=...)`` of the lower problem. For ``Config(type="name")``,
    declare the class as an entry point of the group ``metaweight.hypergradients`` in your package.
    Instances hold settings only, never state: see ``keeps_state``.

    Attributes:
        zeroth_order: Whether it measures the upper loss instead of taking its gradient.
        follows_optimizer: Whether it differentiates or repeats the optimizer's steps, and so
            allows parameter groups of which some minimise the loss and some maximise it.
        follows_gradient_hooks: Whether it differentiates the hooks of ``Tensor.register_hook``.
        spends_vector: Whether it reads the vector once, for a displacement along it, which frees
            its memory meanwhile. It holds of this class alone, since a subclass may read it again.
    """

    zeroth_order: ClassVar[bool] = False
    follows_optimizer: ClassVar[bool] = False
    follows_gradient_hooks: ClassVar[bool] = False
    spends_vector: ClassVar[bool] = False

    @property
    def keeps_state(self) -> bool:
        """Whether products return a state, and start from ``lower.state``. ``False`` by default.

        There is one state for each path through the problem, kept and saved by the engine, and
        replaced only when the upper problem takes its step. The vector is then without the loss
        scale of half precision. Tensors in it must be equal in all processes.
        """
        return False

    @property
    def in_full_precision(self) -> bool:
        """Whether its passes compute without autocast, also where training uses it."""
        return True

    @abstractmethod
    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """Return ``(dw*/dθ)ᵀ v`` and a status.

        Args:
            lower: The lower problem, after the optimizer steps to differentiate. Its
                ``trajectory`` holds what :meth:`recording` asked for, at least the batches and
                random states of the last step.
            vector: ``v``, one tensor per entry of ``lower.weights``; the same in all processes.
            upper_parameters: ``θ``, parameters of the next problem on the path.

        Returns:
            One tensor per entry of ``upper_parameters``, zeros where the lower loss does not
            depend on it, and a status. With several processes, each returns the product of its own
            lower loss, and the engine averages the products. Use ``lower.mean`` for quantities
            that must be averaged earlier.

        Raises:
            HypergradientError: When the result cannot be formed, for instance because a solve
                diverged. All processes or none must raise, so decide by values that are equal in
                all, such as means.
        """

    def recording(self, lower: LowerProblem) -> Recording:
        """Return what to record of the problem's steps; by default the batches of the last one."""
        del lower
        return Recording()

    def passes(self, lower: LowerProblem) -> str:
        """Return in words the passes of the lower loss that a product takes, for
        ``engine.describe()``; empty if they are not known, by default."""
        del lower
        return ""

    def repeats_steps(self, lower: LowerProblem) -> bool:
        """Return whether it differentiates or repeats the problem's steps, so that callbacks and
        hooks which change them are warned of. ``follows_optimizer`` by default."""
        del lower
        return self.follows_optimizer

    def sees_settings(self, lower: LowerProblem) -> bool:
        """Return whether learned optimizer settings of the problem get a hypergradient. ``False``
        by default."""
        del lower
        return False

    def sees_start(self, lower: LowerProblem) -> bool:
        """Return whether a learned start of the problem's loops gets a hypergradient. ``False`` by
        default."""
        del lower
        return False

    def takes_first_derivatives(self, lower: LowerProblem) -> bool:
        """Return whether the method needs only losses and ``lower.gradients``: no second
        derivatives and no forward mode. It then supports parameters sharded over processes, with
        vectors sharded alike. ``False`` by default."""
        del lower
        return False

    def approximation(self, lower: LowerProblem) -> Approximation | None:
        """Return how the method approximates derivatives; ``None`` if it computes them exactly."""
        del lower
        return None

    def converged_solve(self) -> ConvergedSolve | None:
        """Return the method with its linear solve converged; ``None`` if it solves no system."""
        return None

    def check(self, lower: LowerProblem) -> None:
        """Refuse a problem the algorithm does not support; called when the engine is built.

        Raises:
            ConfigurationError: Naming the problem and what to choose instead.
        """
        del lower


def require_finite(
    values: Sequence[Tensor], lower: RecordedLoss, method: str, remedy: str | Callable[[], str]
) -> None:
    """Refuse a result that is not finite, in all processes or in none. Synchronises once.

    Args:
        values: The result.
        lower: The problem.
        method: Class name of the method.
        remedy: What to change, or what finds that out.

    Raises:
        HypergradientError: Naming the problem, the method and what to change.
    """
    numbers = [vectors.real(t) for t in values]
    wide = vectors.accumulation_dtype(*numbers)
    (sums,) = lower.mean([torch.stack([t.sum(dtype=wide) for t in numbers])])

    def error() -> HypergradientError:
        advice = remedy if isinstance(remedy, str) else remedy()
        return HypergradientError(
            f"The hypergradient of {method} through problem {lower.name!r} is not finite; "
            f"{advice}. Parameters are as they were."
        )

    lower.refuse_if(~torch.isfinite(sums).all(), error)
