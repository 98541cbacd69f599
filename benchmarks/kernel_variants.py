"""The function mode of :mod:`metaweight.problems.kernels` with kernels left out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from unittest import mock

from metaweight.problems.kernels import twice_differentiable
from metaweight.problems.kernels.convolution import DIMENSIONS
from torch.nn import functional as F

KERNELS = {
    "batch_norm": (F.batch_norm,),
    "convolution": (*DIMENSIONS,),
    "linear": (F.linear,),
}
ALL = "nothing"


def variants(*names: str) -> Mapping[str, tuple[str, ...]]:
    """Return what is left out in turn: nothing, each of these kernels, and all there are."""
    return {ALL: (), **{name: (name,) for name in names}, "all of them": (*KERNELS,)}


LEFT_OUT = {
    "resnet32": variants("batch_norm", "convolution"),
    "transformer": variants("linear"),
}
"""The variants by task; a kernel that a task hardly calls is left out with all others alone."""


class Fewer(twice_differentiable.TwiceDifferentiable):
    """The function mode with some kernels left to torch."""

    def __init__(self, left_out: Collection[str], *, reads_values: bool = False) -> None:
        super().__init__(reads_values=reads_values)
        kept = [name for name in KERNELS if name not in left_out]
        self._ours = [function for name in kept for function in KERNELS[name]]


class Absent:
    """Nothing in place of the function mode."""

    def __init__(self, *, reads_values: bool = False) -> None:
        del reads_values

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
