"""A copy of a module that shares no tensor with it."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from metaweight.problems import ConfigurationError


def copied_module(module: nn.Module) -> nn.Module:
    """Return a copy of a module that needs no gradient.

    Its layers may hold results of their latest pass.

    ``torch.nn.utils.weight_norm`` and ``spectral_norm`` keep the computed weight as an attribute,
    which ``copy.deepcopy`` refuses to copy with its graph; the copy computes its own at each pass.

    Raises:
        ConfigurationError: When a layer cannot be copied, naming it.
    """
    results: dict[int, Any] = {}
    for layer in module.modules():
        for value in getattr(layer, "__dict__", {}).values():
            _detach(value, results)
    try:
        made = copy.deepcopy(module, dict(results))
    # A layer may refuse in any way.
    except Exception as error:
        name, layer = next(
            (name, layer)
            for name, layer in reversed(list(module.named_modules()))
            if _refuses(layer, results) or not name
        )
        place = f"its layer {name!r}, " if name else "it, "
        raise ConfigurationError(
            f"A copy of {type(module).__name__} was asked for, but {place}of type "
            f"{type(layer).__name__}, cannot be copied ({type(error).__name__}: {error}). Give it "
            "a __deepcopy__, or use the average in the model itself: 'with ema.applied():'."
        ) from error
    # Scripted modules have no requires_grad_.
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


def _detach(value: object, results: dict[int, Any]) -> None:
    """Note copies of tensors with a graph in an attribute, by the identity of the tensors."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            results[id(value)] = value.detach().clone()
    elif type(value) in (list, tuple):
        for item in value:  # type: ignore[attr-defined]
            _detach(item, results)
    elif type(value) is dict:
        for item in value.values():
            _detach(item, results)


def _refuses(layer: nn.Module, results: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(layer, dict(results))
    except Exception:
        return True
    return False
