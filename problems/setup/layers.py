"""Refusal of layers whose derivatives a method would have wrong."""

from __future__ import annotations

from torch import nn

from ..base.errors import ConfigurationError
from ..problem import Problem
from ..step.lower_view import lower_view


def require_known_derivatives(lower: Problem) -> None:
    """Refuse layers whose gradient is not the derivative of their value, or has no derivative.

    Raises:
        ConfigurationError: Naming the problem, the layer and what to choose instead.
    """
    method, view = lower.hypergradient, lower_view(lower)
    differences = method.approximation(view) is not None
    first = method.zeroth_order or differences or method.takes_first_derivatives(view)
    for name, layer in lower.module.named_modules():
        reason = None
        if isinstance(layer, nn.CrossMapLRN2d) and not first:
            reason = (
                "cannot be differentiated twice. Use nn.LocalResponseNorm, which computes the same"
            )
        elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            reason = _why_not(layer, differences, method.follows_optimizer)
        if reason is not None:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for {type(method).__name__}, but its layer "
                f"{name or 'module'!r} ({type(layer).__name__}) {reason}."
            )


def _why_not(layer: nn.Embedding | nn.EmbeddingBag, differences: bool, follows: bool) -> str | None:
    if layer.max_norm is not None and (differences or not follows):
        return (
            f"has max_norm={layer.max_norm}: it writes to its table in every pass. Use "
            "Config(type='unroll'), which repeats the steps, or normalise the rows in forward"
        )
    if layer.scale_grad_by_freq and differences:
        return (
            "has scale_grad_by_freq=True: its gradient is not the derivative of the loss, whose "
            "differences the method takes. Use Config(type='unroll'), "
            "Reweighting(derivative='forward_mode'), or scale_grad_by_freq=False"
        )
    return None
