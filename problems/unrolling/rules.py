"""The update rules of torch's optimizers, as differentiable functions.

A rule maps parameters ``w``, their gradient ``g`` (both flat), the optimizer's state and its
settings to the new parameters and state. Settings may be tensors with a graph. torch's
``differentiable=True`` is not used for these five: it detaches the gradient of the first step with
momentum, has infinite derivatives where a second moment is zero, and accepts few settings as
tensors.

Sources: Kingma, Ba, "Adam", ICLR 2015 (arXiv:1412.6980); Reddi et al., "On the Convergence of Adam
and Beyond" (AMSGrad), ICLR 2018; Loshchilov, Hutter, "Decoupled Weight Decay Regularization"
(AdamW), ICLR 2019 (arXiv:1711.05101); Tieleman, Hinton, "RMSProp", 2012; Duchi, Hazan, Singer,
"Adaptive Subgradient Methods" (Adagrad), JMLR 2011; details as in torch.optim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Settings = Mapping[str, Any]
Rule = Callable[[Tensor, Tensor, State, Settings], tuple[Tensor, dict[str, Tensor]]]


def root(squares: Tensor) -> Tensor:
    """Return ``sqrt(squares)``, with derivative 0 instead of infinity at 0.

    A second moment is exactly 0 only if every gradient so far was, and then the derivative of the
    moment is 0 too.
    """
    zero = squares == 0
    return torch.where(zero, torch.zeros_like(squares), torch.where(zero, 1.0, squares).sqrt())


def signed(g: Tensor, settings: Settings) -> Tensor:
    """Return the gradient of the minimised loss."""
    return -g if settings["maximize"] else g


def decayed(w: Tensor, g: Tensor, settings: Settings) -> Tensor:
    """Return the gradient plus that of the L2 penalty."""
    penalised: Tensor = g + settings["weight_decay"] * w
    return penalised


def sgd(w: Tensor, g: Tensor, state: State, settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """``b' = μ b + (1 - δ)(g + λw)``, ``w' = w - η b'``; the first step takes ``b' = g + λw``."""
    g = decayed(w, signed(g, settings), settings)
    momentum = settings["momentum"]
    if not isinstance(momentum, Tensor) and momentum == 0:
        return w - settings["lr"] * g, {}
    buffer = state.get("momentum_buffer")
    buffer = g if buffer is None else momentum * buffer + (1 - settings["dampening"]) * g
    direction = g + momentum * buffer if settings["nesterov"] else buffer
    return w - settings["lr"] * direction, {"momentum_buffer": buffer}


def adam(
    w: Tensor, g: Tensor, state: State, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """``m' = β₁m + (1-β₁)g``, ``v' = β₂v + (1-β₂)g²``, ``w' = w - η m̂ / (sqrt(v̂) + ε)``."""
    beta1, beta2 = settings["betas"]
    g = signed(g, settings)
    if settings.get("decoupled_weight_decay", False):
        w = w * (1 - settings["lr"] * settings["weight_decay"])
    else:
        g = decayed(w, g, settings)
    step = _counted(state, w)
    first = beta1 * _moment(state, "exp_avg", w) + (1 - beta1) * g
    second = beta2 * _moment(state, "exp_avg_sq", w) + (1 - beta2) * g * g
    new = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    largest = second
    if settings["amsgrad"]:
        largest = torch.maximum(_moment(state, "max_exp_avg_sq", w), second)
        new["max_exp_avg_sq"] = largest
    scale = (1 - beta2**step) ** 0.5
    denominator = root(largest) / scale + settings["eps"]
    return w - settings["lr"] * first / (1 - beta1**step) / denominator, new


def rmsprop(
    w: Tensor, g: Tensor, state: State, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """``s' = αs + (1-α)g²``, ``w' = w - η g / (sqrt(s') + ε)``; also centred, and with momentum."""
    g = decayed(w, signed(g, settings), settings)
    alpha, momentum = settings["alpha"], settings["momentum"]
    square = alpha * _moment(state, "square_avg", w) + (1 - alpha) * g * g
    new = {"step": _counted(state, w), "square_avg": square}
    variance = square
    if settings["centered"]:
        mean = alpha * _moment(state, "grad_avg", w) + (1 - alpha) * g
        new["grad_avg"] = mean
        variance = square - mean * mean
    direction = g / (root(variance) + settings["eps"])
    if isinstance(momentum, Tensor) or momentum > 0:
        direction = momentum * _moment(state, "momentum_buffer", w) + direction
        new["momentum_buffer"] = direction
    return w - settings["lr"] * direction, new


def adagrad(
    w: Tensor, g: Tensor, state: State, settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """``s' = s + g²``, ``w' = w - η / (1 + (t-1)κ) g / (sqrt(s') + ε)``."""
    g = decayed(w, signed(g, settings), settings)
    step = _counted(state, w)
    total = _moment(state, "sum", w) + g * g
    rate = settings["lr"] / (1 + (step - 1) * settings["lr_decay"])
    return w - rate * g / (root(total) + settings["eps"]), {"step": step, "sum": total}


RULES: Mapping[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: sgd,
    torch.optim.Adam: adam,
    torch.optim.AdamW: adam,
    torch.optim.RMSprop: rmsprop,
    torch.optim.Adagrad: adagrad,
}

# The wrapper that torch puts around a class's step when its first optimizer is made.
_PROFILED = getattr(torch.optim.Optimizer.profile_hook_step(lambda _: None), "__code__", None)


def rule_kind(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer] | None:
    """Return the optimizer in :data:`RULES` whose step this one takes, ``None`` if it has another:
    a class derived from one of these takes its step unless it overrides that."""
    kind = type(optimizer)
    known = next((base for base in kind.__mro__ if base in RULES), None)
    return known if known is not None and _parts_of_step(kind) == _parts_of_step(known) else None


def _parts_of_step(kind: type[torch.optim.Optimizer]) -> tuple[Any, Any]:
    step: Any = kind.step
    plain = step.__wrapped__ if getattr(step, "__code__", None) is _PROFILED else step
    return plain, getattr(kind, "_init_group", None)


def _moment(state: State, name: str, like: Tensor) -> Tensor:
    value = state.get(name)
    return torch.zeros_like(like) if value is None else value


def _counted(state: State, like: Tensor) -> Tensor:
    value = state.get("step")
    return torch.ones_like(like) if value is None else value.to(like) + 1
