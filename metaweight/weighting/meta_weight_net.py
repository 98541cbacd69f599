"""The weight network of Meta-Weight-Net.

Source: Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting",
NeurIPS 2019 (arXiv:1902.07379).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from metaweight.problems import ConfigurationError, LossError
from metaweight.problems.base.settings import is_count, require_choice

WeightOutput = Literal["sigmoid", "exponential"]
"""How the last number of a weight network becomes a weight."""

_LARGEST_EXPONENT = 20.0


class MetaWeightNet(nn.Module):
    """``V(l) = sigmoid(MLP(l))``: a weight in (0, 1) for each sample loss.

    Args:
        hidden_size: Width of the hidden layers; 100 in the paper.
        num_layers: Hidden layers; 1 in the paper.
        output: ``"sigmoid"``, as in the paper; or ``"exponential"``, ``exp(MLP(l))``, for weights
            that are then normalised. Normalised weights depend on the ratios of ``V`` alone. The
            sigmoid has ratios near 1, and next to no derivative, once all of its values are near
            1; it may then stay there. Ratios of the exponential do not depend on its level. All
            of its weights are 1 at first.
    """

    def __init__(
        self, hidden_size: int = 100, num_layers: int = 1, output: WeightOutput = "sigmoid"
    ) -> None:
        super().__init__()
        require_choice("MetaWeightNet", "output", output, WEIGHT_OUTPUTS)
        self.output: WeightOutput = output
        self.layers = weight_mlp(1, hidden_size, num_layers, output)

    def forward(self, losses: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return one weight per loss, in the shape of ``losses``: (B,) or (B, 1).

        Args:
            losses: Sample losses, without a graph.
            classes: Ignored; accepted so that weight networks are interchangeable.

        Raises:
            LossError: For losses of another shape.
        """
        del classes
        logits = rated(self.layers, loss_column(losses))
        return WEIGHT_OUTPUTS[self.output](logits).reshape(losses.shape)


def _exponential(logits: Tensor) -> Tensor:
    # Above the bound sums of weights would come near the largest number of single precision.
    return logits.clamp(max=_LARGEST_EXPONENT).exp()


WEIGHT_OUTPUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "exponential": _exponential,
}


def weight_mlp(
    inputs: int, hidden_size: int, num_layers: int, output: WeightOutput = "sigmoid"
) -> nn.Sequential:
    """Return ``Linear → ReLU`` repeated ``num_layers`` times, then ``Linear`` to one output.

    The last is zero where the output is exponential: drawn at random, large losses would have
    weights of any size.
    """
    if not is_count(hidden_size, least=1) or not is_count(num_layers, least=1):
        raise ConfigurationError(
            f"A weight network of hidden_size={hidden_size}, num_layers={num_layers} has no hidden "
            "unit; both must be at least 1."
        )
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(inputs, hidden_size), nn.ReLU()]
        inputs = hidden_size
    last = nn.Linear(inputs, 1)
    if output == "exponential":
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def rated(layers: nn.Sequential, columns: Tensor) -> Tensor:
    """Return what the layers of :func:`weight_mlp` make of features (B, inputs), (B, 1).

    It is computed in the type of the layers; for features of another, it is of the wider one.
    """
    own = next(layers.parameters()).dtype
    found: Tensor = layers(columns.to(own))
    return found if columns.dtype == own else found.to(torch.promote_types(own, columns.dtype))


def loss_column(losses: Tensor) -> Tensor:
    """Return losses of shape (B,) or (B, 1) as (B, 1).

    Raises:
        LossError: For any other shape.
    """
    floating = losses.is_floating_point()
    if not floating or losses.ndim not in (1, 2) or losses.numel() != losses.shape[0]:
        raise LossError(
            f"A weight network received losses of shape {tuple(losses.shape)} and type "
            f"{losses.dtype}; give one loss per sample, (B,) or (B, 1), for instance "
            "with reduction='none'."
        )
    return losses.reshape(-1, 1)
