"""The function mode of :mod:`metaweight.problems.kernels` with kernels left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from unittest import mock

from metaweight.problems.kernels import twice_differentiable
from metaweight.problems.kernels.convolution import DIMENSIONS
from torch.nn import functional as F

KERNELS = {"batch_norm": (F.batch_norm,), "convolution": (*DIMENSIONS,)}
ALL = "nothing"
LEFT_OUT: dict[str, tuple[str, ...]] = {
    ALL: (),
    **{name: (name,) for name in KERNELS},
    "all of them": (*KERNELS,),
}


class Fewer(twice_differentiable.TwiceDifferentiable):
    """The function mode with some kernels left to torch."""

    def __init__(self, left_out: Collection[str]) -> None:
        super().__init__()
        kept = [name for name in KERNELS if name not in left_out]
        self._ours = [function for name in kept for function in KERNELS[name]]


class Absent:
    """Nothing in place of the function mode."""

    def __enter__(self) -> Absent:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave."""

    def values_unread(self, leaves: object) -> AbstractContextManager[None]:
        """Return a context in which torch computes all values, as it always does."""
        del leaves
        return nullcontext()


@contextmanager
def without(left_out: Collection[str]) -> Iterator[None]:
    """Compute inside without these kernels, and without the function mode when that is all."""
    mode = Absent if len(left_out) == len(KERNELS) else partial(Fewer, left_out)
    with mock.patch.object(twice_differentiable, "TwiceDifferentiable", mode):
        yield
