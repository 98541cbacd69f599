"""The product of the mixed second derivative of a loss with a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..base.tensor_lists import checked_floating, checked_vector
from .loss_products import leaves, product

Loss = Callable[[list[Tensor], list[Tensor]], Tensor]


def mixed_vector_product(
    loss: Loss,
    params: Sequence[Tensor],
    upper: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    method: str = "exact",
    alpha: float = 1e-2,
) -> list[Tensor]:
    """Return ``∂²L/∂θ∂w · v = ∇_θ <∇_w L(w, θ), v>``. ::

        >>> w, theta = torch.tensor([1.0, 2.0]), torch.tensor(3.0)
        >>> def loss(params, upper):
        ...     return upper[0] * (params[0] ** 2).sum()
        >>> mixed_vector_product(loss, [w], [theta], [torch.ones(2)])  # 2 (1 + 2)
        [tensor(6.)]

    Args:
        loss: ``L``: returns a 0-dim tensor for a list of tensors like ``params`` and one like
            ``upper``. Tensors that require a gradient are passed unchanged, so a loss of modules
            that hold them may ignore its arguments.
        params: ``w``, floating-point tensors of any shapes.
        upper: ``θ``, floating-point tensors of any shapes.
        v: One tensor per entry of ``params``, of the same shape.
        method: ``"exact"``: double backward. ``"forward_over_reverse"``: the same values by a
            backward pass with tangents; the loss must then use ``params``.
            ``"finite_difference"``: ``(∇_θ L(w + eps v) - ∇_θ L(w - eps v)) / (2 eps)``, two
            gradients, with ``params`` displaced in place and restored bit for bit; what the loss
            detaches changes with them.
        alpha: Length ``||eps v||`` of the displacement.

    Returns:
        One tensor per entry of ``upper``, of its shape and type, without a graph; zeros where
        ``∇_w L`` does not depend on it.

    Raises:
        TypeError: When ``params``, ``upper`` or ``v`` is no sequence of tensors, or the loss is no
            tensor.
        ValueError: When shapes do not match, the loss is not one number, the method is unknown, or
            ``alpha`` is not positive.
    """
    asked = "mixed_vector_product"
    at = leaves(checked_floating(asked, "params", params))
    above = leaves(checked_floating(asked, "upper", upper, least=0))
    vector = checked_vector(asked, v, at, "params")
    with torch.enable_grad():
        return product(asked, lambda places: loss(places, above), at, above, vector, method, alpha)
