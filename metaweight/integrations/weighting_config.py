"""How weights are learned in a loop that is not an engine's."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from metaweight.problems import ConfigurationError, Reweighting
from metaweight.problems.base.settings import (
    is_part,
    require_count,
    require_flag,
    require_number,
    shown,
)
from metaweight.weighting import MetaWeightNet


@dataclass(frozen=True)
class WeightingConfig:
    """How weights are learned: ``min_θ Σ_j L(f_{w*(θ)}(x_j), y_j)`` over clean samples.

    Args:
        weight_network: A network ``V(losses, labels)`` of one weight per sample, which is copied;
            ``None`` for ``MetaWeightNet()``. ``ClassAwareWeightNet(torch.arange(C))`` sees the
            class as well as the loss.
        learning_rate: Learning rate of the weight network's Adam; by default the published one.
        normalise: Scale the weights of each batch to mean 1.
        warmup: Share of the optimizer steps, in [0, 1), before the weight network starts. Until
            then it weighs as it was made.
        every: Optimizer steps from one step of the weight network to the next.
        derivative: How the hypergradient is formed, such as
            ``Reweighting(derivative="one_sided")``, which takes a pass less and keeps a copy of the
            parameters.

    Raises:
        ConfigurationError: For a value of another type or out of range.
    """

    weight_network: nn.Module | None = None
    learning_rate: float = 0.001
    normalise: bool = True
    warmup: float = 0.2
    every: int = 1
    derivative: Reweighting = field(default_factory=Reweighting)

    def __post_init__(self) -> None:
        who = type(self).__name__
        for name, kind, advice in (
            ("weight_network", (nn.Module, type(None)), "give a module, such as MetaWeightNet()"),
            ("derivative", Reweighting, "give Reweighting() or Reweighting(derivative=...)"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ConfigurationError(
                    f"{who} received {name}={shown(getattr(self, name))}; {advice}."
                )
        advice = "0.001 is the usual choice"
        require_number(who, "learning_rate", self.learning_rate, positive=True, advice=advice)
        require_flag(who, "normalise", self.normalise)
        require_count(who, "every", self.every, least=1)
        if not is_part(self.warmup):
            raise ConfigurationError(
                f"{who}(warmup={self.warmup!r}) must be a share of the steps in [0, 1)."
            )

    def made_network(self, seed: int) -> nn.Module:
        """Return a copy of the weight network, or a new one drawn from a seed."""
        if self.weight_network is not None:
            return copy.deepcopy(self.weight_network)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return MetaWeightNet()
