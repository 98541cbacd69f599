"""The states that a hypergradient method keeps from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..base.nested import map_tensors

Path = tuple[str, ...]


class MethodStates:
    """The states of a lower problem's method, one for each hypergradient path through it.

    A path is the names of its problems, from the upper problem down and back up to it. What a
    product proposes counts once its upper problem has taken the step, and is forgotten otherwise.

    Attributes:
        kept: The states of accepted steps, by path.
        proposed: Those of a step that is under way. Later micro-batches of it start from these.
    """

    def __init__(self) -> None:
        self.kept: dict[Path, Any] = {}
        self.proposed: dict[Path, Any] = {}

    def of(self, path: Path) -> Any:
        """Return the state that the next product along a path starts from, or ``None``."""
        return self.proposed.get(path, self.kept.get(path))

    def propose(self, path: Path, state: Mapping[str, Any]) -> None:
        """Keep a state once the path's upper problem takes its step."""
        self.proposed[path] = map_tensors(lambda t: t.detach() if t.requires_grad else t, state)

    def settle(self, upper: str, *, taken: bool) -> None:
        """Keep what the step of an upper problem proposed, or forget it if it was not taken."""
        for path in [path for path in self.proposed if path[0] == upper]:
            state = self.proposed.pop(path)
            if taken:
                self.kept[path] = state

    def write_back(self, before: Mapping[Path, Any]) -> None:
        """Write the kept states to the tensors of earlier ones, and keep those.

        Raises:
            ValueError: For states of another form.
        """

        def write(old: Tensor, new: Tensor) -> Tensor:
            return old if old is new else old.copy_(new)

        with torch.no_grad():
            self.kept = {path: map_tensors(write, before[path], s) for path, s in self.kept.items()}

    def forget(self) -> None:
        """Forget all states."""
        self.kept.clear()
        self.proposed.clear()

    def converted(self, convert: Callable[[Tensor], Tensor]) -> MethodStates:
        """Return the same states with every tensor converted."""
        other = MethodStates()
        other.kept = {path: map_tensors(convert, state) for path, state in self.kept.items()}
        other.proposed = {path: map_tensors(convert, s) for path, s in self.proposed.items()}
        return other

    def state_dict(self) -> dict[str, Any]:
        """Return the states, to be saved."""
        return {
            "kept": [[list(path), state] for path, state in self.kept.items()],
            "proposed": [[list(path), state] for path, state in self.proposed.items()],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> MethodStates:
        """Return what :meth:`state_dict` saved; no states for an empty mapping."""
        made = cls()
        made.kept = {tuple(path): value for path, value in state.get("kept", [])}
        made.proposed = {tuple(path): value for path, value in state.get("proposed", [])}
        return made
