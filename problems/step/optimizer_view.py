"""The view of a problem's optimizer step that hypergradient algorithms see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..problem import Problem
from ..unrolling import (
    moves_at_start,
    owns_settings,
    owns_start,
    settings_per_group,
    start_of_loop,
)


class OptimizerStepView:
    """The optimizer step of a problem."""

    __slots__ = ("_problem",)

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    @property
    def name(self) -> str:
        return self._problem.name

    @property
    def optimizer(self) -> Any:
        return self._problem.optimizer

    @property
    def is_custom(self) -> bool:
        return type(self._problem).custom_optimizer_step is not Problem.custom_optimizer_step

    @property
    def trained(self) -> list[Tensor]:
        return list(self._problem.trainable_parameters())

    @property
    def clipping(self) -> float:
        return self._problem.config.gradient_clipping

    @property
    def is_scaled(self) -> bool:
        return self._problem.config.precision == "fp16" or self._problem.scaler is not None

    @property
    def is_autocast(self) -> bool:
        return self._problem.config.precision != "fp32"

    @property
    def per_loop(self) -> int:
        return self._problem.config.unroll_steps

    @property
    def has_learned_settings(self) -> bool:
        return owns_settings(self._problem)

    def learned_settings(self, count: int) -> Sequence[Mapping[str, Tensor]]:
        with self._problem.step_state.counting(count):
            return settings_per_group(self._problem)

    @property
    def has_learned_start(self) -> bool:
        return owns_start(self._problem)

    @property
    def start_moves(self) -> bool:
        return moves_at_start(self._problem)

    def start_of_loop(self) -> Mapping[Tensor, Tensor]:
        return start_of_loop(self._problem)

    @contextmanager
    def whole_state(self) -> Iterator[Mapping[Tensor, Mapping[str, Tensor]]]:
        problem = self._problem
        with problem.step_state.processes.whole_optimizer(problem):
            yield problem.optimizer.state

    def backward(self, loss: Tensor) -> None:
        trained = [p for p in self.trained if p.requires_grad]
        self._problem.step_state.processes.backward(loss, trained)

    def average_gradients(self) -> None:
        self._problem.step_state.processes.average_gradients(self._problem)
