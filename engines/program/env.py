"""Environment shared by the problems of an engine: a simulator, a task sampler or other state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class Env:
    """State that problems share beside their parameters; problems access it as ``self.env``.

    Derive from it, keep the shared state as attributes, and advance it where the program needs to,
    for instance in an overridden ``Engine.train_step``. Problems are its attributes by their names.
    """

    env: Any = None
    train_data_loader: Any = None
    device: torch.device | None = None
    _peers: Mapping[str, Any] = {}

    def initialize(self) -> None:
        """Called once the device is known and before any problem is prepared."""

    def configure_device(self, device: torch.device) -> None:
        """Receive the engine's device."""
        self.device = device

    def introduce(self, problems: Iterable[Any]) -> None:
        """Make problems attributes by their names."""
        self._peers = {problem.name: problem for problem in problems}

    def __getattr__(self, name: str) -> Any:
        peers = type(self)._peers if name.startswith("_") else self._peers
        if name in peers:
            return peers[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}.")
