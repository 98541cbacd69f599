"""The product of the mixed second derivative of a weighted mean of sample losses with a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base.nested import map_tensors
from ..base.tensor_lists import checked_floating, checked_tensors, checked_vector
from ..kernels.gradient_hooks import silent_hooks
from ..kernels.twice_differentiable import differentiable_twice
from ..recording.samples import Samples
from .displaced import inverse_step
from .loss_products import require_known, require_length, require_tangent
from .sample_derivatives import (
    Pairs,
    central_derivatives,
    forward_mode_derivatives,
    one_sided_derivatives,
    weighted_gradient,
)

ALPHA = {"central_difference": 1e-2, "one_sided": 3e-4, "forward_mode": 1e-2}
ASKED = "reweighting_product"


def reweighting_product(
    losses: Callable[[list[Tensor]], Tensor | tuple[Tensor, Any]],
    weights: Callable[..., Tensor],
    params: Sequence[Tensor],
    v: Sequence[Tensor],
    upper: Sequence[Tensor] | None = None,
    *,
    derivative: str = "central_difference",
    alpha: float | None = None,
) -> list[Tensor]:
    """Return ``∇_θ mean_i V_i(sg(l); θ) sg(<∇_w l_i, v>)``, where ``sg`` stops the gradient.

    This is ``∂²L/∂θ∂w · v`` of the weighted loss ``L = mean_i V_i(sg(l(w)); θ) l_i(w)``, without a
    second-order graph: one or two forward passes give the directional derivatives ``<∇_w l_i, v>``
    of all samples. Its negative is the hypergradient of Meta-Weight-Net (Shu et al., NeurIPS 2019,
    arXiv:1902.07379) without the lower learning rate. ::

        >>> theta = torch.tensor(2.0, requires_grad=True)
        >>> def losses(params):
        ...     return torch.stack([params[0], 3 * params[0]])
        >>> w, one = torch.tensor(1.0), torch.tensor(1.0)
        >>> def weights(losses):
        ...     return theta * losses
        >>> reweighting_product(losses, weights, [w], [one], [theta], derivative="forward_mode")
        [tensor(5.)]

    Here ``l = (w, 3w)``, the derivatives along ``v`` are ``(1, 3)``, and the mean of
    ``l_i <∇_w l_i, v>`` is ``(1 + 9) / 2``.

    Args:
        losses: ``l``: returns sample losses, shape (B,), for a list of tensors like ``params``. It
            may ignore its argument if a module holds ``params``, except with ``"forward_mode"``,
            which passes dual numbers. It may return ``(l, features)`` instead, a tensor or tuples,
            lists and mappings of tensors.
        weights: ``V``: returns sample weights, shape (B,), for sample losses of shape (B,) without
            a graph, and the features, if there are any: a function of ``θ``, or a module that
            holds it.
        params: ``w``, floating-point tensors of any shapes.
        v: One tensor per entry of ``params``, of the same shape.
        upper: ``θ``, tensors that require a gradient; by default the parameters of ``weights``
            that do.
        derivative: ``"central_difference"``: two forward passes at ``w ± eps v``, without a graph,
            error of order ``alpha²``. ``"one_sided"``: passes at ``w`` and ``w + eps v``, error of
            order ``alpha``. ``"forward_mode"``: one pass of dual numbers, exact to rounding. The
            first two displace ``params`` in place and restore them bit for bit.
        alpha: Length ``||eps v||`` of the displacement; by default 0.01 for the central and 3e-4
            for the one-sided difference.

    Returns:
        One tensor per entry of ``upper``, zeros where the weights do not depend on it.

    Raises:
        TypeError: When ``params``, ``v`` or ``upper`` is no sequence of tensors, or losses or
            weights are no tensors.
        ValueError: When shapes do not match, the derivative is unknown, or ``alpha`` is not
            positive.
    """
    require_known(ASKED, "derivative", derivative, tuple(ALPHA))
    at = checked_floating(ASKED, "params", params)
    vector = checked_vector(ASKED, v, at, "params")
    above = _upper(weights, upper)
    length = ALPHA[derivative] if alpha is None else alpha
    require_length(ASKED, length)
    pairs = _pairs(lambda places: _split(losses(places)), at, vector, derivative, length)

    def found(of: Samples) -> Tensor:
        given = (of.losses,) if of.features is None else (of.losses, of.features)
        return _one_each("weights", weights(*given), of.losses.numel())

    with torch.enable_grad(), silent_hooks(above):
        return weighted_gradient([found], pairs, above)


def _pairs(
    losses: Callable[[list[Tensor]], Samples],
    params: list[Tensor],
    vector: list[Tensor],
    derivative: str,
    alpha: float,
) -> Pairs:
    """Return the sample losses and their directional derivatives."""
    if derivative == "forward_mode":
        dual = [lambda places: _with_tangent(losses(places))]
        with differentiable_twice():
            return forward_mode_derivatives(dual, params, vector)
    one_sided = derivative == "one_sided"
    inverse_eps = inverse_step(vector, alpha, params[0].dtype, order=1 if one_sided else 2)
    with torch.no_grad():
        here = [lambda: losses(params)]
        if one_sided:
            return one_sided_derivatives([losses(params)], here, params, vector, inverse_eps)
        return central_derivatives(here, here, params, vector, inverse_eps)


def _upper(weights: object, upper: Sequence[Tensor] | None) -> list[Tensor]:
    if upper is not None:
        return checked_tensors(ASKED, "upper", upper, require_grad=True)
    if isinstance(weights, nn.Module):
        return [p for p in weights.parameters() if p.requires_grad]
    raise TypeError(
        f"{ASKED}: weights is of type {type(weights).__name__}, whose parameters are not known; "
        "give them as upper=[...], or give a module as weights."
    )


def _split(output: Any) -> Samples:
    pair = isinstance(output, tuple) and len(output) == 2
    losses, features = output if pair else (output, None)
    return Samples(_one_each("losses", losses), map_tensors(Tensor.detach, features))


def _with_tangent(samples: Samples) -> Samples:
    require_tangent(ASKED, "losses", samples.losses)
    return samples


def _one_each(name: str, values: object, number: int | None = None) -> Tensor:
    """Return one number per sample, shape (B,)."""
    if not isinstance(values, Tensor):
        raise TypeError(
            f"{ASKED}: {name} must return a tensor of one number per sample but returned a "
            f"{type(values).__name__}."
        )
    per_sample = values.ndim > 0 and values.numel() == values.shape[0]
    if not per_sample or (number is not None and values.numel() != number):
        batch = "B" if number is None else str(number)
        raise ValueError(
            f"{ASKED}: {name} must return shape ({batch},) but returned {tuple(values.shape)}; "
            "return one number per sample, for instance with reduction='none'."
        )
    return values.reshape(-1)
