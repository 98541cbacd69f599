"""Tensors by name, as those of a module: copied, averaged and compared as a whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metaweight.problems.base.shards import as_sharded_as, shard_of, shards_of

NamedTensors = dict[str, Tensor]


def averageable(tensor: Tensor) -> bool:
    """Return whether a tensor's values can be averaged."""
    return tensor.is_floating_point() or tensor.is_complex()


def parameters_of(module: nn.Module) -> NamedTensors:
    """Return the parameters of ``module`` that can be averaged; shared ones once."""
    return {name: p for name, p in module.named_parameters() if averageable(p)}


def buffers_of(module: nn.Module) -> NamedTensors:
    """Return the buffers of ``module``, those left out of its ``state_dict`` too."""
    return dict(module.named_buffers())


def copies(tensors: Mapping[str, Tensor]) -> NamedTensors:
    """Return equal tensors in memory of their own, without a graph."""
    return {name: t.detach().clone() for name, t in tensors.items()}


def wide_copies(tensors: Mapping[str, Tensor]) -> NamedTensors:
    """Return such copies, with averageable tensors in single precision or better."""
    return {
        name: t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True)
        if averageable(t)
        else t.detach().clone()
        for name, t in tensors.items()
    }


def follow(kept: NamedTensors, present: Mapping[str, Tensor]) -> None:
    """Move ``kept`` to the devices of ``present``, and widen it where those have a wider dtype."""
    for name, tensor in present.items():
        dtype = torch.promote_types(kept[name].dtype, tensor.dtype)
        kept[name] = kept[name].to(tensor.device, dtype)


def overwrite(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy values by name into the memory of ``targets``."""
    if targets:
        fitting = [as_sharded_as(sources[name], target) for name, target in targets.items()]
        torch._foreach_copy_(shards_of(targets.values()), shards_of(fitting))


def average(kept: Mapping[str, Tensor], present: Mapping[str, Tensor], decay: float) -> None:
    """Set ``kept = decay · kept + (1 - decay) · present`` in place; copy what has no mean."""
    means = {name: t for name, t in kept.items() if averageable(t)}
    if means:
        news = [present[name].to(t.dtype) for name, t in means.items()]
        torch._foreach_lerp_(shards_of(means.values()), shards_of(news), 1 - decay)
    overwrite({name: t for name, t in kept.items() if name not in means}, present)


def difference(kept: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> str:
    """Describe how names and shapes differ; an empty text where they agree."""
    missing = [name for name in kept if name not in present]
    new = [name for name in present if name not in kept]
    reshaped = [
        f"{name} {tuple(t.shape)} now {tuple(present[name].shape)}"
        for name, t in kept.items()
        if name in present and t.shape != present[name].shape
    ]
    found = {"missing": missing, "new": new, "of another shape": reshaped}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names)


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that hold an infinity or NaN; reads the device once unless there are."""
    if not tensors:
        return []
    finite = [torch.isfinite(shard_of(t)).all() for t in tensors.values()]
    if bool(torch.stack([f.to(finite[0].device) for f in finite]).all()):
        return []
    return [name for name, good in zip(tensors, finite, strict=True) if not bool(good)]
