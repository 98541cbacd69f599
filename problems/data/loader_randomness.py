"""What a loader's batches follow from besides the data: generators and counters of its parts."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .loader_parts import is_known, is_stateful, parts_of

LARGEST = 1_000_000
SEED = "initial_seed"
"""The attribute of accelerate's sampler that it sets from torch's seed when it is made."""
Generators = dict[str, Any]
Numbers = dict[str, Any]


def own_randomness(loader: Any) -> tuple[Generators, Numbers]:
    """Return the states of a loader's own generators, and the counters of its parts.

    Counters are epoch numbers (``set_epoch``), and numbers, lists of numbers and small tensors that
    are attributes of parts which save no state themselves.
    """
    generators: Generators = {}
    numbers: Numbers = {}
    for path, part in parts_of(loader).items():
        for name, generator in _generators_of(part).items():
            generators[f"{path}{name}"] = _state_of(generator)
        number = _epoch_of(part)
        if number is not None:
            numbers[path] = number
        if not (is_known(part) or is_stateful(part)):
            kept = {k: _copied(v) for k, v in _attributes_of(part).items() if _counts(v)}
            numbers |= {f"{path}/{name}": value for name, value in kept.items()}
        if SEED in _attributes_of(part):
            numbers[f"{path}/{SEED}"] = vars(part)[SEED]
    return generators, numbers


def put_randomness(loader: Any, generators: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """Set what :func:`own_randomness` returned."""
    for path, part in parts_of(loader).items():
        for name, generator in _generators_of(part).items():
            if f"{path}{name}" in generators:
                _set_state(generator, generators[f"{path}{name}"])
        if path in numbers and _epoch_of(part) is not None:
            part.set_epoch(numbers[path])
        for key, value in numbers.items():
            owner, slash, name = key.partition("/")
            if slash and owner == path:
                vars(part)[name] = _copied(value)


def changed_numbers(numbers: Numbers, before: Numbers) -> set[str]:
    """Return the epoch numbers, and the other counters that differ from those before."""
    return {
        key
        for key, value in numbers.items()
        if "/" not in key
        or key.endswith(f"/{SEED}")
        or key not in before
        or not _equal(value, before[key])
    }


def _generators_of(part: Any) -> dict[str, Any]:
    """Return a part's generators by attribute; the name is empty for ``generator``."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    held = {"generator": getattr(part, "generator", None), **_attributes_of(part)}
    return {
        "" if name == "generator" else f"/{name}": value
        for name, value in held.items()
        if isinstance(value, kinds)
    }


def _attributes_of(part: Any) -> dict[str, Any]:
    return getattr(part, "__dict__", {}) if not isinstance(part, type) else {}


def _epoch_of(part: Any) -> int | None:
    number = getattr(part, "epoch", getattr(part, "iteration", None))
    return number if hasattr(part, "set_epoch") and isinstance(number, int) else None


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _counts(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        size = value.numel() if isinstance(value, torch.Tensor) else value.size
        return value.ndim <= 1 and size <= LARGEST and str(value.dtype) != "object"
    if type(value) is list:
        return len(value) <= LARGEST and all(type(v) in (int, float) for v in value)
    return value is None or type(value) in (int, float, bool)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return np.array_equal(left, right)
    return type(left) is type(right) and bool(left == right)
