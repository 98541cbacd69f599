"""The parts of a loader: data set, samplers, nodes; and what is known of them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler

NAMES = (
    "base_dataloader",
    "root",
    "source",
    "iterable",
    "batch_sampler",
    "sampler",
    "dataset",
    "transform",
    "collate_fn",
)
# Packages whose loaders and samplers draw their order when an epoch starts.
KNOWN = ("torch", "torchdata", "accelerate", "metaweight")


class Substitute(Sampler[Any]):
    """Stands in the place of another sampler while a loader starts an epoch.

    Args:
        sampler: The other one, which remains the loader's part.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)


def parts_of(loader: Any) -> dict[str, Any]:
    """Return the loader and its parts by path, such as ``"batch_sampler.sampler"``; each once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(part: Any, path: str) -> None:
        part = part.sampler if isinstance(part, Substitute) else part
        if part is None or id(part) in seen or isinstance(part, (list, tuple, torch.Tensor)):
            return
        seen.add(id(part))
        found[path] = part
        for name in NAMES:
            visit(getattr(part, name, None), f"{path}.{name}" if path else name)

    visit(loader, "")
    return found


def is_known(part: object) -> bool:
    """Return whether a part is of a class of :data:`KNOWN`."""
    return _package_of(type(part)) in KNOWN


def is_stateful(loader: object) -> bool:
    """Return whether a loader saves and restores its position itself."""
    # The loader of ``Accelerator.prepare`` has the methods, but counts no epoch that it ends with.
    return not hasattr(loader, "base_dataloader") and all(
        callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict")
    )


def starts_when_asked(loader: object) -> bool:
    """Return whether a loader starts an epoch when it is asked for its state before the first."""
    return any(_package_of(kind) == "torchdata" for kind in type(loader).__mro__)


def reads_in_workers(loader: object) -> bool:
    """Return whether worker processes read the samples."""
    return bool(getattr(loader, "num_workers", 0))


def has_known_data(loader: object) -> bool:
    """Return whether reading samples is known to draw no random numbers."""
    return all(
        is_known(part) and not isinstance(part, IterableDataset)
        for path, part in parts_of(loader).items()
        if path.rpartition(".")[2] in ("dataset", "transform")
    )


def samplers_of(loader: object) -> list[Any]:
    """Return the samplers of a loader."""
    ends = ("sampler", "batch_sampler")
    return [p for path, p in parts_of(loader).items() if path.rpartition(".")[2] in ends]


def draws_at_start(sampler: object) -> bool:
    """Return whether a sampler is known to draw all of an epoch's order at its start."""
    if not is_known(sampler):
        return False
    draws_again = isinstance(sampler, RandomSampler) and (
        sampler.replacement or sampler.num_samples > len(sampler.data_source)
    )
    return not (draws_again and sampler.generator is not None)  # type: ignore[attr-defined]


def order_is_drawn_at_start(loader: object) -> bool:
    """Return whether a loader is known to draw all of an epoch's order at its start."""
    if type(loader) in (list, tuple):
        return True
    parts = parts_of(loader)
    if not is_known(loader) or not isinstance(loader, DataLoader):
        return False
    streams = any(isinstance(part, IterableDataset) for part in parts.values())
    if streams and not reads_in_workers(loader):
        return False
    return all(map(draws_at_start, samplers_of(loader)))


def drop_early_start(loader: object) -> None:
    """Undo that a prepared ``StatefulDataLoader`` has started its first epoch when it was made."""
    inner: Any = getattr(loader, "base_dataloader", None)
    if getattr(inner, "_initial_iter_for_state_dict", False):
        inner.load_state_dict({})


def length_of(loader: Any) -> int | None:
    """Return the number of batches of an epoch, or ``None`` if the loader does not know it."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def has_dead_worker(iterator: object) -> bool:
    """Return whether a worker of an iterator of torch's loader has ended and can be replaced.

    Persistent workers cannot be replaced: their random states are lost.
    """
    stays = getattr(iterator, "_persistent_workers", False)
    return not stays and any(not w.is_alive() for w in getattr(iterator, "_workers", ()))


def _package_of(kind: type) -> str:
    return kind.__module__.partition(".")[0]
