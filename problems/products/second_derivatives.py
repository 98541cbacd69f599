"""Second derivatives of a function of tensors times a vector, three ways.

For a loss ``L(w)`` and a vector ``u`` along ``w``, each returns ``∂/∂x <∇_w L, u>`` for tensors
``x``, which may be among ``w`` or others that ``L`` depends on:

- :func:`double_backward` differentiates the gradient's own graph;
- :func:`forward_over_reverse` carries ``u`` as a tangent through a forward and a backward pass, the
  same numbers without a graph of the backward pass (Pearlmutter, "Fast Exact Multiplication by the
  Hessian", Neural Computation 1994; in meta-learning: Kemaev et al., "MixFlow-MG", ICML 2025,
  arXiv:2505.00793);
- :func:`central_difference` takes two ordinary gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..base import vectors
from .displaced import measure_both_sides

Gradients = Callable[[], list[Tensor]]


def double_backward(
    gradient: Sequence[Tensor | None],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    keep: bool = False,
) -> list[Tensor]:
    """Return ``∂/∂x <g, u>`` for a gradient ``g`` with its graph.

    Args:
        gradient: ``g``; entries without a graph count as constants.
        vector: ``u``.
        inputs: ``x``.
        keep: Whether the graph is to be used again.
    """
    used = [(g, u) for g, u in zip(gradient, vector, strict=True) if g is not None]
    used = [(g, u) for g, u in used if g.requires_grad]
    if not used:
        return [torch.zeros_like(t) for t in inputs]
    products = torch.autograd.grad(
        [g for g, _ in used], inputs, [u for _, u in used], retain_graph=keep, allow_unused=True
    )
    return vectors.fill_none(products, inputs)


def forward_over_reverse(
    loss: Callable[[list[Tensor]], Tensor],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> list[Tensor]:
    """Return ``∂/∂x <∇_w L, u>`` by a backward pass with tangents.

    Args:
        loss: Computes ``L`` with the tensors it is given in the place of ``params``.
        params: ``w``.
        vector: ``u``.
        inputs: ``x``.
    """
    with quiet_first_use(), forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(p, u)  # type: ignore[no-untyped-call]
            for p, u in zip(params, vector, strict=True)
        ]
        dual_of = {id(p): dual for p, dual in zip(params, duals, strict=True)}
        targets = [dual_of.get(id(t), t) for t in inputs]
        gradient = torch.autograd.grad(loss(duals), targets, allow_unused=True)
        return [_tangent(g, t) for g, t in zip(gradient, inputs, strict=True)]


def central_difference(
    ahead: Gradients,
    behind: Gradients,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    inverse_eps: Tensor,
    *,
    sign: float = 1.0,
    stay: bool = False,
) -> list[Tensor]:
    """Return ``sign (g(w + eps u) - g(w - eps u)) / (2 eps)``.

    Args:
        ahead: Computes ``g`` where the parameters then are, at the first place.
        behind: The same at the second.
        params: ``w``, displaced in place and put back.
        vector: ``u``.
        inverse_eps: ``1 / eps``.
        sign: 1 or -1.
        stay: Whether the parameters stay at ``w - eps u``.
    """
    shift = vectors.divide(vector, inverse_eps)
    plus, minus = measure_both_sides(params, shift, ahead, behind, stay=stay)
    if sign < 0:
        plus, minus = minus, plus
    return vectors.scale(vectors.add(plus, minus, alpha=-1.0), inverse_eps / 2)


@contextmanager
def quiet_first_use() -> Iterator[None]:
    """Silence a deprecation that torch's own forward-mode formulas raise when first used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)
        yield


def _tangent(gradient: Tensor | None, like: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(like)
    tangent = forward_ad.unpack_dual(gradient).tangent  # type: ignore[no-untyped-call]
    return torch.zeros_like(like) if tangent is None else tangent.detach()
