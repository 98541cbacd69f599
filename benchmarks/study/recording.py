"""The weight network over the course of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metaweight import Engine, Hook

LARGEST_LOSS = 10.0


class WeightFunctions(Hook):
    """Evaluates the weight network on a grid of losses at several steps of a run.

    Args:
        classes: One class of each group that has its own function.
        moments: Steps after which to evaluate.
    """

    def __init__(self, classes: Tensor, moments: list[int]) -> None:
        self.losses = torch.linspace(0, LARGEST_LOSS, 101)
        self.weights: dict[str, list[list[float]]] = {}
        self._classes = classes
        self._moments = frozenset(moments)

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step not in self._moments:
            return
        groups, points = len(self._classes), len(self.losses)
        losses = self.losses.repeat(groups).to(engine.device)
        classes = self._classes.repeat_interleave(points).to(engine.device)
        with torch.no_grad():
            weights = engine.reweight(losses, classes)
        rows = weights.view(groups, points).tolist()
        self.weights[str(engine.global_step)] = [[round(w, 4) for w in row] for row in rows]

    def state_dict(self) -> dict[str, Any]:
        """Return the functions so far."""
        return {"weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from saved functions."""
        self.weights = dict(state["weights"])
