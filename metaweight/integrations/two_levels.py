"""A network and its weight network, in a loop that steps the network by itself.

The two are problems of an engine that never runs. A loss is recorded as the engine records one;
each step of the network's optimizer, whoever takes it, is followed by the step of the weight
network that the engine's schedule has next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaweight.engines import Engine, EngineConfig
from metaweight.engines.program.schedule import Action
from metaweight.problems import CheckpointError, Config
from metaweight.problems.persistence.names import Names
from metaweight.problems.persistence.problem_state import (
    load_problem,
    load_step_data,
    problem_to_plain,
    require_same_form,
    require_same_lengths,
)
from metaweight.problems.recording.trajectory import RecordedStep
from metaweight.problems.state.plain_data import from_plain
from metaweight.problems.state.random_streams import RandomState
from metaweight.problems.step.absent_hypergradients import note_dependence
from metaweight.problems.step.descent import descend
from metaweight.weighting import WeightedClassifier, WeightLearner

from .weighting_config import WeightingConfig

CLASSIFIER, LEARNER = "classifier", "weight_learner"


class TwoLevels:
    """A weighted classifier and its weight learner, beside a loop that steps the classifier.

    Args:
        config: How weights are learned.
        network: The weight network, trained in place.
        module: The classifier's network.
        optimizer: Its optimizer; each of its steps ends an update.
        clean: Batches of clean samples.
        steps: Optimizer steps of the run.
        device: Where both live.
        precision: ``"fp32"`` or ``"bf16"``, of the classifier's passes.
        kind: Class of the classifier.
        **reading: ``loss``, ``inputs``, ``labels`` and ``logits`` as for
            :class:`~metaweight.weighting.WeightedClassifier`.

    Raises:
        MetaweightError: What an engine refuses.
    """

    def __init__(
        self,
        config: WeightingConfig,
        network: nn.Module,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clean: Any,
        *,
        steps: int,
        device: torch.device,
        precision: str,
        kind: type[WeightedClassifier] = WeightedClassifier,
        **reading: Any,
    ) -> None:
        if any(p.dtype == torch.float64 for p in module.parameters()):
            network.double()
        self.optimizer = optimizer
        self.classifier = kind(
            CLASSIFIER,
            Config(
                type=config.derivative,
                unroll_steps=config.every,
                warmup_steps=round(config.warmup * steps),
                precision=precision,
            ),
            weights=LEARNER,
            normalise=config.normalise,
            module=module,
            optimizer=optimizer,
            train_data_loader=[None],
            **reading,
        )
        self.learner = WeightLearner(
            LEARNER,
            Config(precision=precision),
            classifier=CLASSIFIER,
            module=network,
            optimizer=torch.optim.Adam(network.parameters(), lr=config.learning_rate),
            train_data_loader=clean,
            **reading,
        )
        self._engine = Engine(
            [self.learner, self.classifier],
            EngineConfig(train_iters=0, device=device, progress=False),
            {
                "u2l": {self.learner: [self.classifier]},
                "l2u": {self.classifier: [self.learner]},
            },
        )
        self._is_open = False
        optimizer.register_step_post_hook(self._after_step)

    def loss(self, batch: Any) -> Tensor:
        """Return ``mean_i V_i(sg(l); θ) l_i`` of a micro-batch of the next optimizer step."""
        trajectory = self.classifier.step_state.trajectory
        if not self._is_open:
            self._is_open = True
            if self._is_recorded():
                trajectory.open(self.classifier)
        if trajectory.under_way is not None:
            trajectory.add(RecordedStep(batch, RandomState(self.classifier.device)))
        loss = self.classifier.evaluate(batch).loss
        note_dependence(self.classifier, loss)
        return loss

    @torch.no_grad()
    def weights(self, batch: Any) -> Tensor:
        """Return the weights of a batch, (B,), in the present mode of the network and before they
        are normalised."""
        losses = self.classifier.checked_samples(batch).losses
        labels = self.classifier.parts_of(batch).labels
        found: Tensor = self.learner(losses, labels)
        return found.reshape(-1)

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
        instructions = schedule.advance(CLASSIFIER)
        schedule.restore(mark)
        return any(i.record for i in instructions if i.problem == CLASSIFIER)

    def _after_step(self, *optimizer_and_arguments: Any) -> None:
        del optimizer_and_arguments
        if not self._is_open:
            return
        self._is_open = False
        self.classifier.step_state.trajectory.complete()
        for instruction in self._engine.schedule.advance(CLASSIFIER):
            if instruction.action is not Action.STEP:
                continue
            problem = self.learner if instruction.problem == LEARNER else self.classifier
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
