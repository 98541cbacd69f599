"""What algorithms share that need the value of the upper loss, and not its gradient.

The lower problem's solution ``w_T(θ)`` is where its recorded optimizer steps end; they can be taken
again with other upper parameters or other random numbers. The upper loss ``F(θ, w_T)`` is then a
number that is measured, so neither it nor the lower loss has to be differentiable in ``θ``.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base import vectors
from ..base.errors import ConfigurationError, HypergradientError
from ..products.evaluation import Evaluation, require_recorded
from ..recording.trajectory import RecordedUpdate, Recording
from ..state.buffers import preserved_buffers
from ..state.random_streams import RandomState, preserved_streams
from ..unrolling import go_back_to, replay
from ..unrolling.replay import Observer
from .base import Hypergradient, Product
from .own_steps import require_optimizer_steps

if TYPE_CHECKING:
    from ..problem import Problem


class ValueHypergradient(Hypergradient):
    """An algorithm that estimates ``d/dθ F(θ, w_T(θ))`` from values of ``F``.

    It serves paths ``θ → w → θ`` only: there is no vector that a further problem could turn.
    """

    zeroth_order = True

    @abstractmethod
    def estimate(
        self, problem: Problem, value: Callable[[], Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """Return what ``F`` changes by through the lower problem, and how it was found.

        Args:
            problem: The lower problem, after the loop whose steps it recorded.
            value: Measures the upper loss at the lower problem's present parameters, on the upper
                problem's present batch and with the random numbers it has drawn: a 0-dim tensor
                without a graph. When autograd has the direct gradient ``∂F/∂θ``, the upper
                parameters are for this put back where they were.
            upper_parameters: ``θ``.
        """

    def vjp(
        self, problem: Problem, vector: Sequence[Tensor], upper_parameters: Sequence[Tensor]
    ) -> Product:
        """There is none.

        Raises:
            HypergradientError: Always.
        """
        del vector, upper_parameters
        raise HypergradientError(
            f"{type(self).__name__} of problem {problem.name!r} was asked for a vector-Jacobian "
            "product, but it works from values of the upper loss; call estimate, or choose a type "
            "such as 'unroll' for this problem."
        )

    def recording(self, problem: Problem) -> Recording:
        """Ask for the whole loop."""
        return Recording(updates=problem.config.unroll_steps, parameters=True, optimizer=True)

    def check(self, problem: Problem) -> None:
        """Refuse a problem whose steps cannot be taken again, or that is not next to its upper."""
        name = type(self).__name__
        require_optimizer_steps(problem, name, "choose an implicit method such as type='cg'")
        if problem.config.precision == "fp16":
            raise ConfigurationError(
                f"Problem {problem.name!r} asks for {name} with precision='fp16', whose loss "
                "scaling leaves steps out that cannot be told from others; use 'bf16' or 'fp32'."
            )
        if problem.config.hypergradient_parameters is not None:
            raise ConfigurationError(
                f"Problem {problem.name!r} asks for {name} with hypergradient_parameters, but it "
                "takes all its steps again and differentiates through no parameter; leave "
                "hypergradient_parameters out."
            )
        if problem.position.paths:
            raise ConfigurationError(
                f"Problem {problem.name!r} asks for {name}, which takes its steps again, but they "
                "follow hypergradients through problems below it; choose type='darts' or another "
                "method that works from a gradient."
            )
        for peer in problem.position.peers.values():
            for path in peer.position.paths:
                if problem in path[1:-1] and len(path) > 3:
                    line = " -> ".join(p.name for p in path)
                    raise ConfigurationError(
                        f"Problem {problem.name!r} asks for {name}, which has no vector to hand "
                        f"on, but it lies on the path {line}; choose a method that works from a "
                        "gradient, such as type='unroll'."
                    )


class Rollouts:
    """Takes the steps of a lower problem's last loop again; leaves no trace. ::

        with Rollouts(problem, upper_parameters) as rollouts:
            rollouts.run(rollouts.updates)
            loss = value()

    Args:
        problem: The lower problem.
        upper_parameters: ``θ``, which stays where the caller puts it.

    Attributes:
        updates: The recorded steps.
    """

    def __init__(self, problem: Problem, upper_parameters: Sequence[Tensor]) -> None:
        require_recorded(problem)
        above = set(upper_parameters)
        self.updates = [
            replace(update, start={p: t for p, t in update.start.items() if p not in above})
            for update in problem.trajectory.updates
        ]
        self._problem = problem
        self._stack = ExitStack()

    def __enter__(self) -> Rollouts:
        first = self.updates[0]
        own, modules = set(self._problem.parameters()), set(self._problem.module.modules())
        others = [p.data for p in first.start if p not in own]
        others += [
            owner._buffers[name].data  # type: ignore[union-attr]
            for (owner, name), _ in first.buffers
            if owner not in modules
        ]
        self._others = [(tensor, tensor.clone()) for tensor in others]
        self._stack.enter_context(Evaluation(self._problem, graph=True, in_full_precision=True))
        self._stack.enter_context(vectors.Displacement(first.start))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def run(self, updates: Sequence[RecordedUpdate], observe: Observer | None = None) -> None:
        """Take steps again; other problems are afterwards where they are now, not where they were
        at these steps."""
        replay(self._problem, updates, observe)
        self._put_others_back()

    def go_back(self) -> None:
        """Put the lower problem where the loop began."""
        go_back_to(self.updates[0])
        self._put_others_back()

    def _put_others_back(self) -> None:
        for tensor, value in self._others:
            tensor.copy_(value)


class UpperLoss:
    """The upper loss, measured again as often as asked; leaves no trace.

    To be made just before the loss is evaluated for training, so as to draw what that draws.

    Args:
        problem: The upper problem.
        evaluate: Returns its loss on its batch.
    """

    def __init__(self, problem: Problem, evaluate: Callable[[], Tensor]) -> None:
        self._problem = problem
        self._evaluate = evaluate
        self._random = RandomState(problem.device)

    def __call__(self) -> Tensor:
        """Return the loss at all problems' present parameters."""
        problem = self._problem
        # What the upper problem records of its own step is the first evaluation's.
        trajectory, under_way = problem.trajectory, problem.trajectory._open
        trajectory._open = None
        try:
            with (
                preserved_streams(problem.device),
                preserved_buffers(problem.all_buffer_slots()),
            ):
                self._random.restore()
                torch.clear_autocast_cache()
                loss = self._evaluate().detach()
        finally:
            trajectory._open = under_way
        wide = loss if loss.is_floating_point() and loss.dtype.itemsize >= 4 else loss.float()
        return problem.processes.mean([wide])[0]

    def holding(self, parameters: Sequence[Tensor]) -> Callable[[], Tensor]:
        """Return a function that puts ``parameters`` where they are now while it measures."""
        places = [p.data for p in parameters]
        home = [place.clone() for place in places]

        def value() -> Tensor:
            with vectors.Displacement(parameters):
                torch._foreach_copy_(places, home)
                return self()

        return value


def seed_of(*parts: object) -> int:
    """Return a seed that differs wherever one of the parts does."""
    return random.Random("/".join(map(str, parts))).getrandbits(63)


def standard_error(squares: Tensor, mean: Sequence[Tensor], samples: int) -> Tensor:
    """Return the standard error of a mean of vectors, as the norm over their entries.

    Args:
        squares: Sum of the squared norms of the samples.
        mean: Their mean.
        samples: Their number, at least 2.
    """
    spread = (squares - samples * vectors.norm(mean) ** 2).clamp(min=0.0)
    return (spread / (samples * (samples - 1))).sqrt()
