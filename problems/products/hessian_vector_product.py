"""The product of the Hessian of a loss with a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..base.tensor_lists import checked_floating, checked_vector
from .loss_products import leaves, product

Loss = Callable[[list[Tensor]], Tensor]


def hessian_vector_product(
    loss: Loss,
    params: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    method: str = "exact",
    alpha: float = 1e-2,
) -> list[Tensor]:
    """Return ``∇²L(w) v``, the Hessian of ``L`` at ``w`` times ``v``. ::

        >>> w = torch.tensor([1.0, 2.0])
        >>> hessian_vector_product(lambda params: (params[0] ** 3).sum(), [w], [torch.ones(2)])
        [tensor([ 6., 12.])]

    Args:
        loss: ``L``: returns a 0-dim tensor for a list of tensors like ``params``. Tensors that
            require a gradient are passed unchanged, so a loss of a module that holds them may
            ignore its argument: ``lambda params: F.mse_loss(module(x), y)``.
        params: ``w``, floating-point tensors of any shapes.
        v: One tensor per entry of ``params``, of the same shape.
        method: ``"exact"``: double backward. ``"forward_over_reverse"``: the same values by a
            backward pass with tangents; the loss must then use its argument.
            ``"finite_difference"``: ``(∇L(w + eps v) - ∇L(w - eps v)) / (2 eps)``, two gradients,
            with ``params`` displaced in place and restored bit for bit.
        alpha: Length ``||eps v||`` of the displacement.

    Returns:
        One tensor per entry of ``params``, of its shape and type, without a graph; zeros where the
        gradient does not depend on it.

    Raises:
        TypeError: When ``params`` or ``v`` is no sequence of tensors, or the loss is no tensor.
        ValueError: When shapes do not match, the loss is not one number, the method is unknown, or
            ``alpha`` is not positive.
    """
    asked = "hessian_vector_product"
    at = leaves(checked_floating(asked, "params", params))
    vector = checked_vector(asked, v, at, "params")
    with torch.enable_grad():
        return product(asked, loss, at, at, vector, method, alpha)
