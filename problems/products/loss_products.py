"""Products with second derivatives of a loss that is given as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..base.backward import gradients_with_graph
from ..base.settings import is_positive
from ..kernels.gradient_hooks import silent_hooks
from ..kernels.twice_differentiable import differentiable_twice
from .displaced import inverse_step
from .recorded_loss import gradient_of
from .second_derivatives import central_difference, double_backward, forward_over_reverse

METHODS = ("exact", "forward_over_reverse", "finite_difference")


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors that require a gradient: the given ones, or views of their storage."""
    return [t if t.requires_grad else t.detach().requires_grad_() for t in tensors]


def product(
    asked: str,
    loss: Callable[[list[Tensor]], Tensor],
    params: list[Tensor],
    inputs: Sequence[Tensor],
    vector: Sequence[Tensor],
    method: str,
    alpha: float,
) -> list[Tensor]:
    """Return ``∂/∂x <∇_w L, v>`` for ``x`` among ``w`` or other tensors ``L`` depends on.

    Args:
        asked: Name of the called function, for messages.
        loss: ``L``.
        params: ``w``.
        inputs: ``x``.
        vector: ``v``.
        method: One of ``METHODS``.
        alpha: Length of the displacement of a finite difference.

    Raises:
        TypeError: When the loss is no tensor.
        ValueError: When it is not one number, the method is unknown, or alpha is not positive.
    """

    def value(places: list[Tensor]) -> Tensor:
        return one_number(asked, loss(places))

    require_known(asked, "method", method, METHODS)
    require_length(asked, alpha)
    with silent_hooks([*params, *inputs]):
        return _product(asked, value, params, inputs, vector, method, alpha)


def _product(
    asked: str,
    value: Callable[[list[Tensor]], Tensor],
    params: list[Tensor],
    inputs: Sequence[Tensor],
    vector: Sequence[Tensor],
    method: str,
    alpha: float,
) -> list[Tensor]:
    if method == "forward_over_reverse":
        with differentiable_twice():
            return forward_over_reverse(
                lambda duals: require_tangent(asked, "loss", value(duals)), params, vector, inputs
            )
    if method == "exact":
        with differentiable_twice() as kernels:
            found = value(params)
            if not found.requires_grad:
                return [torch.zeros_like(t) for t in inputs]
            with kernels.values_unread(params):
                gradient = gradients_with_graph(found, params)
            return double_backward(gradient, vector, inputs)

    def gradients() -> list[Tensor]:
        return gradient_of(value(params), inputs)

    inverse_eps = inverse_step(vector, alpha, params[0].dtype)
    return central_difference(gradients, gradients, params, vector, inverse_eps)


def one_number(asked: str, loss: object) -> Tensor:
    """Return the loss as a 0-dim tensor.

    Raises:
        TypeError: When it is no tensor.
        ValueError: When it is not one number.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{asked}: loss must return a 0-dim tensor but returned type {type(loss).__name__}; "
            "return the loss itself, not its .item()."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"{asked}: loss must return one number but returned shape {tuple(loss.shape)}; reduce "
            "it, for instance with .mean()."
        )
    return loss.reshape(())


def require_tangent(asked: str, name: str, value: Tensor) -> Tensor:
    """Refuse a value computed from dual numbers that has no tangent.

    Raises:
        ValueError: Saying that the function ignored its argument.
    """
    tensor = isinstance(value, Tensor)
    if tensor and forward_ad.unpack_dual(value).tangent is None:  # type: ignore[no-untyped-call]
        raise ValueError(
            f"{asked}: {name} does not depend on the tensors it was given, which replace params in "
            "forward mode; compute it with its argument, for instance by "
            "torch.func.functional_call, or choose another method."
        )
    return value


def require_length(asked: str, alpha: object) -> None:
    """Refuse a displacement of no length.

    Raises:
        ValueError: For anything but a positive, finite number.
    """
    if not is_positive(alpha):
        raise ValueError(
            f"{asked}: alpha={alpha!r} is the length of a displacement; give a positive, finite "
            "number."
        )


def require_known(asked: str, name: str, given: object, known: Sequence[str]) -> None:
    """Refuse an unknown choice.

    Raises:
        ValueError: Naming the known choices.
    """
    if given not in known:
        raise ValueError(f"{asked}: {name}={given!r} is not known; choose from {', '.join(known)}.")
