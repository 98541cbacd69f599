"""Activation checkpointing, inside passes whose segments cannot be computed again later.

A segment under ``torch.utils.checkpoint`` is computed again when the backward pass reaches it, with
the tensors that the network then holds. For a pass at other tensors in their place, and for a graph
that outlives an optimizer step, these are the wrong ones, and forward derivatives are lost. Such
passes keep the activations.

The reentrant variant refuses ``torch.autograd.grad``, and ``backward`` for chosen parameters, and
gives no gradient by the parameters of a segment whose inputs need none. It is replaced by the other
variant, which does all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils import checkpoint

GENERATORS = (
    "_checkpoint_without_reentrant_generator_impl",
    "_checkpoint_without_reentrant_generator",
)
"""What torch calls around a segment, in one version or another; a generator that yields once."""

REENTRANT = "CheckpointFunction"


class _NotReentrant:
    """Stands in for the reentrant variant."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


def _nothing(*args: object, **kwargs: object) -> Iterator[None]:
    del args, kwargs
    yield


_INSTEAD = {**dict.fromkeys(GENERATORS, _nothing), REENTRANT: _NotReentrant}


class not_reentrant:
    """Compute reentrant segments by the other variant inside a ``with`` statement."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = vars(checkpoint).get(REENTRANT)
        setattr(checkpoint, REENTRANT, _NotReentrant)

    def __exit__(self, *exception: object) -> None:
        setattr(checkpoint, REENTRANT, self._before)


class uncheckpointed:
    """Keep the activations of checkpointed segments inside a ``with`` statement."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        present = vars(checkpoint)
        self._before = {name: present[name] for name in _INSTEAD if name in present}
        for name in self._before:
            setattr(checkpoint, name, _INSTEAD[name])

    def __exit__(self, *exception: object) -> None:
        for name, own in self._before.items():
            setattr(checkpoint, name, own)
