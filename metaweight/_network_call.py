"""Calls of a network with what a batch holds as its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from metaweight.problems import DataError, Problem

from ._batch import INPUTS, shown_batch

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class _Arguments(NamedTuple):
    names: tuple[str, ...]
    first: str | None
    takes_all: bool


def call_network(who: str, network: Any, inputs: Any) -> Any:
    """Call a network with the inputs of a batch: of several named ones, with those it names.

    As ``transformers.Trainer`` does, parts that ``forward`` has no argument for are left out, but
    the one that is known to be the input, by its name in :data:`INPUTS` or as the only part, is its
    first argument. A network that none of this fits is called with the mapping itself.

    Args:
        who: Who calls it, for an error.
        network: A module, or a problem.
        inputs: One object, or a mapping of named parts.

    Raises:
        DataError: When the network fails on the mapping itself.
    """
    if not isinstance(inputs, Mapping):
        return network(inputs)
    names, first, takes_all = _arguments(network)
    chosen = {key: inputs[key] for key in inputs if takes_all or key in names}
    only = _only(inputs)
    unnamed = only not in names and first not in chosen
    if only is not None and (
        only == first or (unnamed and (first is not None or not takes_all or len(inputs) == 1))
    ):
        return network(inputs[only], **{key: chosen[key] for key in chosen if key != only})
    if chosen:
        return network(**chosen)
    try:
        return network(inputs)
    except (LookupError, TypeError, AttributeError) as cause:
        raise DataError(
            f"{who} called a network with {shown_batch(inputs)}, as it has no arguments of these "
            f"names, and it raised {type(cause).__name__}: {cause}; say with inputs=... which part "
            "is its input: a key, or a function of a batch."
        ) from cause


def named_arguments(network: Any) -> tuple[tuple[str, ...], bool]:
    """Return the names of a network's arguments, and whether it takes any name."""
    found = _arguments(network)
    return found.names, found.takes_all


def one_tensor(who: str, inputs: Any) -> Tensor:
    """Return inputs that are a tensor, or the one part of a mapping that is known to be the input.

    Raises:
        DataError: For others, saying what they are.
    """
    only = _only(inputs) if isinstance(inputs, Mapping) else None
    found = inputs if only is None else inputs[only]
    if not isinstance(found, Tensor):
        raise DataError(
            f"{who} mixes, joins or perturbs inputs, but received {shown_batch(found)}; give "
            "batches whose inputs are one tensor, or say with inputs=... which it is: a key or "
            "place in a batch, or a function of a batch."
        )
    return found


def logits_of(outputs: Any) -> Any:
    """Return the logits of a Hugging Face ``ModelOutput``, or of a mapping; others as they are."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs)
    return outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)


def _only(inputs: Mapping[Any, Any]) -> Any:
    """Return the name of the one part, or of the one with a usual name, if there is one."""
    known = list(inputs) if len(inputs) == 1 else [key for key in INPUTS if key in inputs]
    return known[0] if len(known) == 1 else None


def _arguments(network: Any) -> _Arguments:
    """Return a network's arguments by name, the first by position, and whether it takes any."""
    if isinstance(network, Problem):
        network = network.module if type(network).forward is Problem.forward else network.forward
    while (inner := _wrapped(network)) is not None:
        network = inner
    call = network.forward if isinstance(network, nn.Module) else network
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return _Arguments((), None, False)
    placed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = next((p.name for p in parameters if p.kind in placed), None)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = tuple(p.name for p in parameters if p.kind in named)
    return _Arguments(
        names, first, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    )


def _wrapped(network: Any) -> Any:
    """Return the network that is called with all that another one is called with."""
    if hasattr(network, "_orig_mod"):
        return network._orig_mod
    inner = "module" if isinstance(network, _PARALLEL) else getattr(network, "_called", None)
    return getattr(network, inner) if isinstance(inner, str) else None
