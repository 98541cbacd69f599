"""Reasons why a loader's position may not be restored exactly, for the warning when it is saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .draw_record import LIMIT
from .loader_parts import (
    draws_at_start,
    has_known_data,
    is_known,
    is_stateful,
    parts_of,
    reads_in_workers,
    samplers_of,
)

if TYPE_CHECKING:
    from .reading import Reading

SURE = "give metaweight.data.SampleLoader, which restores its position exactly"


def doubt_of(reading: Reading) -> str | None:
    """Return what may go wrong with a loader after resuming, and what to do; ``None`` if nothing.

    The sentence goes on after the loader's name.
    """
    loader = reading.loader
    if isinstance(loader, Iterator):
        return (
            f"is an iterator of type {type(loader).__name__}: {reading.delivered} of its batches "
            "are skipped to continue, which is right only if it starts again with the same ones; "
            "give an object that can be iterated again, to be sure."
        )
    own = is_stateful(loader)
    return _keeps_iterator(loader) or (_stateful if own else _repeated)(reading, loader)


def _keeps_iterator(loader: Any) -> str | None:
    parts = (loader, *_samplers_inside(loader))
    for part in (p for p in parts if not (is_known(p) or is_stateful(p))):
        for name, value in getattr(part, "__dict__", {}).items():
            if isinstance(value, Iterator):
                return (
                    f"takes its order from {type(part).__name__}.{name}, an iterator that is kept "
                    "over epochs and cannot be saved, so after resuming other batches may come; "
                    f"make a new one in __iter__, or {SURE}."
                )
    return None


def _repeated(reading: Reading, loader: Any) -> str | None:
    early = is_stateful(getattr(loader, "base_dataloader", None))
    if early and reads_in_workers(loader) and not reading.epochs:
        return (
            f"is the {type(loader).__name__} of an Accelerator with use_stateful_dataloader=True, "
            "whose workers started when it was made, before the run: another order comes after "
            "resuming. Give the loader as it was before, or use_stateful_dataloader=False."
        )
    persistent = getattr(loader, "persistent_workers", False)
    if persistent and not reading.starts_fresh and not has_known_data(loader):
        return (
            "has persistent workers: its order continues exactly, but random numbers drawn by the "
            "workers do not; use persistent_workers=False to have both."
        )
    if not reading.record_is_complete:
        return (
            f"of type {type(loader).__name__} has drawn random numbers within an epoch, between "
            f"those of the training, more than {LIMIT} times; where its order depends on them, "
            f"other batches come after resuming. Make its epochs shorter, or {SURE}."
        )
    return None


def _stateful(reading: Reading, loader: Any) -> str | None:
    kind = type(loader).__name__
    if reads_in_workers(loader) and not has_known_data(loader):
        return (
            f"is a {kind} with workers, which does not save their random streams: if the data set "
            f"draws random numbers, others come after resuming. Use num_workers=0, or {SURE}."
        )
    draw = [s for s in _samplers_inside(loader) if not (draws_at_start(s) or is_stateful(s))]
    if draw and (reading.drew or reads_in_workers(loader)):
        return (
            f"takes its order from {type(draw[0]).__name__}, which has no state_dict and may draw "
            "random numbers within an epoch, between those of the training: other batches may come "
            f"after resuming. Give it a state_dict, or {SURE}."
        )
    if (reading.drew or reading.first_drew) and hasattr(reading.iterator, "gi_frame"):
        return (
            f"of type {kind} draws random numbers in a generator, so it is not known which of them "
            "it draws again when it continues: those of the training may differ after resuming. "
            "Let __iter__ draw at once, from a torch.Generator that its state_dict saves."
        )
    return None


def _samplers_inside(loader: Any) -> list[Any]:
    parts = parts_of(loader)
    return [*samplers_of(loader), *(p for path, p in parts.items() if path.endswith("iterable"))]
