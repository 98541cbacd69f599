"""The recorded last optimizer steps of a problem, which hypergradients replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..base.changes import changes
from ..base.graph_neighbours import problems_that_may_step
from ..kernels.activation_reuse import ReusableActivations
from ..kernels.gradient_hooks import accumulate, accumulate_and_record
from ..state.buffers import BufferSlot, buffer_slots
from ..state.random_streams import RandomState
from .recorded_steps import GradientGraph, RecordedStep, RecordedUpdate, Recording, optimizer_moment
from .samples import Samples

if TYPE_CHECKING:
    from ..problem import Problem


class Trajectory:
    """The recorded last optimizer steps of one problem.

    Attributes:
        updates: The recorded steps, oldest first.
        taken: Number of recorded steps taken since the loop began.
        has_moved: Whether any step, recorded or not, has been taken since the loop began.
        skipped: Number of steps skipped since the loop began.
        all_skipped: Whether no step is left to differentiate through, since all were skipped.
        granted: Bytes of memory that graphs may take which are kept since they fit.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.updates: deque[RecordedUpdate] = deque(maxlen=recording.updates)
        self._open: RecordedUpdate | None = None
        # Of the parameters in its start, when that was recorded.
        self._versions: dict[Tensor, int] = {}
        # With the number of changes at which they were found.
        self._places: tuple[int, list[Tensor], list[BufferSlot]] | None = None
        self.taken = 0
        self.skipped = 0
        self.all_skipped = False
        self.has_moved = False
        self._keeps = True
        self._graphs_fit: bool | None = None
        self.granted = 0

    def recording_as(self, recording: Recording) -> Trajectory:
        """Return a trajectory with other recording settings and the same steps."""
        other = Trajectory(recording)
        other.updates.extend(self.updates)
        other._open, other._versions = self._open, dict(self._versions)
        other.taken, other.skipped, other.all_skipped = self.taken, self.skipped, self.all_skipped
        other.has_moved = self.has_moved
        other._keeps, other._graphs_fit = self._keeps, self._graphs_fit
        other.granted = self.granted
        if not recording.graphs:
            other.release_graphs()
        return other

    def standing(self, *, has_moved: bool) -> Trajectory:
        """Return a trajectory with the same steps, of a loop in which steps have been taken or not,
        as a checkpoint tells."""
        other = self.recording_as(self.recording)
        other.has_moved = has_moved
        return other

    @property
    def window(self) -> list[RecordedStep]:
        """Micro-batches of the last recorded optimizer step."""
        return self.updates[-1].steps if self.updates else []

    @property
    def under_way(self) -> RecordedUpdate | None:
        """The incomplete optimizer step that is being recorded, or ``None``."""
        return self._open

    @under_way.setter
    def under_way(self, update: RecordedUpdate | None) -> None:
        self._open = update
        self.watch()

    def watch(self) -> None:
        """Take the present values of parameters for those that nothing has written to yet, but for
        what :meth:`note_written` has recorded."""
        self._versions = {} if self._open is None else {p: p._version for p in self._open.start}

    def note_written(self) -> None:
        """Record what has been written to since the step under way began."""
        if self._open is not None:
            update, before = self._open, self._open.written
            changed = [p for p, seen in self._versions.items() if p._version != seen or p in before]
            if changed:
                update.written = {p: p.detach().clone() for p in changed}

    def open(self, problem: Problem) -> None:
        """Start to record an optimizer step, before its first micro-batch."""
        copies = self.recording.parameters or self.recording.optimizer
        if copies and not (self._keeps or self.taken or self.skipped):
            self.updates.clear()
        self._open = RecordedUpdate(begins_loop=not self.has_moved, count=problem.count)
        if self.recording.parameters:
            if self._places is None or self._places[0] != changes():
                self._places = (changes(), *_places(problem))
            _, others, slots = self._places
            parameters = [*problem.trainable_parameters(), *others]
            buffers = [(slot, slot[0]._buffers[slot[1]]) for slot in slots]
            self._open.start = {p: p.detach().clone() for p in parameters}
            self.watch()
            self._open.buffers = [(s, b.detach().clone()) for s, b in buffers if b is not None]

    def add(self, step: RecordedStep) -> None:
        """Add a micro-batch to the step being recorded."""
        if self._open is not None:
            self._open.steps.append(step)

    def release_graphs(self) -> None:
        """Release kept graphs; a hypergradient rebuilds them."""
        for update in (*self.updates, *([] if self._open is None else [self._open])):
            for step in update.steps:
                step.graph = None

    def begin_loop(self, *, keep: bool = False) -> None:
        """Begin a loop; release kept graphs.

        Args:
            keep: Keep the steps of earlier loops until those of this one replace them. Otherwise
                the first that is recorded drops them, if they hold copies of parameters, so that
                one record is in memory and not two.
        """
        if self.recording.graphs:
            self.release_graphs()
        self.taken = self.skipped = 0
        self.has_moved = False
        self._keeps = keep

    def complete(self) -> None:
        """Note that a step has been taken, and add it if it is being recorded."""
        self.has_moved = True
        if self._open is not None:
            self.updates.append(self._open)
            self._open = None
            self.taken += 1
            self.all_skipped = False

    def skip_step(self) -> None:
        """Drop the step being recorded, since it was skipped.

        Steps of earlier loops are dropped too, as if the skipped step had replaced them.
        """
        if self._open is not None:
            self._open = None
            self.skipped += 1
            while len(self.updates) > self.taken:
                self.updates.popleft()
            self.all_skipped = not self.updates

    def differentiable(self, *, start_moves: bool) -> list[RecordedUpdate]:
        """Return the recorded steps that follow from each other: where parameters are moved at the
        start of a loop, those since the last start."""
        found = list(self.updates)
        starts = [place for place, update in enumerate(found) if update.begins_loop]
        return found[starts[-1] :] if start_moves and starts else found

    def abandon(self) -> None:
        """Drop the step being recorded."""
        self._open = None

    def keep_samples(self, samples: Samples) -> None:
        """Record the sample losses of the present micro-batch, what goes with them and the random
        streams, if asked for."""
        if self._open is not None and self.recording.losses and self._open.steps:
            step = self._open.steps[-1]
            random = RandomState(step.random.device)
            step.samples = samples.detached()._replace(random=random)

    def keep_activations(
        self, make: Callable[[], ReusableActivations | None]
    ) -> ReusableActivations | None:
        """Return ``make()`` to record the activations of the present micro-batch; ``None`` if they
        are not asked for."""
        if self._open is None or not self.recording.activations or not self._open.steps:
            return None
        self._open.steps[-1].activations = made = make()
        return made

    def copies_at_start(self, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
        """Return copies of parameters that require a gradient; for the first micro-batch in memory
        that is kept anyway."""
        start, copies = self._start_of_first(), {}
        for p in parameters:
            copy = start.get(p)
            copies[p] = (p.detach().clone() if copy is None else copy.detach()).requires_grad_()
        return copies

    def part_from_start(self, parameters: Sequence[Tensor]) -> None:
        """Record parameters again, whose copies of :meth:`copies_at_start` were written to."""
        start = self._start_of_first()
        start.update({p: p.detach().clone() for p in parameters if p in start})

    def _start_of_first(self) -> dict[Tensor, Tensor]:
        """Return the recorded start in the first micro-batch of a step; what a later one begins
        with, an earlier one may have written to."""
        update = self._open
        return update.start if update is not None and len(update.steps) == 1 else {}

    @property
    def keeps_graphs(self) -> bool | None:
        """Whether graphs of gradients are kept; ``None`` before that is decided."""
        if not self.recording.graphs:
            return False
        return self._graphs_fit if self.recording.graphs_if_free else True

    def decide_on_graphs(self, *, fit: bool, size: int) -> None:
        """Decide, for the rest of the run, whether graphs are kept that are to be if they fit, and
        take ``size`` bytes."""
        self._graphs_fit, self.granted = fit, size if fit else 0

    def wants_graph(self) -> bool:
        """Return whether the present micro-batch needs its gradient's graph, to keep or measure."""
        return self._open is not None and self.keeps_graphs is not False

    def keep_graph(self, graph: GradientGraph) -> None:
        """Record the gradient's graph of the present micro-batch, if graphs are kept."""
        if self._open is not None and self.keeps_graphs:
            self._open.steps[-1].graph = graph

    @property
    def records_hooks(self) -> bool:
        """Whether what hooks on parameters do is recorded, since the optimizer is."""
        return self._open is not None and self.recording.optimizer

    def accumulate(self, parameter: Tensor, gradient: Tensor) -> bool:
        """Add to the ``.grad`` of a parameter with hooks, and record what they do if asked for.

        Returns:
            Whether the record, if any, is complete.
        """
        if not self.records_hooks:
            accumulate(parameter, gradient)
            return True
        assert self._open is not None
        found = accumulate_and_record(parameter, gradient)
        self._open.steps[-1].hooked[parameter] = found
        return found.has_graph

    def keep_share(self, problem: Problem) -> None:
        """Record this process's gradients, if asked for and with several processes."""
        if (
            self._open is not None
            and self.recording.shares
            and problem.step_state.processes.world > 1
        ):
            given = problem.trainable_parameters()
            self._open.share = {p: p.grad for p in given if p.grad is not None}

    def keep_optimizer(self, problem: Problem) -> None:
        """Record gradients, state and settings, if asked for; call before clipping."""
        if self._open is not None and self.recording.optimizer:
            values = self.recording.values
            self.note_written()
            with problem.step_state.processes.whole_optimizer(problem):
                self._open.moment = optimizer_moment(problem.optimizer, values=values)


def _places(problem: Problem) -> tuple[list[Tensor], list[BufferSlot]]:
    """Return the parameters of other problems that may change before a replay, and where buffers
    are that may."""
    others = problems_that_may_step(problem)
    slots = [slot for p in (problem, *others) for slot in buffer_slots(p.module)]
    return [p for other in others for p in other.parameters()], slots
