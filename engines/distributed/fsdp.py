"""Every process keeps a part of each parameter, of its gradient and of its optimizer's state.

Between the steps of problems a parameter is its process's part: the entries of one range, in a row.
A step gathers the parameters of all problems, so that losses and hypergradients of every kind are
computed as ever; gradients are averaged, each process keeps its part of them and of the parameters,
and the optimizer, the one that was given, updates the part with its part of the state. This is
stage 3 of ZeRO: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", SC 2020 (arXiv:1910.02054).

Resident in each process, of ``n`` processes: between steps ``1/n`` of parameters, of optimizer
state and of what is recorded of these for a hypergradient; while a problem steps, the whole
parameters of all problems, the whole gradient of that one, and what was recorded of the problems it
differentiates through; while its optimizer steps, ``1/n`` of its own parameters, gradient and
state. Whole at any time are buffers, parameters with fewer entries than processes, an
accumulation's gradient and recording so far, and what differs between processes: their own shares
of recorded gradients, and kept graphs.

``torch.distributed.fsdp.fully_shard`` is not used: its hooks free parameters behind passes that
are differentiated again (double backward fails, a pass after displaced ones reads freed memory), it
replaces the parameters that optimizers and users hold, and its modules cannot be copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from metaweight.problems import ConfigurationError, Problem
from torch import Tensor, nn

from .elementwise import require_entrywise
from .processes import SeveralProcesses, by_kind
from .recording_parts import part_recordings, recorded_parts
from .shard_layout import ShardLayout


class FullyShardingProcesses(SeveralProcesses):
    """Several processes that share out parameters, gradients and states of optimizers."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._problems: Sequence[Problem] = ()
        self._layouts: dict[Tensor, ShardLayout] = {}
        self._resting: dict[Tensor, None] = {}
        self._rests = False
        # Gradients of an accumulation under way.
        self._aside: dict[Tensor, Tensor] = {}
        self._optimizers: dict[torch.optim.Optimizer, None] = {}
        self._gathered_states: set[torch.optim.Optimizer] = set()
        self._gathers_states = True
        self._guarded: WeakSet[nn.Module] = WeakSet()

    def share_out(self, problems: Sequence[Problem]) -> None:
        self._problems = problems
        self._go_to_rest()

    def give_back(self) -> None:
        self._gather()
        for optimizer in self._optimizers:
            self._gather_state(optimizer)
        self._gather_recordings(self._problems)
        self._layouts.clear()
        self._problems = ()

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        before = self._rests
        self._gather()
        # An error leaves them as they are: the other processes may be waiting for something else.
        yield
        self._return(before)

    def require_whole(self, problem: Problem) -> None:
        self._require_whole(problem.module, problem.name)

    @contextmanager
    def parts_of_parameters(self) -> Iterator[None]:
        before = self._rests
        self._go_to_rest()
        yield
        self._return(before)

    @contextmanager
    def whole_recordings(self, problems: Sequence[Problem]) -> Iterator[None]:
        self._gather_recordings(problems)
        yield
        part_recordings(self._layouts, problems)

    def own_optimizer(self, problem: Problem) -> None:
        optimizer = problem.optimizer
        if optimizer is None:
            return
        _require_plain(problem)
        if optimizer not in self._optimizers:
            require_entrywise(problem, self.world)
            optimizer.register_step_pre_hook(self._before_step)
            self._optimizers[optimizer] = None
        if optimizer not in self._gathered_states:
            self._part_state(optimizer, self._layouts)

    @property
    def layouts(self) -> Mapping[Tensor, ShardLayout]:
        return self._layouts

    @contextmanager
    def parts_of_states(self) -> Iterator[None]:
        before, self._gathers_states = self._gathers_states, False
        try:
            yield
        finally:
            self._gathers_states = before

    @contextmanager
    def whole_optimizer(self, problem: Problem) -> Iterator[None]:
        optimizer = problem.optimizer
        known = optimizer in self._optimizers and optimizer not in self._gathered_states
        if not known or not self._gathers_states:
            yield
            return
        self._gathered_states.add(optimizer)
        self._gather_state(optimizer)
        try:
            yield
        finally:
            self._gathered_states.discard(optimizer)
            self._part_state(optimizer, self._layouts)

    def _return(self, rests: bool) -> None:
        if rests:
            self._go_to_rest()
        else:
            self._gather()

    @torch.no_grad()
    def _go_to_rest(self) -> None:
        self._rests = True
        self._adopt()
        for parameter in self._layouts:
            if parameter not in self._resting:
                if parameter.grad is not None:
                    self._aside[parameter] = parameter.grad
                self._rest(parameter)
        part_recordings(self._layouts, self._problems)

    def _rest(self, parameter: Tensor) -> None:
        parameter.grad = None
        parameter.data = self._layouts[parameter].part(parameter.data)
        self._resting[parameter] = None

    @torch.no_grad()
    def _gather(self) -> None:
        self._rests = False
        resting = [p for p in self._layouts if p in self._resting]
        wholes = self._gathered([(self._layouts[p], p.data) for p in resting])
        for parameter, whole in zip(resting, wholes, strict=True):
            parameter.grad = None
            parameter.data = whole
            del self._resting[parameter]
            parameter.grad = self._aside.pop(parameter, None)

    def _adopt(self) -> None:
        """Take in parameters that problems have got, and let go of those they have no more."""
        present: dict[Tensor, None] = {}
        for problem in self._problems:
            present |= dict.fromkeys(problem.module.parameters())
            self._guard(problem)
        for parameter in [p for p in self._layouts if p not in present | self._resting]:
            del self._layouts[parameter]
        added = {
            p: ShardLayout.of(p, self.rank, self.world)
            for p in present
            if p not in self._layouts and _can_be_parted(p, self.world)
        }
        self._layouts |= added
        if added:
            for optimizer in self._optimizers:
                self._part_state(optimizer, added)

    def _guard(self, problem: Problem) -> None:
        """Let a module say so when it is used where it holds parts of its parameters."""
        module, name = problem.module, problem.name
        if module in self._guarded:
            return
        _require_plain(problem)
        self._guarded.add(module)

        def require_whole(module: nn.Module, *given: Any) -> None:
            if not torch.compiler.is_compiling():
                self._require_whole(module, name)

        module.register_forward_pre_hook(require_whole)
        module.register_state_dict_pre_hook(require_whole)

    def _require_whole(self, module: nn.Module, name: str) -> None:
        if self._resting and any(p in self._resting for p in module.parameters()):
            raise ConfigurationError(
                f"The module of problem {name!r} was evaluated, copied or asked for its state_dict "
                f"where each of {self.world} processes holds a part of its parameters; do it "
                "within 'with engine.whole_parameters():', which all processes enter."
            )

    def _before_step(self, optimizer: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if kwargs.get("closure") is not None or any(callable(a) for a in args[1:]):
            raise ConfigurationError(
                f"{type(optimizer).__name__}.step was given a closure, which would find parts of "
                "the parameters under EngineConfig(strategy='fsdp'); use an optimizer that takes "
                "none, or strategy='zero'."
            )
        self._part_gradients([p for g in optimizer.param_groups for p in g["params"]])

    @torch.no_grad()
    def _part_gradients(self, parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            if parameter in self._layouts and parameter not in self._resting:
                gradient = parameter.grad
                self._rest(parameter)
                if gradient is not None:
                    parameter.grad = self._layouts[parameter].part(gradient)

    def _part_state(
        self, optimizer: torch.optim.Optimizer, layouts: Mapping[Tensor, ShardLayout]
    ) -> None:
        for parameter, layout in layouts.items():
            if parameter in optimizer.state:
                optimizer.state[parameter] = {
                    key: layout.part(value) if layout.is_whole(value) else value
                    for key, value in optimizer.state[parameter].items()
                }

    def _gather_state(self, optimizer: torch.optim.Optimizer) -> None:
        state = optimizer.state
        places = [
            (p, key, layout)
            for p, layout in self._layouts.items()
            if p in state
            for key, value in state[p].items()
            if layout.is_part(value)
        ]
        wholes = self._gathered([(layout, state[p][key]) for p, key, layout in places])
        # A state_dict taken before shares the dictionaries.
        state.update({p: dict(state[p]) for p, _, _ in places})
        for (p, key, _), whole in zip(places, wholes, strict=True):
            state[p][key] = whole

    def _gather_recordings(self, problems: Sequence[Problem]) -> None:
        places = recorded_parts(self._layouts, problems)
        wholes = self._gathered([(layout, holder[key]) for layout, holder, key in places])
        for (_, holder, key), whole in zip(places, wholes, strict=True):
            holder[key] = whole

    @torch.no_grad()
    def _gathered(self, parts: Sequence[tuple[ShardLayout, Tensor]]) -> list[Tensor]:
        """Return the whole of which each tensor is this process's part."""
        found: list[Tensor] = [part for _, part in parts]
        for places in by_kind(found):
            lengths = [parts[i][0].length for i in places]
            own = found[places[0]].new_zeros(sum(lengths))
            padded = own.split(lengths)  # type: ignore[no-untyped-call]
            for i, place in zip(places, padded, strict=True):
                place[: found[i].numel()].copy_(found[i])
            everyone = own.new_empty(self.world, own.numel())
            dist.all_gather(list(everyone.unbind()), own)
            rows = everyone.split(lengths, dim=1)  # type: ignore[no-untyped-call]
            for i, row in zip(places, rows, strict=True):
                found[i] = parts[i][0].whole(row.reshape(-1))
        return found


def _can_be_parted(parameter: Tensor, world: int) -> bool:
    return (
        parameter.layout == torch.strided
        and not parameter.is_quantized
        and parameter.numel() >= world
        and parameter.data.device.type != "meta"
    )


def _require_plain(problem: Problem) -> None:
    for name, parameter in problem.module.named_parameters():
        if type(parameter.data) is not Tensor:
            raise ConfigurationError(
                f"Parameter {name!r} of problem {problem.name!r} is of type "
                f"{type(parameter.data).__name__}, of which EngineConfig(strategy='fsdp') cannot "
                "keep a part; give plain tensors, such as the module had before fully_shard."
            )
