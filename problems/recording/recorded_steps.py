"""What is recorded of a problem's optimizer steps, and what of it a method asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.backward import Root
from ..base.errors import HypergradientError
from ..base.nested import leaves
from ..kernels.activation_reuse import ReusableActivations
from ..kernels.gradient_hooks import HookedGradient
from ..state.buffers import BufferSlot
from ..state.random_streams import RandomState
from .samples import Samples


@dataclass(frozen=True)
class Recording:
    """What to record of the optimizer steps that a method differentiates through.

    Args:
        updates: Number of last optimizer steps to keep.
        parameters: Keep parameters and buffers before each step, also of other problems that may
            step before the replay.
        optimizer: Keep gradients, optimizer state and optimizer settings of each step.
        values: Keep the values of gradients and state, not only their keys.
        losses: Keep the sample losses and features of a reweighted problem.
        graphs: Keep the graph of each micro-batch's gradient.
        graphs_if_free: Keep them only if the memory that is free at the first step has place for
            those of all.
        activations: Keep the activations of a reweighted problem that do not depend on the
            parameters a hypergradient goes through.
        shares: With several processes, keep this process's gradient beside the mean.
        numbers: Keep the number that each batch has in its loader.
    """

    updates: int = 1
    parameters: bool = False
    optimizer: bool = False
    values: bool = True
    losses: bool = False
    graphs: bool = False
    graphs_if_free: bool = False
    activations: bool = False
    shares: bool = False
    numbers: bool = False

    def merged_with(self, other: Recording) -> Recording:
        """Return a recording that includes both."""
        return Recording(
            updates=max(self.updates, other.updates),
            parameters=self.parameters or other.parameters,
            optimizer=self.optimizer or other.optimizer,
            values=any(r.optimizer and r.values for r in (self, other)),
            losses=self.losses or other.losses,
            graphs=self.graphs or other.graphs,
            graphs_if_free=all(r.graphs_if_free for r in (self, other) if r.graphs)
            and (self.graphs or other.graphs),
            activations=self.activations or other.activations,
            shares=self.shares or other.shares,
            numbers=self.numbers or other.numbers,
        )


@dataclass(frozen=True)
class GradientGraph:
    """The gradient of a micro-batch with its graph, at copies of the parameters.

    Attributes:
        parameters: The copy of each parameter, which the graph contains.
        gradients: The derivative of the loss by each parameter's copy, where it depends on
            anything: its place in the graph, without its values.
        versions: Version counters of the other tensors that the graph may contain.
    """

    parameters: dict[Tensor, Tensor]
    gradients: dict[Tensor, Root]
    versions: dict[Tensor, int]

    @property
    def is_intact(self) -> bool:
        """Whether no tensor of the graph has been written to since."""
        return all([p._version == version for p, version in self.versions.items()])


_PLAIN = frozenset({Tensor})
_modes: Any = getattr(torch._C, "_len_torch_function_stack", None)


class BatchVersions:
    """The version counters of :func:`tensors_of` a batch when this is made."""

    __slots__ = ("_batch", "_first", "_parts")

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        # Asked in every step of small networks, too: most batches are tuples of tensors, which
        # hold the same ones later.
        parts = batch if type(batch) is tuple else (batch,)
        self._parts = parts if _PLAIN.issuperset(map(type, parts)) else None
        self._first = self._now()

    def _now(self) -> list[int]:
        if self._parts is not None and _modes is not None and not _modes():
            try:
                return [t._version for t in self._parts]
            except RuntimeError:
                # Inference tensors are among them.
                pass
        # What is asked here is no operation of a pass that is watched or repeated.
        with torch._C.DisableTorchFunction():
            return [t._version for t in tensors_of(self._batch)]

    def require_unwritten(self, problem: str) -> None:
        """Refuse to evaluate a batch again that is no longer what it was.

        Raises:
            HypergradientError: Naming the problem.
        """
        if self._now() != self._first:
            raise HypergradientError(
                f"A batch of problem {problem!r} has been written to in place since it was drawn, "
                "so that its loss cannot be evaluated again, as a hypergradient or a roll-back "
                "asks. In training_step write x = x / 4 and not x.div_(4), and let the loader "
                "yield new tensors and not one that it fills again. Parameters are as they were."
            )


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors in a batch but for inference tensors, which have no version counter."""
    parts = batch if type(batch) in (tuple, list) else (batch,)
    if not _PLAIN.issuperset(map(type, parts)):
        parts = [part for part in leaves(batch) if isinstance(part, Tensor)]
    return [t for t in parts if not t.is_inference()]


class BatchNumber(NamedTuple):
    """Which of a problem's batches a batch is.

    Attributes:
        division: Number of the loader among those that took each other's place.
        number: Number of the batch in its loader.
    """

    division: int
    number: int


@dataclass
class RecordedStep:
    """A recorded micro-batch.

    Attributes:
        batch: The micro-batch.
        random: The random streams before the loss was computed.
        samples: The sample losses and features of a reweighted problem, if recorded.
        graph: The gradient with its graph, if recorded.
        activations: The activations to reuse, if recorded.
        hooked: What hooks on parameters made of their gradients, if the optimizer is recorded.
        number: Which batch of which loader it is, if recorded.
        versions: Version counters of the batch's tensors when the step was recorded.
    """

    batch: Any
    random: RandomState
    samples: Samples | None = None
    graph: GradientGraph | None = None
    activations: ReusableActivations | None = None
    hooked: dict[Tensor, HookedGradient] = field(default_factory=dict)
    number: BatchNumber | None = None
    versions: BatchVersions | None = None

    def __post_init__(self) -> None:
        if self.versions is None:
            self.versions = BatchVersions(self.batch)

    def batch_again(self, problem: str) -> Any:
        """Return the batch, for a pass after the first.

        Raises:
            HypergradientError: When it has been written to since, naming the problem.
        """
        assert self.versions is not None
        self.versions.require_unwritten(problem)
        return self.batch


@dataclass(frozen=True)
class OptimizerMoment:
    """An optimizer just before a step, per parameter that has a gradient.

    Attributes:
        gradients: The accumulated gradient, unscaled, before clipping.
        states: The parameter's entries of the optimizer's state; tensors are copies.
        settings: The settings of its group: learning rate, momentum, …
        values: Whether gradients and states have their values, or only placeholders.
    """

    gradients: dict[Tensor, Tensor]
    states: dict[Tensor, dict[str, Any]]
    settings: dict[Tensor, Mapping[str, Any]]
    values: bool = True


@dataclass
class RecordedUpdate:
    """A recorded optimizer step: its micro-batches and the state before it, if recorded.

    Attributes:
        steps: The micro-batches.
        start: Parameters and their values before the step, of this problem and of others that may
            have stepped since.
        buffers: Buffers and their values before the step, of the same problems.
        written: Parameters that something has written to since, such as a pass that cuts rows to a
            norm, and their values as the optimizer finds them.
        moment: The optimizer before the step.
        share: This process's gradient before averaging over processes.
        begins_loop: Whether it is the first step of a loop.
        count: The problem's ``count`` in it.
    """

    steps: list[RecordedStep] = field(default_factory=list)
    start: dict[Tensor, Tensor] = field(default_factory=dict)
    buffers: list[tuple[BufferSlot, Tensor]] = field(default_factory=list)
    written: dict[Tensor, Tensor] = field(default_factory=dict)
    moment: OptimizerMoment | None = None
    share: dict[Tensor, Tensor] = field(default_factory=dict)
    begins_loop: bool = False
    count: int = 0

    @property
    def before_optimizer(self) -> Mapping[Tensor, Tensor]:
        """Parameters and their values as the optimizer finds them."""
        return {**self.start, **self.written} if self.written else self.start


PRESENT = torch.zeros(())
"""Placeholder for a tensor whose values are not read."""


def optimizer_moment(optimizer: torch.optim.Optimizer, *, values: bool = True) -> OptimizerMoment:
    """Return what the next step of ``optimizer`` depends on; placeholders without ``values``."""
    gradients: dict[Tensor, Tensor] = {}
    states: dict[Tensor, dict[str, Any]] = {}
    settings: dict[Tensor, Mapping[str, Any]] = {}
    copy = _copy if values else _presence_of
    for group in optimizer.param_groups:
        chosen = {k: _copy(v) for k, v in group.items() if k != "params"}
        for p in group["params"]:
            gradient = p.grad
            if gradient is not None:
                if values:
                    gradient = gradient if p.layout is gradient.layout else gradient.to_dense()
                gradients[p] = copy(gradient)
                states[p] = {k: copy(v) for k, v in optimizer.state.get(p, {}).items()}
                settings[p] = chosen
    return OptimizerMoment(gradients, states, settings, values)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _presence_of(value: Any) -> Any:
    return PRESENT if isinstance(value, Tensor) else value
