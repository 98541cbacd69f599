"""How the weights of texts are learned in a loop that is not an engine's."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from torch import nn

from metaweight.lm import Sources
from metaweight.lm.problems import AVERAGES, LEVELS, Average, Level
from metaweight.lm.weighers import usual_rate
from metaweight.problems import ConfigurationError, Reweighting
from metaweight.problems.base.settings import (
    is_part,
    require_choice,
    require_count,
    require_number,
    require_text,
    shown,
)


@dataclass(frozen=True)
class TextWeighting:
    """How weights of texts are learned: ``min_θ (1/n) Σ l(w*(θ))`` over the tokens of clean texts.

    Args:
        level: What has a weight: ``"source"``, ``"sequence"`` or ``"token"``, as for
            :class:`~metaweight.lm.WeightedLM`.
        weight_network: What computes them, which is copied. When left out, by level,
            :class:`~metaweight.lm.Sources` of the sources in the training data,
            :class:`~metaweight.lm.Rater`, or :class:`~metaweight.weighting.MetaWeightNet`.
        learning_rate: That of its Adam; when left out, 0.1 for sources and 1e-3 for others.
        warmup: Share of the optimizer steps, in [0, 1), before weights are learned.
        every: Optimizer steps from one step of the weights to the next.
        derivative: How the hypergradient is formed.
        average: ``"tokens"`` or ``"sequences"``: how the loss of an update is averaged.
        micro_batch_size: Sequences in one pass of the model, whose activations alone are kept.
        source: The column that holds the source of a text.

    Raises:
        ConfigurationError: For a value of another type or out of range.
    """

    level: Level = "source"
    weight_network: nn.Module | None = None
    learning_rate: float | None = None
    warmup: float = 0.0
    every: int = 1
    derivative: Reweighting = field(default_factory=Reweighting)
    average: Average = "tokens"
    micro_batch_size: int | None = None
    source: str = "source"

    def __post_init__(self) -> None:
        who = type(self).__name__
        require_choice(who, "level", self.level, LEVELS)
        require_choice(who, "average", self.average, AVERAGES)
        kind, advice = (nn.Module, "a module")
        if self.level == "source":
            kind, advice = (Sources, "Sources([...]) with level='source'")
        if not isinstance(self.weight_network, (kind, type(None))):
            raise ConfigurationError(
                f"{who} received weight_network={shown(self.weight_network)}; give {advice}, or "
                "leave it out."
            )
        if not isinstance(self.derivative, Reweighting):
            raise ConfigurationError(
                f"{who} received derivative={shown(self.derivative)}; give Reweighting() or "
                "Reweighting(derivative=...)."
            )
        if self.learning_rate is not None:
            advice = "0.1 for sources and 0.001 for others is the usual choice"
            require_number(who, "learning_rate", self.learning_rate, positive=True, advice=advice)
        require_count(who, "every", self.every, least=1)
        if self.micro_batch_size is not None:
            require_count(who, "micro_batch_size", self.micro_batch_size, least=1)
        require_text(who, "source", self.source)
        if not is_part(self.warmup):
            raise ConfigurationError(
                f"{who}(warmup={self.warmup!r}) must be a share of the steps in [0, 1)."
            )

    @property
    def rate(self) -> float:
        """The learning rate, or the usual one of the level."""
        return usual_rate(self.level) if self.learning_rate is None else self.learning_rate

    def copied_network(self) -> nn.Module | None:
        """Return a copy of the network, if one was given."""
        return copy.deepcopy(self.weight_network)
