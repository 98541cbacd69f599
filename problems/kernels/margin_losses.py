"""Margin losses of several classes, composed of operations that can be differentiated twice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reduced(
    losses: Tensor, reduction: str, size_average: bool | None = None, reduce: bool | None = None
) -> Tensor:
    """Return the mean or the sum of losses, or the losses; as torch's losses do."""
    if size_average is not None or reduce is not None:
        whole = "sum" if size_average is False else "mean"
        reduction = "none" if reduce is False else whole
    return {"mean": losses.mean, "sum": losses.sum}.get(reduction, lambda: losses)()


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return ``Σ_{j≠y} w_y max(0, margin - x_y + x_j)^p / C``, in place of torch's."""
    index = target.unsqueeze(-1)
    hinges = F.relu(margin - input.gather(-1, index) + input).pow(p)
    if weight is not None:
        hinges = hinges * weight[target].unsqueeze(-1)
    others = torch.ones_like(input).scatter(-1, index, 0.0)
    return reduced((hinges * others).sum(-1) / input.shape[-1], reduction, size_average, reduce)


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return ``Σ_{j in y, i not in y} max(0, 1 - x_j + x_i) / C``, in place of torch's.

    ``y`` holds the classes before the first negative one.
    """
    valid = ((target < 0).cumsum(-1) == 0).to(input.dtype)
    index = target.clamp(min=0)
    others = (torch.zeros_like(input).scatter_add(-1, index, valid) == 0).to(input.dtype)
    hinges = F.relu(1.0 - input.gather(-1, index).unsqueeze(-1) + input.unsqueeze(-2))
    pairs = valid.unsqueeze(-1) * others.unsqueeze(-2)
    return reduced(
        (hinges * pairs).sum((-1, -2)) / input.shape[-1], reduction, size_average, reduce
    )
