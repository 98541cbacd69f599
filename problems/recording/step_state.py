"""The state that a run keeps for one problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..base.changes import note_change
from ..base.reduction import Reduction
from ..state.buffers import KeptBuffers
from ..state.modes import Modes
from .method_states import MethodStates
from .recorded_steps import RecordedStep, Recording
from .trajectory import Trajectory

if TYPE_CHECKING:
    from ..data.loaders import BatchSource
    from ..hypergradients.base import Hypergradient
    from ..hypergradients.product import Status
    from ..problem import Problem

    Driver = Callable[[Problem, int | None], None]


class Feed(Protocol):
    """Gives steps their batches and optimizer steps."""

    def draw(self, problem: Problem) -> Any:
        """Return the next batch of a problem."""

    def prepare(self, problem: Problem) -> None:
        """Called before an optimizer step, and before what is recorded of it."""

    def update(self, problem: Problem) -> None:
        """Take the optimizer step, of gradients that are clipped."""

    def notes(self, condition: Tensor) -> bool:
        """Return whether it notes a condition for an error, to be looked at after the steps."""


class StepState:
    """The state that a run keeps for one problem. Only its own methods write it.

    Attributes:
        count: Steps the problem has taken.
        global_step: The engine's step during the last of them; ``None`` if it stepped alone.
        trajectory: The recorded optimizer steps.
        processes: Averages over the processes that train the program.
        batch: The batch of the last step.
        scaler: The loss scaler of ``"fp16"``; ``None`` in other precisions.
        channels_last: Whether images and convolution weights are in channels-last format.
        source: The loaders in use; ``None`` for a problem that overrides ``get_batch``.
        driver: Called by ``problem.step()``; ``None`` without an engine.
        skipped: Whether the present optimizer step will be skipped.
        held: The trainable parameters while changes of ``requires_grad`` are ignored, else
            ``None``.
        keeps_hypergradient_terms: Whether ``hypergradient_terms`` are stored.
        hypergradient_terms: The terms of the last gradient by hypergradient path.
        changing_hooks: Names of the engine's hooks that may change the gradient.
        hooks_without_graph: Parameters that a hook changed the gradient of without a graph.
        dependence: The parameters of problems above that recorded losses depend on, by the upper
            problem whose first step looks for them and the problem that they belong to.
        seen_directly: The parameters and lower problems that the problem's own loss depends on;
            ``None`` once its first step has looked for them.
        auditor: Replaces the problem's hypergradient while that is checked, else ``None``.
        hypergradient_status: The status of the last product through the problem.
        computing_types: The types that passes of a hypergradient were found to compute in.
        method_states: What its hypergradient method keeps from step to step.
        drawn: Batches that the method drew from the problem's loaders for the present gradient.
        as_drawn: Converts these before they are used; ``None`` outside of a check.
        modes: The modes of the module's submodules in training, while it is evaluated.
        plan: What cannot change in the problem's steps; ``None`` before the first.
        feed: Gives steps their batches and optimizer steps in place of loaders and the optimizer.
    """

    def __init__(self) -> None:
        self.count = 0
        self.global_step: int | None = None
        self.trajectory = Trajectory(Recording())
        self.processes = Reduction()
        self.batch: Any = None
        self.scaler: Any = None
        self.channels_last = False
        self.source: BatchSource | None = None
        self.driver: Driver | None = None
        self.skipped = False
        self.held: list[Tensor] | None = None
        self.keeps_hypergradient_terms = False
        self.hypergradient_terms: dict[str, list[Tensor]] = {}
        self.changing_hooks: Sequence[str] = ()
        self.hooks_without_graph: dict[Tensor, None] = {}
        self._mentioned: set[str] = set()
        self._has_looked = False
        self.dependence: dict[tuple[Problem, Problem], set[Tensor]] = {}
        self.seen_directly: set[Tensor | Problem] | None = None
        self.auditor: Hypergradient | None = None
        self.hypergradient_status: Status | None = None
        self.computing_types: dict[object, torch.dtype] = {}
        self.method_states = MethodStates()
        self.drawn: list[RecordedStep] = []
        self.as_drawn: Callable[[RecordedStep], RecordedStep] | None = None
        self.modes = Modes()
        self.plan: Any = None
        self.feed: Feed | None = None
        self._kept: KeptBuffers | None = None
        self._optimized: tuple[nn.Module | None, list[Tensor], list[Tensor]] = (None, [], [])

    def for_run(
        self,
        processes: Reduction,
        driver: Driver,
        *,
        keeps_hypergradient_terms: bool,
        changing_hooks: Sequence[str] = (),
    ) -> StepState:
        """Return a copy for an engine's run; counters and recorded steps stay."""
        state = StepState()
        vars(state).update(vars(self))
        state.processes, state.driver, state.plan = processes, driver, None
        state.keeps_hypergradient_terms = keeps_hypergradient_terms
        state.hypergradient_terms = {}
        state.changing_hooks = changing_hooks
        return state

    def use_channels_last(self, *, channels_last: bool) -> None:
        """Set whether images and convolution weights are in channels-last format."""
        self.channels_last = channels_last

    def feed_by(self, feed: Feed | None) -> None:
        """Set what gives steps their batches and optimizer steps; ``None`` for loaders and the
        optimizer."""
        self.feed = feed

    def scale_losses_by(self, scaler: Any) -> None:
        """Set the loss scaler."""
        self.scaler = scaler
        note_change()

    def note_batch(self, batch: Any) -> Any:
        """Keep the batch of a step, and return it."""
        self.batch = batch
        return batch

    def read_from(self, source: BatchSource) -> None:
        """Set the loaders that batches are drawn from."""
        self.source = source

    def begin_step(self, count: int, global_step: int | None) -> None:
        """Begin step number ``count``."""
        self.count, self.global_step = count, global_step

    @contextmanager
    def counting(self, count: int) -> Iterator[None]:
        """Be in step number ``count`` inside a ``with`` statement."""
        before, self.count = self.count, count
        try:
            yield
        finally:
            self.count = before

    def begin(self, trainable: Iterable[Tensor], *, first: bool) -> list[Tensor] | None:
        """Begin a micro-batch, the ``first`` of an optimizer step or a later one.

        Returns:
            The argument for :meth:`end`.
        """
        if first:
            self.skipped = False
        before = self.held
        if before is None:
            self.held = trainable if type(trainable) is list else list(trainable)
        return before

    def end(self, held: list[Tensor] | None) -> None:
        """End a micro-batch."""
        self.held = held
        if self.hypergradient_terms:
            self.hypergradient_terms.clear()

    def open_update(self) -> None:
        """Begin an optimizer step, before its first micro-batch."""
        self.skipped = False

    def skip_update(self) -> None:
        """Mark the present optimizer step as skipped."""
        self.skipped = True

    def hold(self, trainable: Iterable[Tensor]) -> list[Tensor] | None:
        """Keep the list of trainable parameters fixed while ``requires_grad`` changes.

        Returns:
            The argument for :meth:`release`.
        """
        before = self.held
        if before is None:
            self.held = trainable if type(trainable) is list else list(trainable)
        return before

    def release(self, before: list[Tensor] | None) -> None:
        """Undo :meth:`hold`."""
        self.held = before

    def record_as(self, recording: Recording) -> None:
        """Set what to record, from the next step on."""
        if self.trajectory.recording != recording:
            self.trajectory = self.trajectory.recording_as(recording)

    def replace_trajectory(self, trajectory: Trajectory) -> Trajectory:
        """Set the recorded steps, and return the previous ones."""
        before, self.trajectory = self.trajectory, trajectory
        return before

    def replace_states(self, states: MethodStates) -> MethodStates:
        """Set what the method keeps from step to step, and return what it was."""
        before, self.method_states = self.method_states, states
        return before

    def draw(self, number: int, one: Callable[[], RecordedStep]) -> list[RecordedStep]:
        """Return the first ``number`` batches of the present gradient; ``one`` draws another."""
        while len(self.drawn) < number:
            self.drawn.append(one())
        found = self.drawn[:number]
        return found if self.as_drawn is None else [self.as_drawn(step) for step in found]

    def forget_drawn(self) -> None:
        """Drop the batches that the method drew."""
        self.drawn = []

    def convert_drawn(self, convert: Callable[[RecordedStep], RecordedStep] | None) -> None:
        """Convert drawn batches before they are used; ``None`` ends it."""
        self.as_drawn = convert

    def note_hook_without_graph(self, parameter: Tensor) -> None:
        """Store that a hook changed the gradient of a parameter without a graph."""
        self.hooks_without_graph[parameter] = None

    def not_mentioned(self, names: Iterable[str]) -> list[str]:
        """Return the names that no earlier call was given."""
        found = [name for name in names if name not in self._mentioned]
        self._mentioned.update(found)
        return found

    def looks_for_references(self) -> bool:
        """Return whether no pass yet has looked for parameters that are read by references of the
        user's own; it has afterwards."""
        first, self._has_looked = not self._has_looked, True
        return first

    def audit_by(self, auditor: Hypergradient | None) -> None:
        """Replace the problem's hypergradient by ``auditor``; ``None`` ends the check."""
        self.auditor = auditor
        note_change()

    def plan_as(self, plan: Any) -> None:
        """Set the plan of the problem's steps, of networks that may have other buffers now."""
        self.plan = plan
        self._kept = None

    def note_status(self, status: Status) -> None:
        """Store the status of a product through the problem."""
        self.hypergradient_status = status

    def note_term(self, path: str, values: Sequence[Tensor]) -> None:
        """Store the hypergradient's term along a path, if terms are kept."""
        if self.keeps_hypergradient_terms:
            self.hypergradient_terms[path] = list(values)

    def forget_terms(self) -> None:
        """Drop the hypergradient's terms."""
        self.hypergradient_terms.clear()

    def look_for(self, pairs: Iterable[tuple[Problem, Problem]], *, first_step: bool) -> None:
        """Begin to note dependences: of the problem's loss on parameters of the second problems,
        until the first step of the first ones; and, for a ``first_step`` of its own, of its loss on
        its parameters and on lower problems."""
        self.dependence = {pair: set() for pair in pairs}
        self.seen_directly = set() if first_step else None

    def end_first_step(self) -> None:
        """End the search of the problem's first step."""
        self.seen_directly = None

    def optimized(self, module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """Return the module's parameters that belong to the optimizer, in the module's order.

        The result is cached while the optimizer has the same parameters.
        """
        before, owned, kept = self._optimized
        now = groups[0]["params"] if len(groups) == 1 else [p for g in groups for p in g["params"]]
        if module is not before or len(owned) != len(now) or not all(map(is_, owned, now)):
            among = set(now)
            kept = [p for p in module.parameters() if p in among]
            self._optimized = (module, list(now), kept)
        return kept

    def kept_buffers(self, module: nn.Module) -> KeptBuffers:
        """Return a copy of the module's buffers that can restore them."""
        if self._kept is None or self._kept.module is not module:
            self._kept = KeptBuffers(module)
        self._kept.keep()
        return self._kept
