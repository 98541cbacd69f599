"""The hooks that users register on parameters: silent in passes of the library, called once a step.

``Tensor.register_hook`` changes the gradient of a training step, and
``Tensor.register_post_accumulate_grad_hook`` sees it in ``.grad``. ``torch.autograd.grad`` would
call the former in every pass of a hypergradient too, and the latter never.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .torch_internals import gradient_hooks, post_accumulate_hooks


def hooked(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters that have hooks."""
    # Asked of every parameter in every step.
    return [
        p
        for p in parameters
        if getattr(p, "_backward_hooks", None) or getattr(p, "_post_accumulate_grad_hooks", None)
    ]


class silent_hooks:
    """Inside, backward passes call no hooks of the parameters."""

    __slots__ = ("_silenced",)

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        found = hooked(parameters)
        all_hooks = [*map(gradient_hooks, found), *map(post_accumulate_hooks, found)]
        self._silenced = [(hooks, dict(hooks)) for hooks in all_hooks]

    def __enter__(self) -> None:
        for hooks, _ in self._silenced:
            hooks.clear()

    def __exit__(self, *exception: object) -> None:
        for hooks, before in self._silenced:
            hooks.update(before)


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add to ``.grad`` as a backward pass does, with all hooks."""
    torch.autograd.backward([parameter], [gradient])


@dataclass(frozen=True)
class HookedGradient:
    """A gradient ``g`` and what the hooks made of it, ``h(g)``, with the graph of the hooks.

    Attributes:
        before: ``g``, the leaf of the graph.
        after: ``h(g)``.
        has_graph: Whether the graph contains all that the hooks did.
    """

    before: Tensor
    after: Tensor
    has_graph: bool

    def vjp(
        self, vector: Tensor, upper_parameters: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return ``(∂h/∂g)ᵀ v``, and ``(∂h/∂θ)ᵀ v`` of hooks that read upper parameters; ``v`` and
        zeros where the graph lacks what the hooks did."""
        if not self.has_graph:
            return vector, [torch.zeros_like(t) for t in upper_parameters]
        v = vector.to(self.after.dtype)
        found, *above = torch.autograd.grad(
            self.after,
            [self.before, *upper_parameters],
            v,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return found.to(vector.dtype), above


def call_hooks(parameter: Tensor, gradient: Tensor) -> HookedGradient:
    """Call the hooks of ``register_hook`` on a gradient, and record their graph. Waits for the
    device if a hook returns nothing and leaves no graph, to see whether it wrote to the gradient.
    """
    before = gradient.detach().requires_grad_()
    has_graph = True
    with torch.enable_grad(), warnings.catch_warnings():
        # A hook that only reads the norm as a number expects a gradient without a graph.
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        # Hooks may write to what they are given, and a leaf refuses that.
        after = before.clone()
        for hook in list(gradient_hooks(parameter).values()):
            given, node = after.detach().clone(), after.grad_fn
            returned = hook(after)
            if returned is not None:
                after = returned
                has_graph &= after.requires_grad
            elif after.grad_fn is node:
                has_graph &= torch.equal(after.detach(), given)
    return HookedGradient(before, after, has_graph)


def accumulate_and_record(parameter: Tensor, gradient: Tensor) -> HookedGradient:
    """Do as :func:`accumulate`, and return the record of the hooks that change the gradient."""
    found = call_hooks(parameter, gradient)
    hooks = gradient_hooks(parameter)
    silenced = dict(hooks)
    hooks.clear()
    try:
        accumulate(parameter, found.after.detach())
    finally:
        hooks.update(silenced)
    return found
