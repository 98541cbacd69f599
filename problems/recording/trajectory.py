"""What a hypergradient replays: the last optimizer steps of a problem, as they happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base.graph_neighbours import problems_that_may_step
from ..kernels.activation_reuse import ReusableActivations
from ..state.buffers import BufferSlot, buffer_slots
from ..state.random_streams import RandomState

if TYPE_CHECKING:
    from ..problem import Problem


@dataclass(frozen=True)
class Recording:
    """What an algorithm wants to find of the steps it differentiates through.

    Args:
        updates: How many optimizer steps before each hand-over.
        parameters: Keep what each of them started from: parameters and buffers, also of the other
            problems that may step before it is replayed.
        optimizer: Keep each one's gradients, optimizer state and optimizer settings.
        values: Whether the numbers in the first two of these are read, not only what there is.
        losses: Keep the sample losses of a reweighted problem.
        graphs: Keep the graph of each micro-batch's gradient.
        activations: Keep of a reweighted problem's sample losses what does not depend on the
            parameters a hypergradient goes through.
        shares: Of several processes, keep this one's own gradient of each step beside the mean.
    """

    updates: int = 1
    parameters: bool = False
    optimizer: bool = False
    values: bool = True
    losses: bool = False
    graphs: bool = False
    activations: bool = False
    shares: bool = False

    def merged_with(self, other: Recording) -> Recording:
        """Return what serves both."""
        return Recording(
            updates=max(self.updates, other.updates),
            parameters=self.parameters or other.parameters,
            optimizer=self.optimizer or other.optimizer,
            values=any(r.optimizer and r.values for r in (self, other)),
            losses=self.losses or other.losses,
            graphs=self.graphs or other.graphs,
            activations=self.activations or other.activations,
            shares=self.shares or other.shares,
        )


@dataclass(frozen=True)
class GradientGraph:
    """The gradient of a micro-batch with its own graph, at copies of the parameters.

    Attributes:
        parameters: Per parameter the copy the graph ends in.
        gradients: Per parameter the derivative of the loss by its copy.
        versions: How often each tensor it may hold besides those had been written to.
    """

    parameters: dict[Tensor, Tensor]
    gradients: dict[Tensor, Tensor]
    versions: dict[Tensor, int]

    @property
    def is_intact(self) -> bool:
        """Whether what the graph holds is as it was."""
        return all(p._version == version for p, version in self.versions.items())


@dataclass
class RecordedStep:
    """A micro-batch, the random numbers its loss drew, and what else was asked for.

    Attributes:
        batch: The micro-batch.
        random: The random streams before its loss was computed.
        losses: The sample losses of a reweighted problem.
        graph: Its gradient's graph.
        activations: How its sample losses were computed.
    """

    batch: Any
    random: RandomState
    losses: Tensor | None = None
    graph: GradientGraph | None = None
    activations: ReusableActivations | None = None


@dataclass(frozen=True)
class OptimizerMoment:
    """An optimizer just before a step, per parameter that has a gradient.

    Attributes:
        gradients: The accumulated gradient, unscaled, before clipping.
        states: Its entries of the optimizer's state; tensors are copies.
        settings: The settings of its group: learning rate, momentum, …
        values: Whether gradients and states hold their numbers, or only say that there are some.
    """

    gradients: dict[Tensor, Tensor]
    states: dict[Tensor, dict[str, Any]]
    settings: dict[Tensor, Mapping[str, Any]]
    values: bool = True


@dataclass
class RecordedUpdate:
    """One optimizer step: its micro-batches and, where asked for, what it started from.

    Attributes:
        steps: Its micro-batches.
        start: Parameters and their values before it, of this problem and of others that may have
            moved since.
        buffers: The same for buffers.
        moment: The optimizer before it.
        share: This process's own gradient, where it was averaged with others'.
    """

    steps: list[RecordedStep] = field(default_factory=list)
    start: dict[Tensor, Tensor] = field(default_factory=dict)
    buffers: list[tuple[BufferSlot, Tensor]] = field(default_factory=list)
    moment: OptimizerMoment | None = None
    share: dict[Tensor, Tensor] = field(default_factory=dict)


PRESENT = torch.zeros(())
"""Stands for a tensor whose numbers nobody reads."""


class Trajectory:
    """The last optimizer steps of one problem, as many as its hypergradient looks back.

    Attributes:
        updates: Those recorded, oldest first.
        taken: Recorded optimizer steps taken since the loop began.
        left: Recorded ones left out since then.
        all_skipped: Whether nothing is left to differentiate through, all having been left out.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.updates: deque[RecordedUpdate] = deque(maxlen=recording.updates)
        self._open: RecordedUpdate | None = None
        self.taken = 0
        self.skipped = 0
        self.all_skipped = False

    def recording_as(self, recording: Recording) -> Trajectory:
        """Return a trajectory that records otherwise and goes on where this one is."""
        other = Trajectory(recording)
        other.updates.extend(self.updates)
        other._open = self._open
        other.taken, other.skipped, other.all_skipped = self.taken, self.skipped, self.all_skipped
        return other

    @property
    def window(self) -> list[RecordedStep]:
        """Micro-batches of the latest recorded optimizer step."""
        return self.updates[-1].steps if self.updates else []

    @property
    def under_way(self) -> RecordedUpdate | None:
        """The optimizer step being recorded, whose micro-batches are not complete yet."""
        return self._open

    @under_way.setter
    def under_way(self, update: RecordedUpdate | None) -> None:
        self._open = update

    def open(self, problem: Problem) -> None:
        """Begin to record an optimizer step, before its first micro-batch."""
        self._open = RecordedUpdate()
        if self.recording.parameters:
            others = problems_that_may_step(problem)
            parameters = [*problem.trainable_parameters()]
            parameters += [p for other in others for p in other.parameters()]
            slots = [slot for p in (problem, *others) for slot in buffer_slots(p.module)]
            buffers = [(slot, slot[0]._buffers[slot[1]]) for slot in slots]
            self._open.start = {p: p.detach().clone() for p in parameters}
            self._open.buffers = [(s, b.detach().clone()) for s, b in buffers if b is not None]

    def add(self, step: RecordedStep) -> None:
        """Note a micro-batch of the step being recorded."""
        if self._open is not None:
            self._open.steps.append(step)

    def release_graphs(self) -> None:
        """Give up kept graphs; what needs them rebuilds them."""
        for update in self.updates:
            for step in update.steps:
                step.graph = None

    def begin_loop(self) -> None:
        """Note that a loop begins; kept graphs are given up."""
        self.release_graphs()
        self.taken = self.skipped = 0

    def complete(self) -> None:
        """Keep the step that was being recorded, now that it has been taken."""
        if self._open is not None:
            self.updates.append(self._open)
            self._open = None
            self.taken += 1
            self.all_skipped = False

    def skip_step(self) -> None:
        """Forget the step that was being recorded, since it was not taken.

        Steps of earlier loops are forgotten too, which new ones would have replaced.
        """
        if self._open is not None:
            self._open = None
            self.skipped += 1
            while len(self.updates) > self.taken:
                self.updates.popleft()
            self.all_skipped = not self.updates

    def reaches_start(self, updates: Sequence[RecordedUpdate], unroll_steps: int) -> bool:
        """Whether recorded steps go back to where a loop of ``unroll_steps`` began."""
        return len(updates) + self.skipped == unroll_steps

    def abandon(self) -> None:
        """Forget the step that was being recorded."""
        self._open = None

    def keep_losses(self, losses: Tensor) -> None:
        """Note the sample losses of the micro-batch under way, if they are asked for."""
        if self._open is not None and self.recording.losses and self._open.steps:
            self._open.steps[-1].losses = losses.detach()

    def keep_activations(
        self, make: Callable[[], ReusableActivations | None]
    ) -> ReusableActivations | None:
        """Return what is to note how the sample losses of the micro-batch under way are computed,
        if that is asked for and ``make`` makes it."""
        if self._open is None or not self.recording.activations or not self._open.steps:
            return None
        self._open.steps[-1].activations = made = make()
        return made

    def wants_graph(self) -> bool:
        """Whether the micro-batch under way is to be differentiated with its graph kept."""
        return self._open is not None and self.recording.graphs

    def keep_graph(self, graph: GradientGraph) -> None:
        """Note the gradient's graph of the micro-batch under way."""
        if self._open is not None:
            self._open.steps[-1].graph = graph

    def keep_share(self, problem: Problem) -> None:
        """Note this process's gradients, if they are asked for and will be averaged."""
        if (
            self._open is not None
            and self.recording.shares
            and problem.step_state.processes.world > 1
        ):
            given = problem.trainable_parameters()
            self._open.share = {p: p.grad for p in given if p.grad is not None}

    def keep_optimizer(self, problem: Problem) -> None:
        """Note gradients, state and settings, if they are asked for; call before clipping."""
        if self._open is not None and self.recording.optimizer:
            values = self.recording.values
            with problem.step_state.processes.whole_optimizer(problem):
                self._open.moment = optimizer_moment(problem.optimizer, values=values)


def optimizer_moment(optimizer: torch.optim.Optimizer, *, values: bool = True) -> OptimizerMoment:
    """Copy what the next step of ``optimizer`` depends on; without ``values``, that it is there."""
    gradients: dict[Tensor, Tensor] = {}
    states: dict[Tensor, dict[str, Any]] = {}
    settings: dict[Tensor, Mapping[str, Any]] = {}
    for group in optimizer.param_groups:
        chosen = {k: _copy(v) for k, v in group.items() if k != "params"}
        for p in group["params"]:
            if p.grad is not None:
                copy = _copy if values else _presence_of
                gradients[p] = copy(p.grad)
                states[p] = {k: copy(v) for k, v in optimizer.state.get(p, {}).items()}
                settings[p] = chosen
    return OptimizerMoment(gradients, states, settings, values)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _presence_of(value: Any) -> Any:
    return PRESENT if isinstance(value, Tensor) else value
