"""A network and its weight network, in a loop that steps the network by itself.

The two are problems of an engine that never runs. A loss is recorded as the engine records one;
each step of the network's optimizer, whoever takes it, is followed by the step of the weight
network that the engine's schedule has next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metaweight.engines import Engine, EngineConfig
from metaweight.engines.program.instructions import Action
from metaweight.problems import CheckpointError, Config, Problem, ReweightedProblem, Reweighting
from metaweight.problems.persistence.names import Names
from metaweight.problems.persistence.problem_state import (
    load_problem,
    load_step_data,
    problem_to_plain,
    require_same_form,
    require_same_lengths,
)
from metaweight.problems.recording.recorded_steps import RecordedStep
from metaweight.problems.state.plain_data import from_plain
from metaweight.problems.state.random_streams import RandomState
from metaweight.problems.step.absent_hypergradients import note_dependence
from metaweight.problems.step.descent import descend


class Pace(Protocol):
    """What the settings of weights say about steps: of the weights, and how they are derived."""

    @property
    def derivative(self) -> Reweighting:
        """How the hypergradient is formed."""

    @property
    def every(self) -> int:
        """Optimizer steps from one step of the weights to the next."""

    @property
    def warmup(self) -> float:
        """Share of the optimizer steps before weights are learned."""


def lower_config(pace: Pace, steps: int, precision: str) -> Config:
    """Return the settings of the network's problem, in a run of so many optimizer steps."""
    return Config(
        type=pace.derivative,
        unroll_steps=pace.every,
        warmup_steps=round(pace.warmup * steps),
        precision=precision,
    )


class TwoLevels:
    """A network's problem and that of its weights, beside a loop that steps the network.

    Args:
        lower: The network's problem.
        learner: That of its weights, stepped here.
        optimizer: The network's optimizer; each of its steps ends an update.
        device: Where both live.

    Raises:
        MetaweightError: What an engine refuses.
    """

    def __init__(
        self,
        lower: ReweightedProblem,
        learner: Problem,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self.optimizer = optimizer
        self.lower = lower
        self.learner = learner
        self._engine = Engine(
            [learner, lower],
            EngineConfig(train_iters=0, device=device, progress=False),
            {"u2l": {learner: [lower]}, "l2u": {lower: [learner]}},
        )
        self._is_open = False
        optimizer.register_step_post_hook(self._after_step)

    def loss(self, batch: Any) -> Tensor:
        """Return ``mean_i V_i(sg(l); θ) l_i`` of a micro-batch of the next optimizer step."""
        trajectory = self.lower.step_state.trajectory
        if not self._is_open:
            self._is_open = True
            if self._is_recorded():
                trajectory.open(self.lower)
        if trajectory.under_way is not None:
            trajectory.add(RecordedStep(batch, RandomState(self.lower.device)))
        loss = self.lower.evaluate(batch).loss
        note_dependence(self.lower, loss)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the weight network, its optimizer, its loader and the schedule."""
        names = Names(self._engine.problems)
        return {
            "learner": problem_to_plain(self.learner, names, loop_open=False),
            "schedule": self._engine.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            CheckpointError: When it is of another weight network or another clean loader.
        """
        saved = state["learner"]
        require_same_form(self.learner, saved)
        require_same_lengths(self.learner, saved)
        load_problem(self.learner, saved)
        load_step_data(self.learner, saved, Names(self._engine.problems))
        self._engine.schedule.load_state_dict(state["schedule"])

    def _is_recorded(self) -> bool:
        schedule = self._engine.schedule
        mark = schedule.mark()
        instructions = schedule.advance(self.lower.name)
        schedule.restore(mark)
        return any(i.record for i in instructions if i.problem == self.lower.name)

    def _after_step(self, *optimizer_and_arguments: Any) -> None:
        del optimizer_and_arguments
        if not self._is_open:
            return
        self._is_open = False
        self.lower.step_state.trajectory.complete()
        for instruction in self._engine.schedule.advance(self.lower.name):
            if instruction.action is not Action.STEP:
                continue
            problem = self.learner if instruction.problem == self.learner.name else self.lower
            problem.step_state.begin_step(instruction.count, None)
            if problem is self.learner:
                with torch.enable_grad():
                    descend(problem, record=False, first=True, last=True, after_gradient=_nothing)


def load_network(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the weight network alone of what :meth:`TwoLevels.state_dict` returned.

    Raises:
        CheckpointError: When it is of another one.
    """
    saved = from_plain(state["learner"]["state"])["module"]
    try:
        network.load_state_dict(saved)
    except RuntimeError as misfit:
        raise CheckpointError(
            f"The checkpoint holds another weight network than {type(network).__name__} here; "
            f"give the one it was saved with. {misfit}"
        ) from misfit


def _nothing(problem: Any) -> None:
    del problem
