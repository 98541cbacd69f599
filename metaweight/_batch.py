"""Batches as people have them, split into inputs, labels and positions of samples.

A sequence holds them by position, a mapping (a dictionary, a Hugging Face ``BatchEncoding``) or a
named tuple by name. What cannot be guessed from these is given: a key, a place, or a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from metaweight.problems import DataError
from metaweight.problems.base.indexed import Indexed, indexed, without_indices
from metaweight.problems.base.nested import with_content
from metaweight.problems.base.settings import shown

LABELS = ("labels", "label", "y", "targets", "target", "label_ids")
INPUTS = (
    *("inputs", "input", "x", "images", "image", "img", "features", "data"),
    *("pixel_values", "input_values"),
)
INDICES = ("indices", "index", "idx", "positions")

Part = str | int | Callable[[Any], Any] | None
"""Where something is found: a key, a place, or a function of the whole; ``None`` to guess."""


class Batch(NamedTuple):
    """The parts of a batch."""

    inputs: Any
    """What the network is called with; those of a mapping under their names."""

    labels: Any
    """As the batch has them; ``None`` where it was allowed to have none."""

    indices: Any
    """Positions of the samples, or ``None``."""


def split_batch(
    who: str, batch: Any, inputs: Part = None, labels: Part = None, *, labelled: bool = True
) -> Batch:
    """Split a batch: ``(inputs, labels, indices, …)``, or a mapping by the names of its parts.

    Of a mapping, the labels are the one part named as in :data:`LABELS`, and the inputs all that is
    left without labels and positions. The place given for one part is not guessed for another.

    Args:
        who: Who reads it, for an error.
        batch: The batch.
        inputs: Where the inputs are, instead.
        labels: Where the labels are, instead.
        labelled: Whether it must have labels.

    Raises:
        DataError: For a batch of another kind, saying what it holds and what was looked for.
    """
    if isinstance(batch, Tensor) and not labelled and not callable(inputs):
        return Batch(batch, None, None)
    # Positions that were added are no part of a sample.
    own = without_indices(batch) if isinstance(batch, Indexed) else batch
    parts = _by_name(own, inputs, labels)
    labels = _place_of_labels(who, parts, inputs, labelled) if labels is None else labels
    found = _part(who, batch, own, labels, "labels") if labelled else None
    taken = [_place(parts, part) for part in (inputs, labels)]
    if inputs is None:
        read = _left(who, parts, taken)
    else:
        read = _part(who, batch, own, inputs, "inputs")
        # Under its name, for a network that has an argument of this name.
        read = {inputs: read} if isinstance(inputs, str) else read
    indices = batch[-1] if isinstance(batch, Indexed) else _indices_in(parts, taken)
    return Batch(read, found, indices)


def part_of(who: str, batch: Any, part: Part, name: str) -> Any:
    """Return the part of a batch at a key or place, or what a function makes of the batch.

    Args:
        who: Who reads it, for an error.
        batch: The batch.
        part: Where the part is.
        name: What the part is called, for an error.

    Raises:
        DataError: When it has none there.
    """
    return _part(who, batch, batch, part, name)


def _part(who: str, batch: Any, own: Any, part: Part, name: str) -> Any:
    """Return a part of a batch, of which ``own`` is what keys and places are in."""
    parts = _by_name(own, part)
    try:
        if isinstance(part, int) and not (isinstance(parts, Mapping) or _has_parts(parts)):
            raise LookupError("it is no sequence of parts")
        return part(batch) if callable(part) else parts[part]
    except (LookupError, TypeError, AttributeError) as missing:
        cause = f"{type(missing).__name__}: {missing}"
        raise _refused(who, batch, name, f" and {name}={shown(part)} ({cause})") from missing


def with_indices(who: str, batch: Any, indices: Tensor) -> Any:
    """Return a batch that says which samples it holds, so that :func:`split_batch` finds it.

    Args:
        who: Who reads the batch, for an error.
        batch: The batch. A mapping keeps its type where one can be made; a named tuple keeps its
            names, and others become a tuple, of which the positions are the last part.
        indices: Positions of its samples, (B,), which are called ``"indices"`` where parts are
            known by name.

    Raises:
        DataError: When it has ``"indices"`` of its own.
    """
    if INDICES[0] in (batch if isinstance(batch, Mapping) else getattr(batch, "_fields", ())):
        raise DataError(
            f"{who} was to add the positions of samples as {INDICES[0]!r} to {shown_batch(batch)}; "
            "call that part otherwise, or leave with_indices out."
        )
    if isinstance(batch, Mapping):
        return with_content(batch, {**batch, INDICES[0]: indices})
    whole = isinstance(batch, tuple) or _has_parts(batch)
    return indexed(batch if whole else (batch,), indices)


def shown_batch(batch: Any) -> str:
    """Return what a batch holds, in a few words, without reading a number."""
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    kind = type(batch).__name__
    names = batch if isinstance(batch, Mapping) else getattr(batch, "_fields", None)
    if names is not None:
        return f"a {kind} with {', '.join(map(repr, list(names)[:8])) or 'nothing'}"
    if isinstance(batch, (tuple, list)):
        kinds = ", ".join(type(part).__name__ for part in batch[:4])
        return f"a {kind} of {len(batch)} parts ({kinds})"
    return f"a {kind}"


def _by_name(batch: Any, *given: Part) -> Any:
    """Return a named tuple whose parts are known by name as a mapping, others as they are."""
    fields = getattr(batch, "_fields", ())
    if not fields or any(isinstance(part, int) for part in given):
        return batch
    # In the usual order, what follows the labels is no input.
    usual = len(fields) > 1 and fields[1] in LABELS
    named = not usual and any(name in fields for name in LABELS)
    if named or any(isinstance(part, str) for part in given):
        return dict(zip(fields, batch, strict=True))
    return batch


def _has_parts(batch: Any) -> bool:
    """Return whether a batch is a sequence of parts, and no list of samples left uncollated."""
    if not isinstance(batch, Sequence) or isinstance(batch, (str, bytes)) or not batch:
        return False
    samples = (tuple, Mapping)
    return not (isinstance(batch, list) and all(isinstance(part, samples) for part in batch))


def _place_of_labels(who: str, parts: Any, inputs: Part, required: bool) -> Part:
    if isinstance(parts, Mapping):
        found = [key for key in LABELS if key in parts and key != inputs]
        if len(found) > 1 and required:
            raise _refused(who, parts, "labels", f", of which {' and '.join(found)} may be labels")
        place: Part = found[0] if found else None
    else:
        first = 0 if _place(parts, inputs) == 1 else 1
        place = first if _has_parts(parts) and len(parts) > 1 else None
    if place is None and required:
        raise _refused(who, parts, "labels", ", without labels")
    return place


def _place(parts: Any, part: Part) -> Part:
    """Return a place in a sequence counted from its start, and others as they are."""
    backwards = isinstance(part, int) and part < 0 and isinstance(parts, Sequence)
    return part + len(parts) if backwards else part  # type: ignore[operator]


def _left(who: str, parts: Any, taken: list[Part]) -> Any:
    """Return what can be inputs: the first part of a sequence, or those of a mapping."""
    named = isinstance(parts, Mapping)
    left: Any
    if named:
        others = (*LABELS, *INDICES, *taken)
        left = {key: parts[key] for key in parts if key not in others}
    else:
        left = [part for i, part in enumerate(parts) if i not in taken] if _has_parts(parts) else []
    if not left:
        raise _refused(who, parts, "inputs", ", without inputs")
    return left if named else left[0]


def _indices_in(parts: Any, taken: list[Part]) -> Any:
    if isinstance(parts, Mapping):
        named: Mapping[Any, Any] = {key: key for key in parts}
    else:
        # A field that is called so holds them, wherever it stands.
        named = {field: i for i, field in enumerate(getattr(parts, "_fields", ()))}
    places: list[Any] = [named[name] for name in INDICES if name in named]
    if not isinstance(parts, Mapping) and _has_parts(parts) and len(parts) > 2:
        places.append(2)
    found = [place for place in places if place not in taken]
    return parts[found[0]] if found else None


def _refused(who: str, batch: Any, name: str, why: str) -> DataError:
    """Return the error for a batch in which a part was not found."""
    form = "(inputs, labels, indices)"
    if name != "index":
        usual = ", ".join(LABELS if name == "labels" else INPUTS)
        form = f"(inputs, labels) or mappings with one part named {usual}"
    return DataError(
        f"{who} received {shown_batch(batch)}{why}; give batches {form}, or say with "
        f"{name}=... where it is: a key or place in a batch, or a function of a batch."
    )
