"""Products of second derivatives of a function of tensors with a vector, by three methods.

For a loss ``L(w)`` and a vector ``u`` of the shape of ``w``, each returns ``∂/∂x <∇_w L, u>`` for
tensors ``x``, which may be in ``w`` or other tensors that ``L`` depends on:

- :func:`double_backward` differentiates the graph of the gradient;
- :func:`forward_over_reverse` propagates ``u`` as a tangent through a forward and a backward pass,
  which gives the same values without a graph of the backward pass (Pearlmutter, "Fast Exact
  Multiplication by the Hessian", Neural Computation 1994; in meta-learning: Kemaev et al.,
  "MixFlow-MG", ICML 2025, arXiv:2505.00793);
- :func:`central_difference` takes two gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..base import vectors
from ..base.backward import Root, products
from .displaced import measure_both_sides

Gradients = Callable[[], list[Tensor]]


def double_backward(
    gradient: Sequence[Root | None],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    keep: bool = False,
) -> list[Tensor]:
    """Return ``∂/∂x <g, u>`` for a gradient ``g`` with its graph.

    Args:
        gradient: ``g``, tensors or their places in the graph; entries without a graph count as
            constants.
        vector: ``u``.
        inputs: ``x``.
        keep: Keep the graph for a further call.
    """
    used = [(g, u) for g, u in zip(gradient, vector, strict=True) if g is not None]
    used = [(g, u) for g, u in used if not isinstance(g, Tensor) or g.requires_grad]
    if not used:
        return [torch.zeros_like(t) for t in inputs]
    found = products([g for g, _ in used], [u for _, u in used], inputs, keep=keep)
    return vectors.fill_none(found, inputs)


def forward_over_reverse(
    loss: Callable[[list[Tensor]], Tensor],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    inputs: Sequence[Tensor],
) -> list[Tensor]:
    """Return ``∂/∂x <∇_w L, u>`` by a backward pass with tangents.

    Args:
        loss: Computes ``L`` with the given tensors instead of ``params``.
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
    negative: bool = False,
    stay: bool = False,
) -> list[Tensor]:
    """Return ``(g(w + eps u) - g(w - eps u)) / (2 eps)``.

    Args:
        ahead: Computes ``g`` at the present parameters, then ``w + eps u``.
        behind: The same at ``w - eps u``.
        params: ``w``, displaced in place and restored.
        vector: ``u``; a spare one is emptied.
        inverse_eps: ``1 / eps``.
        negative: Return the negative of it.
        stay: Leave the parameters at ``w - eps u``.
    """
    plus, minus = measure_both_sides(params, vector, inverse_eps, ahead, behind, stay=stay)
    # Half of it to the bit, without a number that would be made a tensor.
    half = inverse_eps.sub(inverse_eps, alpha=0.5)
    ends = (minus, plus) if negative else (plus, minus)
    return vectors.scale(vectors.subtract(*ends), half)


@contextmanager
def quiet_first_use() -> Iterator[None]:
    """Silence a deprecation warning of torch on the first use of its forward-mode formulas."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)
        yield


def _tangent(gradient: Tensor | None, like: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(like)
    tangent = forward_ad.unpack_dual(gradient).tangent  # type: ignore[no-untyped-call]
    return torch.zeros_like(like) if tangent is None else tangent.detach()
