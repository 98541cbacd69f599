"""Batches as people have them, split into inputs, labels and positions of samples.

A sequence holds them by position, a mapping (a dictionary, a Hugging Face ``BatchEncoding``) or a
named tuple by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from metaweight.problems import DataError, Problem

LABELS = ("labels", "label", "y", "targets", "target", "label_ids")
INPUTS = ("inputs", "input", "x", "images", "image", "features", "data", "pixel_values")
INDICES = ("indices", "index", "idx", "positions")

Key = str | int

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Batch(NamedTuple):
    """The parts of a batch."""

    inputs: Any
    """What the network is called with; a mapping of several parts where the batch is one."""

    labels: Any
    """As the batch has them; ``None`` where it was allowed to have none."""

    indices: Any
    """Positions of the samples, or ``None``."""


def split_batch(
    who: str, batch: Any, labels_key: Key | None = None, *, labelled: bool = True
) -> Batch:
    """Split a batch: ``(inputs, labels, indices, …)``, or a mapping by the names of its parts.

    Of a mapping, the labels are the one part named as in :data:`LABELS`, and the inputs what is
    left without them and without positions: the part itself where it is a single one.

    Args:
        who: Who reads it, for an error.
        batch: The batch.
        labels_key: Name or place of the labels, instead.
        labelled: Whether it must have labels.

    Raises:
        DataError: For a batch of another kind, saying what it holds.
    """
    named = _by_name(batch, labels_key)
    if named is not None:
        return _split_mapping(who, named, labels_key, labelled)
    if not labelled and isinstance(batch, Tensor):
        return Batch(batch, None, None)
    place = 1 if labels_key is None else labels_key
    if not _has_parts(batch) or not isinstance(place, int):
        raise _unreadable(who, batch, labels_key)
    there = -len(batch) <= place < len(batch)
    if labelled and not there:
        raise _unreadable(who, batch, labels_key)
    labels = batch[place] if there else None
    return Batch(batch[0], labels, batch[2] if len(batch) > 2 else None)


def part_of(who: str, batch: Any, key: Key) -> Any:
    """Return a part of a batch by its name or place.

    Raises:
        DataError: When it has none there.
    """
    named = _by_name(batch, key)
    try:
        return batch[key] if named is None else named[key]
    except (KeyError, IndexError, TypeError) as missing:
        size = len(batch) if hasattr(batch, "__len__") else 1
        raise DataError(
            f"{who}={key!r} was given, but a batch has {size} parts, {shown_batch(batch)}; let "
            "batches hold (inputs, labels, indices) and give 2, or the name of a part of a mapping."
        ) from missing


def call_network(network: Any, inputs: Any) -> Any:
    """Call a network with the inputs of a batch: of several named ones, with those it names.

    As ``transformers.Trainer`` does, parts that ``forward`` has no argument for are left out. A
    network with no argument of any of these names is called with the mapping itself.
    """
    if not isinstance(inputs, Mapping):
        return network(inputs)
    names, takes_all = _arguments(network)
    chosen = {key: inputs[key] for key in inputs if takes_all or key in names}
    if chosen:
        return network(**chosen)
    usual = [key for key in INPUTS if key in inputs]
    return network(inputs[usual[0]] if len(usual) == 1 else inputs)


def logits_of(outputs: Any) -> Any:
    """Return the logits of a Hugging Face ``ModelOutput``, or of a mapping; others as they are."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    return outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)


def require_tensor(who: str, inputs: Any) -> Tensor:
    """Return inputs that are a tensor.

    Raises:
        DataError: For others, saying what they are.
    """
    if not isinstance(inputs, Tensor):
        raise DataError(
            f"{who} mixes, joins or perturbs inputs, but received {shown_batch(inputs)}; give "
            "batches whose inputs are one tensor."
        )
    return inputs


def shown_batch(batch: Any) -> str:
    """Return what a batch holds, in a few words, without reading a number."""
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {kind} with {', '.join(map(repr, list(batch)[:8])) or 'nothing'}"
    if isinstance(batch, (tuple, list)):
        kinds = ", ".join(type(part).__name__ for part in batch[:4])
        return f"a {kind} of {len(batch)} parts ({kinds})"
    return f"a {kind}"


def _has_parts(batch: Any) -> bool:
    """Return whether a batch is a sequence of parts, and no list of samples left uncollated."""
    if not isinstance(batch, Sequence) or isinstance(batch, (str, bytes)) or not batch:
        return False
    samples = (tuple, Mapping)
    return not (isinstance(batch, list) and all(isinstance(part, samples) for part in batch))


def _by_name(batch: Any, labels_key: Key | None) -> Mapping[Any, Any] | None:
    """Return a mapping, and a named tuple whose names say which part is which, as a mapping."""
    if isinstance(batch, Mapping):
        return batch
    fields = getattr(batch, "_fields", None)
    if fields is None or not isinstance(batch, tuple):
        return None
    known = labels_key in fields or any(name in fields for name in LABELS)
    # In the usual order, what follows the labels is no input.
    usual = labels_key is None and len(fields) > 1 and fields[1] in LABELS
    return dict(zip(fields, batch, strict=True)) if known and not usual else None


def _split_mapping(
    who: str, batch: Mapping[Any, Any], labels_key: Key | None, labelled: bool
) -> Batch:
    found = [key for key in LABELS if key in batch] if labels_key is None else [labels_key]
    if len(found) > 1 or (labelled and not found) or (labelled and found[0] not in batch):
        raise _unreadable(who, batch, labels_key)
    labels = batch.get(found[0]) if found else None
    places = [key for key in INDICES if key in batch and key not in found]
    inputs = {key: batch[key] for key in batch if key not in (*found, *places)}
    if not inputs:
        raise _unreadable(who, batch, labels_key)
    one = next(iter(inputs.values())) if len(inputs) == 1 else inputs
    return Batch(one, labels, batch[places[0]] if places else None)


def _unreadable(who: str, batch: Any, labels_key: Key | None) -> DataError:
    asked = f" and labels_key={labels_key!r}" if labels_key is not None else ""
    return DataError(
        f"{who} received {shown_batch(batch)}{asked}; give batches (inputs, labels), or a mapping "
        f"with its labels under one of {', '.join(LABELS)} or under the name given as "
        "labels_key=..., and its inputs under others."
    )


def _arguments(network: Any) -> tuple[frozenset[str], bool]:
    """Return the names of a network's arguments, and whether it takes any."""
    if isinstance(network, Problem):
        network = network.module if type(network).forward is Problem.forward else network.forward
    while isinstance(network, _WRAPPERS) or hasattr(network, "_orig_mod"):
        network = network._orig_mod if hasattr(network, "_orig_mod") else network.module
    call = network.forward if isinstance(network, nn.Module) else network
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return frozenset(), False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = frozenset(p.name for p in parameters if p.kind in named)
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
