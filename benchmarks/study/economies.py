"""Cheaper hypergradients of learned weights, by name: ``--method meta-weight-net/last-block``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metaweight import AdaptiveInterval, Hook, LastLayers, Reweighting, SampledLayers

ONE_SIDED = Reweighting(derivative="one_sided")


@dataclass(frozen=True)
class Economy:
    """Changes of a program that learns weights.

    Attributes:
        config: Settings of the classifier's ``Config``.
        interval: Whether the weight network steps more rarely while its gradients disagree.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    interval: bool = False

    def hooks(self, upper: str) -> Sequence[Hook]:
        """Return the hooks it needs, given the name of the upper problem."""
        return (AdaptiveInterval(upper),) if self.interval else ()


ECONOMIES: Mapping[str, Economy] = {
    "": Economy(),
    "one-sided": Economy({"type": ONE_SIDED}),
    # A convolution with its batch norm, and the classifier, of the network for digits.
    "last-block": Economy({"type": ONE_SIDED, "hypergradient_parameters": LastLayers(3)}),
    "last-layer": Economy({"type": ONE_SIDED, "hypergradient_parameters": LastLayers(1)}),
    "sampled-layers": Economy({"type": ONE_SIDED, "hypergradient_parameters": SampledLayers(3)}),
    "every-4": Economy({"unroll_steps": 4}),
    "every-8": Economy({"unroll_steps": 8}),
    "adaptive": Economy(interval=True),
}
"""Economies by the name after the slash; without one, the usual hypergradient at every step."""
