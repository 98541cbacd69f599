"""Refusal of layers whose derivatives a method would have wrong."""

from __future__ import annotations

import warnings

import torch
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
    if not first:
        _require_unscripted(lower)
    if differences:
        _warn_of_detached_norms(lower)
    for name, layer in lower.module.named_modules():
        reason = None
        if isinstance(layer, nn.CrossMapLRN2d) and not first:
            reason = (
                "cannot be differentiated twice. Use nn.LocalResponseNorm, which computes the same"
            )
        elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            reason = _why_not(layer, differences, method.follows_optimizer)
        elif differences and rounds_its_inputs(layer, lower.device):
            reason = (
                "rounds its inputs to 8 bits on this device, which a difference of losses takes "
                "for their slope. Use Linear4bit, or a method that takes no difference, such as "
                "type='unroll' or 'cg'"
            )
        if reason is not None:
            raise ConfigurationError(
                f"Problem {lower.name!r} asks for {type(method).__name__}, but its layer "
                f"{name or 'module'!r} ({type(layer).__name__}) {reason}."
            )


def _warn_of_detached_norms(lower: Problem) -> None:
    """Warn of the norm that PEFT's DoRA detaches, and a difference moves."""
    named = lower.module.named_modules()
    found = [name for name, layer in named if type(layer).__module__ == "peft.tuners.lora.dora"]
    if found:
        warnings.warn(
            f"The network of problem {lower.name!r} has {len(found)} layers of DoRA, such as "
            f"{found[0]!r}. PEFT detaches a norm of their weights; a difference of losses, which "
            f"{type(lower.hypergradient).__name__} takes, moves it all the same, and the "
            "hypergradient is off by some percent. Reweighting(derivative='forward_mode') is "
            "exact.",
            stacklevel=2,
        )


def rounds_its_inputs(layer: nn.Module, device: torch.device) -> bool:
    """Whether it is a layer of bitsandbytes whose kernels on a device take inputs of 8 bits."""
    kind = type(layer)
    ours = kind.__module__.startswith("bitsandbytes.") and kind.__name__ == "Linear8bitLt"
    return ours and device.type != "cpu"


def _require_unscripted(lower: Problem) -> None:
    """Refuse scripted modules of the problem and of those its loss may read.

    ``torch.jit`` computes their backward passes itself: it drops forward derivatives, and the
    operations whose second derivatives torch has wrong cannot be replaced.
    """
    for problem in (lower, *lower.position.peers.values()):
        for name, layer in problem.module.named_modules():
            if isinstance(layer, torch.jit.ScriptModule):
                raise ConfigurationError(
                    f"Problem {lower.name!r} asks for {type(lower.hypergradient).__name__}, which "
                    "takes second or forward derivatives, but the layer "
                    f"{name or 'module'!r} of problem {problem.name!r} is scripted or traced by "
                    "torch.jit, which may lose them. Give the module as it was before, with "
                    "Config(compile=True) for speed, or choose a method of first derivatives, "
                    "such as Config(type='darts')."
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
