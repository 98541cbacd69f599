"""What torch tells only under private names, each with a fallback for a torch that lacks the name.

A fallback is always correct and sometimes slower.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn


def _private(path: str) -> Callable[..., Any] | None:
    """Return ``torch._C.<path>``, or nothing where torch has no such name."""
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if callable(found) else None


_transforms_active = _private("_are_functorch_transforms_active")
_saved_tensor_hooks = _private("_autograd._top_saved_tensors_default_hooks")
_set_grad = _private("_set_grad_enabled")
_forward_grad = _private("_is_fwd_grad_enabled")
_reaches = _private("_will_engine_execute_node")
_in_legacy_vmap = _private("_functorch.is_legacy_batchedtensor")
_set_forward_grad = _private("_set_fwd_grad_enabled")

FOLLOWS_NO_GRAD = None not in (_set_grad, _forward_grad, _set_forward_grad)
"""Whether forward derivatives can be switched with ``torch.no_grad``."""

GRAD_SWITCHES = frozenset([_set_grad] if FOLLOWS_NO_GRAD else [])
"""What a ``TorchFunctionMode`` sees of ``torch.no_grad``, where they can."""


@lru_cache(maxsize=128)
def has_operations(*names: str) -> bool:
    """Return whether torch has all of these operations among ``torch.ops.aten``."""
    return all(hasattr(torch.ops.aten, name) for name in names)


def transforms_may_be_active() -> bool:
    """Return whether a ``torch.func`` transform is active; ``True`` where torch does not tell."""
    return _transforms_active is None or bool(_transforms_active())


def saved_tensors_may_have_hooks() -> bool:
    """Return whether hooks on saved tensors are active; ``True`` where torch does not tell."""
    try:
        return _saved_tensor_hooks is None or _saved_tensor_hooks(True) is not None
    except TypeError:
        # A torch that takes other arguments.
        return True


def set_forward_grad(enabled: bool) -> None:
    """Switch forward derivatives on or off, where torch can."""
    if _set_forward_grad is not None:
        _set_forward_grad(enabled)


def may_have_hooks(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has hooks on its gradient; ``True`` where torch does not tell."""
    return bool(getattr(tensor, "_backward_hooks", True))


def is_batched(gradient: torch.Tensor) -> bool:
    """Return whether a backward pass is one for several vectors at once, as with
    ``is_grads_batched``; ``True`` where torch does not tell.

    In such a pass torch drops the graph of a function that a ``backward`` applies; it follows
    operations of its own.
    """
    if transforms_may_be_active() or _in_legacy_vmap is None:
        return True
    return bool(_in_legacy_vmap(gradient))


def wanted(node: Any, required: Sequence[bool]) -> list[bool]:
    """Return which gradients the backward pass under way goes on from, at the node of a function.

    Args:
        node: What the function's ``backward`` is called with.
        required: Whether each of the function's first inputs, tensors, requires a gradient. Where
            torch does not tell what a pass was asked for, these are returned.
    """
    if not _tells_reach:
        return list(required)
    places = node.next_functions
    return [need and _is_reached(places[i][0]) for i, need in enumerate(required)]


def _is_reached(node: Any) -> bool:
    assert _reaches is not None
    try:
        return bool(_reaches(node))
    except RuntimeError:
        # Refused for a leaf that torch.autograd.grad was asked for.
        return True


class _Asked(torch.autograd.Function):
    """The sum of three tensors; notes which of them a pass goes on to."""

    @staticmethod
    def forward(ctx: Any, *terms: Any) -> Any:
        *tensors, ctx.told = terms
        return sum(tensors)

    @staticmethod
    def backward(ctx: Any, a: torch.Tensor) -> Any:
        ctx.told.append([_is_reached(node) for node, _ in ctx.next_functions])
        return a, a, a, None


def _reach_tried() -> bool:
    """Return whether torch tells what passes go on to, of tensors and leaves."""
    if _reaches is None:
        return False
    told: list[list[bool]] = []
    with torch.enable_grad():
        x, y, leaf = (torch.ones((), device="cpu", requires_grad=True) for _ in range(3))
        total = _Asked.apply(2.0 * x, 2.0 * y, leaf, told)
    try:
        torch.autograd.grad(total, [x], retain_graph=True)
        torch.autograd.grad(total, [y, leaf], retain_graph=True)
        total.backward()
    except (AttributeError, TypeError, ValueError):
        return False
    return told == [[True, False, False], [False, True, True], [True, True, True]]


_tells_reach = _reach_tried()


def gradient_hooks(tensor: torch.Tensor) -> dict[int, Callable[..., Any]]:
    """Return the hooks of ``register_hook``, to be changed in place; none where torch does not
    tell."""
    return getattr(tensor, "_backward_hooks", None) or {}


def post_accumulate_hooks(tensor: torch.Tensor) -> dict[int, Callable[..., Any]]:
    """Return the hooks of ``register_post_accumulate_grad_hook``; none where torch does not
    tell."""
    return getattr(tensor, "_post_accumulate_grad_hooks", None) or {}


def optimizer_hooks(optimizer: Any) -> list[Callable[..., Any]]:
    """Return the hooks that are called before and after a step; none where torch does not tell."""
    own = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    everyones = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    found = [getattr(optimizer, name, {}) for name in own]
    # torch.optim hides the module of this name.
    found += [getattr(sys.modules[torch.optim.Optimizer.__module__], n, {}) for n in everyones]
    return [hook for hooks in found for hook in hooks.values()]


def only_reads_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of one of torch's optimizers leaves the gradients as they are.

    Steps of many tensors at once, the default on a GPU, use them as memory: with Nesterov's
    momentum, for instance. So does a weight decay that is a tensor.
    """
    return not any(
        group.get("foreach")
        or group.get("fused")
        or isinstance(group.get("weight_decay"), torch.Tensor)
        or any(not p.is_cpu for p in group["params"][:1])
        for group in optimizer.param_groups
    )


@lru_cache(maxsize=1)
def eager_stance() -> Any:
    """Return how torch tells itself to compile nothing, for :func:`set_stance`; nothing where it
    works otherwise. To be asked when compilation has been imported."""
    frames: Any = sys.modules.get("torch._dynamo.eval_frame")
    kind, chosen = (getattr(frames, n, None) for n in ("DynamoStance", "_callback_from_stance"))
    if kind is None or chosen is None or not hasattr(frames, "_stance"):
        return None
    before, eager = frames._stance, kind("force_eager")

    def compiles(stance: Any) -> bool:
        frames._stance = stance
        return chosen(len) is not None

    try:
        return eager if compiles(kind("default")) and not compiles(eager) else None
    finally:
        frames._stance = before


def set_stance(stance: Any) -> Any:
    """Set what torch compiles, and return what it did before."""
    frames: Any = sys.modules["torch._dynamo.eval_frame"]
    before, frames._stance = frames._stance, stance
    return before


class forward_grad_put_back:
    """Inside, forward derivatives may be switched; afterwards they are as before."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = _forward_grad is None or bool(_forward_grad())

    def __exit__(self, *exception: object) -> None:
        set_forward_grad(self._before)


def is_compiled(module: nn.Module) -> bool:
    """Return whether calls of a module, or of a module in it, are compiled."""
    return any(
        getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod")
        for m in module.modules()
    )
