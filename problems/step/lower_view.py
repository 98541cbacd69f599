"""The view of a problem that hypergradient algorithms see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..base import vectors
from ..base.errors import ConfigurationError
from ..base.loss import loss_of
from ..hypergradients.base import LowerProblem
from ..kernels.activation_reuse import ReusableActivations
from ..kernels.precision import as_computed
from ..partial_hypergradient import reusable_activations
from ..problem import Problem
from ..products.evaluation import Evaluation
from ..recording.recorded_steps import BatchNumber, RecordedStep
from ..recording.samples import Samples
from ..recording.trajectory import Trajectory
from ..reweighted import ReweightedProblem
from ..state.owned import owned
from ..state.random_streams import RandomState
from ..state.swapped_tensors import swapped_with_buffers
from .batch_numbers import batch_number, require_batch_numbers
from .computing_type import computing_type, has_forward_derivatives
from .drawn_batch import drawn_step
from .optimizer_view import OptimizerStepView
from .own_references import without_references
from .plan import StepPlan, plan_of


def lower_view(problem: Problem, path: tuple[str, ...] = ()) -> LowerProblem:
    """Return the view of ``problem`` for algorithms: ``method.vjp(lower_view(p), …)``.

    Args:
        problem: The lower problem.
        path: Names of the problems of the path that the vector comes along.
    """
    return LowerView(problem, path=path)


def sign_of_loss(problem: Problem) -> float:
    """Return -1 where the optimizer of ``problem`` maximises its loss, else 1.

    Raises:
        ConfigurationError: When it maximises in some parameter groups only.
    """
    optimizer: Any = problem.optimizer
    groups = [] if optimizer is None else optimizer.param_groups
    maximised = {bool(group.get("maximize", False)) for group in groups if group["params"]}
    if len(maximised) > 1:
        raise ConfigurationError(
            f"The optimizer of problem {problem.name!r} maximises the loss in some parameter "
            f"groups and minimises it in others; {type(problem.hypergradient).__name__} "
            "differentiates the solution of one problem. Use Config(type='unroll'), which "
            "follows the steps of each group, or give all groups the same maximize."
        )
    return -1.0 if True in maximised else 1.0


class LowerView:
    """A :class:`~metaweight.problems.hypergradients.base.LowerProblem` for a problem.

    It stores only the problem, and during an evaluation its plan, so it is cheap to make and always
    up to date.
    """

    __slots__ = ("_own", "_plan", "_problem", "_sign", "path")

    def __init__(
        self, problem: Problem, sign: float | None = None, path: tuple[str, ...] = ()
    ) -> None:
        self._problem = problem
        self.path = path
        self._own: set[int] | None = None
        self._sign = sign
        # Of the evaluation under way: networks and settings stay as they are in it.
        self._plan: StepPlan | None = None

    @property
    def sign(self) -> float:
        """What the loss is multiplied by: -1 where the optimizer maximises it, else 1."""
        if self._sign is None:
            self._sign = sign_of_loss(self._problem)
        return self._sign

    def as_given(self) -> LowerProblem:
        return LowerView(self._problem, 1.0, self.path)

    @property
    def state(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self._problem.step_state.method_states.of(self.path)
        return found

    @property
    def batch_numbers(self) -> tuple[BatchNumber | None, BatchNumber | None]:
        upper = self._problem.position.peers.get(self.path[0]) if self.path else None
        below = self.trajectory.window[-1].number
        return below, None if upper is None else batch_number(upper)

    def require_batch_numbers(self, method: str, instead: str) -> None:
        uppers = {path[0] for path in self.paths}
        for problem in (self._problem, *map(self._problem.position.peers.__getitem__, uppers)):
            require_batch_numbers(problem, method, instead)

    def draw(self, number: int = 1) -> list[RecordedStep]:
        return self._problem.step_state.draw(number, partial(drawn_step, self._problem))

    @property
    def name(self) -> str:
        return self._problem.name

    @property
    def count(self) -> int:
        return self._problem.count

    @property
    def weights(self) -> list[Tensor]:
        return list(self._problem.meta_trainable_parameters())

    @property
    def trajectory(self) -> Trajectory:
        return self._problem.step_state.trajectory

    @property
    def sample_loss(self) -> SampleLossView | None:
        problem = self._problem
        if not isinstance(problem, ReweightedProblem):
            return None
        return SampleLossView(problem, self)

    @property
    def optimizer_step(self) -> OptimizerStepView:
        return OptimizerStepView(self._problem)

    @property
    def has_plain_gradients(self) -> bool:
        problem = self._problem
        changed = type(problem).grad_callback is not Problem.grad_callback
        seen = not changed and not problem.step_state.changing_hooks
        return seen and not problem.position.paths

    @property
    def has_chosen_weights(self) -> bool:
        return self._problem.config.hypergradient_parameters is not None

    @property
    def has_problems_below(self) -> bool:
        return bool(self._problem.position.paths)

    @property
    def number_of_processes(self) -> int:
        return self._problem.step_state.processes.world

    @property
    def paths(self) -> list[tuple[str, ...]]:
        problem = self._problem
        return [
            tuple(p.name for p in path)
            for upper in problem.position.peers.values()
            for path in upper.position.paths
            if problem in path[1:-1]
        ]

    def loss(self, step: RecordedStep, instead: Mapping[Tensor, Tensor] | None = None) -> Tensor:
        step.random.restore()
        if instead is None:
            return self._loss_of(step)
        with (
            without_references(self._problem, instead),
            swapped_with_buffers(self._problem.module, instead),
        ):
            return self._loss_of(step)

    def evaluate(self, step: RecordedStep) -> tuple[Tensor, Mapping[str, Any]]:
        step.random.restore()
        evaluated = self._problem.evaluate(step.batch_again(self.name))
        return evaluated.loss, evaluated.metrics

    def owns(self, holder: Tensor | nn.Module) -> bool:
        if self._own is None:
            own = owned(self._problem)
            self._own = {id(each) for each in (*own.parameters, *own.modules)}
        return id(holder) in self._own

    def evaluation(
        self, *, graph: bool = True, in_full_precision: bool = True, second_order: bool = False
    ) -> Evaluation:
        problem, plan = self._problem, plan_of(self._problem)
        self._plan, state = plan, problem.step_state
        held = state.hold(() if state.held is not None else problem.trainable_parameters())
        trained = state.held or []
        weights = list(problem.meta_trainable_parameters()) if plan.may_be_partial else trained
        frozen = {*trained, *weights} if plan.may_be_partial else weights
        return Evaluation(
            weights,
            frozen=() if graph else frozen,
            surroundings=plan.surroundings,
            device=problem.device,
            precision=problem.config.precision,
            in_full_precision=in_full_precision,
            second_order=second_order,
            computes_in=partial(self.computes_in, in_full_precision=in_full_precision),
            name=problem.name,
            on_exit=partial(self._end_evaluation, held),
        )

    def _end_evaluation(self, held: list[Tensor] | None) -> None:
        self._plan = None
        self._problem.step_state.release(held)

    def computes_in(self, *, in_full_precision: bool = True) -> torch.dtype:
        if in_full_precision or self._problem.config.precision == "fp32":
            only = (self._plan or plan_of(self._problem)).only_type()
            if only is not None:
                return only
        window = self.trajectory.window
        compute = partial(self._first_pass, window[0], in_full_precision) if window else None
        return computing_type(self._problem, compute, in_full_precision=in_full_precision)

    @property
    def has_forward_derivatives(self) -> bool:
        return has_forward_derivatives(self._problem)

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        if not loss.requires_grad:
            return [torch.zeros_like(t) for t in inputs]
        found = self._problem.step_state.processes.gradients(loss, inputs)
        return vectors.fill_none(found, inputs)

    def refuse_if(self, condition: Tensor, error: Callable[[], Exception]) -> None:
        feed = self._problem.step_state.feed
        if (feed is None or not feed.notes(condition)) and bool(condition):
            raise error()

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self._problem.step_state.processes.mean(tensors)

    def reusable(
        self, step: RecordedStep, also: Sequence[Tensor] = ()
    ) -> ReusableActivations | None:
        if not (self._plan or plan_of(self._problem)).may_be_partial:
            return None
        return reusable_activations(self._problem, step.batch, also)

    def _first_pass(self, step: RecordedStep, in_full_precision: bool) -> None:
        with self.evaluation(graph=True, in_full_precision=in_full_precision):
            sample = self.sample_loss
            if sample is None or not sample.is_the_loss:
                self.loss(step)
            else:
                sample.samples(step)

    def _loss_of(self, step: RecordedStep) -> Tensor:
        problem = self._problem
        loss = loss_of(problem.name, problem.training_step(_batch_of(problem, step)))
        return loss if self.sign == 1.0 else -loss


class SampleLossView:
    """The declared sample losses and weights of a problem."""

    __slots__ = ("_problem", "_view")

    def __init__(self, problem: ReweightedProblem, view: LowerView) -> None:
        self._problem = problem
        # Not its sign: of groups that disagree there is none, and a method may not need it.
        self._view = view

    @property
    def is_the_loss(self) -> bool:
        return self._problem.declares_its_loss

    def samples(
        self, step: RecordedStep, instead: Mapping[Tensor, Tensor] | None = None
    ) -> Samples:
        step.random.restore()
        problem = self._problem
        batch = _batch_of(problem, step)
        if instead is None:
            found = problem.checked_samples(batch)
        else:
            # Frozen ones are constants already, and may be of a type that a network asks for.
            trained = (p for p in problem.module.parameters() if p.requires_grad)
            constants = {p: p.detach() for p in trained}
            places = {**constants, **instead}
            with without_references(problem, places), swapped_with_buffers(problem.module, places):
                found = problem.checked_samples(batch)
        random = RandomState(problem.device)
        losses = found.losses if self._view.sign == 1.0 else -found.losses
        return Samples(losses, found.features, random)

    def recorded(self, step: RecordedStep) -> Samples | None:
        return None if step.samples is None else self._signed(step.samples)

    def weights(self, samples: Samples, step: RecordedStep) -> Tensor:
        if samples.random is not None:
            samples.random.restore()
        return self._problem.checked_weights(self._signed(samples), _batch_of(self._problem, step))

    def _signed(self, samples: Samples) -> Samples:
        if self._view.sign == 1.0:
            return samples
        return samples._replace(losses=-samples.losses)


def _batch_of(problem: Problem, step: RecordedStep) -> Any:
    batch = step.batch_again(problem.name)
    if problem.config.precision == "fp32":
        return batch
    return as_computed(batch, plan_of(problem).parameters, problem.device)
