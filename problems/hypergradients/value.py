"""Base of algorithms that need the value of the upper loss, and not its gradient.

The recorded optimizer steps of the lower problem end at ``w_T(θ)``. They can be replayed with other
upper parameters or other random numbers. The upper loss ``F(θ, w_T)`` is then only evaluated, so
neither it nor the lower loss has to be differentiable in ``θ``.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from torch import Tensor

from ..base import vectors
from ..base.displacement import Displacement
from ..base.errors import ConfigurationError, HypergradientError
from ..products.recorded_loss import require_recorded
from ..recording.recorded_steps import RecordedUpdate, Recording
from ..unrolling import replay, restore_start, why_not_copied
from ..unrolling.replay import Observer
from .base import Hypergradient, LowerProblem
from .optimizer_steps import require_optimizer_steps
from .product import Product


class ValueHypergradient(Hypergradient):
    """An algorithm that estimates ``d/dθ F(θ, w_T(θ))`` from values of ``F``.

    It supports paths ``θ → w → θ`` only: there is no vector to pass to a further problem.
    """

    zeroth_order = True
    follows_optimizer = True

    @property
    def in_full_precision(self) -> bool:
        return False

    @abstractmethod
    def estimate(
        self, lower: LowerProblem, value: Callable[[], Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """Return the derivative of ``F`` through the lower problem, and a status.

        Args:
            lower: The lower problem, after the recorded loop.
            value: Returns the upper loss at the lower problem's present parameters, on the upper
                problem's batch and with its random numbers, as a 0-dim tensor without a graph. If
                autograd computes the direct gradient ``∂F/∂θ``, ``value`` uses the original ``θ``.
            upper_parameters: ``θ``.
        """

    def vjp(
        self, lower: LowerProblem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """Refuse, since values give no vector-Jacobian product.

        Raises:
            HypergradientError: Always.
        """
        del vector, upper_parameters
        raise HypergradientError(
            f"{type(self).__name__} of problem {lower.name!r} was asked for a vector-Jacobian "
            "product, but it works from values of the upper loss; call estimate, or choose a type "
            "such as 'unroll' for this problem."
        )

    def recording(self, lower: LowerProblem) -> Recording:
        """Return a recording of the whole loop."""
        return Recording(updates=lower.optimizer_step.per_loop, parameters=True, optimizer=True)

    def check(self, lower: LowerProblem) -> None:
        """Refuse a problem whose steps cannot be replayed, or on a path through others."""
        name = type(self).__name__
        step = lower.optimizer_step
        require_optimizer_steps(step, name, "choose an implicit method such as type='cg'")
        reason = why_not_copied(step.optimizer)
        if reason is not None:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for {name}, which takes the steps of "
                f"{type(step.optimizer).__name__} again, but {reason}; use another optimizer, or "
                "a method that takes no steps again, such as type='darts'."
            )
        if step.is_scaled:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for {name} with precision='fp16', whose loss "
                "scaling skips steps, which a replay does not notice; use 'bf16' or 'fp32'."
            )
        if lower.has_chosen_weights:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for {name} with hypergradient_parameters, but it "
                "takes all its steps again and differentiates through no parameter; leave "
                "hypergradient_parameters out."
            )
        if lower.has_problems_below:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for {name}, which takes its steps again, but they "
                "follow hypergradients through problems below it; choose type='darts' or another "
                "method that works from a gradient."
            )
        for path in lower.paths:
            if len(path) > 3:
                raise ConfigurationError(
                    f"Problem {lower.name!r} asks for {name}, which gives no vector for a next "
                    f"problem, but it lies on the path {' -> '.join(path)}; choose a method that "
                    "works from a gradient, such as type='unroll'."
                )


class Rollouts:
    """Replays the steps of a lower problem's last loop; has no side effects. ::

        with Rollouts(lower, upper_parameters) as rollouts:
            rollouts.run(rollouts.updates)
            loss = value()

    Args:
        lower: The lower problem.
        upper_parameters: ``θ``, which is not restored to the recorded values.

    Attributes:
        updates: The recorded steps.
    """

    def __init__(self, lower: LowerProblem, upper_parameters: Sequence[Tensor]) -> None:
        require_recorded(lower)
        above = set(upper_parameters)
        self.updates = [
            replace(update, start={p: t for p, t in update.start.items() if p not in above})
            for update in lower.trajectory.differentiable(
                start_moves=lower.optimizer_step.start_moves
            )
        ]
        self._lower = lower
        self._stack = ExitStack()

    def __enter__(self) -> Rollouts:
        first = self.updates[0]
        owns = self._lower.owns
        others = [p.data for p in first.start if not owns(p)]
        others += [
            owner._buffers[name].data  # type: ignore[union-attr]
            for (owner, name), _ in first.buffers
            if not owns(owner)
        ]
        self._others = [(tensor, tensor.clone()) for tensor in others]
        self._stack.enter_context(self._lower.evaluation(graph=True))
        self._stack.enter_context(Displacement(first.start))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self, updates: Sequence[RecordedUpdate], observe: Observer | None = None) -> None:
        """Replay steps, then restore the parameters and buffers of other problems."""
        replay(self._lower, updates, observe)
        self._restore_others()

    def restore_start(self) -> None:
        """Set the lower problem to the start of the loop."""
        restore_start(self.updates[0])
        self._restore_others()

    def _restore_others(self) -> None:
        for tensor, value in self._others:
            tensor.copy_(value)


def seed_of(*keys: object) -> int:
    """Return a seed that differs if one of the keys differs."""
    return random.Random("/".join(map(str, keys))).getrandbits(63)


def standard_error(squares: Tensor, mean: Sequence[Tensor], samples: int) -> Tensor:
    """Return the standard error of a mean of vectors, as the norm over their entries.

    Args:
        squares: Sum of the squared norms of the samples.
        mean: Mean of the samples.
        samples: Number of samples, at least 2.
    """
    spread = (squares - samples * vectors.norm(mean) ** 2).clamp(min=0.0)
    return (spread / (samples * (samples - 1))).sqrt()
