"""Lists of tensors as arguments: what was asked, what was received, what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def checked_tensors(
    asked: str, name: str, given: object, *, require_grad: bool = False
) -> list[Tensor]:
    """Return ``given`` as a list of tensors.

    Args:
        asked: The function that was called.
        name: What the argument is called.
        given: What it received.
        require_grad: Whether each of them must require a gradient.

    Raises:
        TypeError: For anything but a sequence of tensors.
        ValueError: For one that does not require a gradient, where that is needed.
    """
    if isinstance(given, Tensor) or not isinstance(given, Sequence):
        raise TypeError(
            f"{asked}: {name} must be a list of tensors but is of type "
            f"{type(given).__name__}; give [{name}] for a single tensor, or "
            "list(module.parameters())."
        )
    found = list(given)
    for place, tensor in enumerate(found):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{asked}: {name} must be a list of tensors but holds an entry of type "
                f"{type(tensor).__name__} at place {place}; give tensors only."
            )
        if require_grad and not tensor.requires_grad:
            raise ValueError(
                f"{asked}: {name} holds a tensor of shape {tuple(tensor.shape)} at place {place} "
                "that requires no gradient, so that nothing can be found to depend on it; call "
                "requires_grad_() on it before the loss is computed, or leave it out."
            )
    return found


def checked_floating(asked: str, name: str, given: object, *, least: int = 1) -> list[Tensor]:
    """Return ``given`` as a list of floating-point tensors.

    Args:
        asked: The function that was called.
        name: What the argument is called.
        given: What it received.
        least: How many there must be at least.

    Raises:
        TypeError: For anything but a sequence of floating-point tensors.
        ValueError: For too few of them.
    """
    found = checked_tensors(asked, name, given)
    if len(found) < least:
        raise ValueError(
            f"{asked}: {name} is empty; give the tensors to differentiate by, for instance "
            "list(module.parameters())."
        )
    for place, tensor in enumerate(found):
        if not tensor.is_floating_point():
            raise TypeError(
                f"{asked}: {name} holds a tensor of {tensor.dtype} at place {place}, which cannot "
                "be differentiated by; give floating-point tensors."
            )
    return found


def checked_vector(asked: str, given: object, like: Sequence[Tensor], name: str) -> list[Tensor]:
    """Return the vector ``v`` as a list of tensors of the shapes of ``like``, in memory that is not
    that of ``like``, whose displacement would change the vector.

    Args:
        asked: The function that was called.
        given: What it received as ``v``.
        like: What ``v`` is along.
        name: What that argument is called.

    Raises:
        TypeError: For anything but a sequence of tensors.
        ValueError: For another number of tensors, or other shapes.
    """
    vector = checked_tensors(asked, "v", given)
    shapes, expected = [tuple(t.shape) for t in vector], [tuple(t.shape) for t in like]
    if shapes != expected:
        raise ValueError(
            f"{asked}: v must have the shapes of {name}, {expected}, but has {shapes}; give one "
            f"tensor per entry of {name}, of the same shape."
        )
    moved = {_memory_of(t) for t in like}
    given_as = [v.detach().to(p) for v, p in zip(vector, like, strict=True)]
    return [v.clone() if _memory_of(v) in moved else v for v in given_as]


def _memory_of(tensor: Tensor) -> int:
    is_dense = tensor.layout is torch.strided
    return tensor.untyped_storage()._cdata if is_dense else id(tensor)
