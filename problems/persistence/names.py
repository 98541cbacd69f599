"""Names of a program's tensors, by which a checkpoint refers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..base.errors import CheckpointError
from ..state.buffers import BufferSlot

if TYPE_CHECKING:
    from ..problem import Problem


class Names:
    """Maps names to the parameters and buffers of several problems, and back.

    A parameter's name is ``problem.path.in.module``, or ``problem/group/position`` if only an
    optimizer has it. If a tensor has several names, the first is used.

    Args:
        problems: The problems, in an order that is the same each time the program is built.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.slots: dict[str, BufferSlot] = {}
        self._of_parameter: dict[Tensor, str] = {}
        self._of_slot: dict[tuple[int, str], str] = {}
        for problem in problems:
            for name, parameter in problem.module.named_parameters():
                self._add(f"{problem.name}.{name}", parameter)
            groups = [] if problem.optimizer is None else problem.optimizer.param_groups
            for number, group in enumerate(groups):
                for position, parameter in enumerate(group["params"]):
                    self._add(f"{problem.name}/{number}/{position}", parameter)
            for prefix, owner in problem.module.named_modules():
                for name in owner._buffers:
                    self._add_slot(f"{problem.name}.{prefix}.{name}", (owner, name))

    def keyed(self, values: Mapping[Tensor, Any]) -> dict[str, Any]:
        """Return ``values`` keyed by name, in the same order.

        Raises:
            CheckpointError: For a tensor without a name.
        """
        unknown = [t for t in values if t not in self._of_parameter]
        if unknown:
            raise CheckpointError(
                f"A parameter of shape {tuple(unknown[0].shape)} was recorded that belongs neither "
                "to a module nor to an optimizer of a problem, so it could not be found when "
                "resuming; make it part of the problem's module."
            )
        return {self._of_parameter[t]: value for t, value in values.items()}

    def name_of(self, slot: BufferSlot) -> str:
        """Return the name of a buffer.

        Raises:
            CheckpointError: For a buffer without a name.
        """
        name = self._of_slot.get((id(slot[0]), slot[1]))
        if name is None:
            raise CheckpointError(
                f"A buffer {slot[1]!r} was recorded that belongs to no problem's module any more; "
                "save where no loop is open, or keep the module."
            )
        return name

    def _add(self, name: str, parameter: Tensor) -> None:
        if parameter not in self._of_parameter:
            self._of_parameter[parameter] = name
            self.parameters[name] = parameter

    def _add_slot(self, name: str, slot: BufferSlot) -> None:
        key = (id(slot[0]), slot[1])
        if key not in self._of_slot:
            self._of_slot[key] = name
            self.slots[name] = slot
