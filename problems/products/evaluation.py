"""A context that evaluates a lower loss without side effects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..base.backward import gradients_with_graph
from ..base.errors import HypergradientError
from ..kernels.checkpointing import not_reentrant
from ..kernels.missing_derivatives import missing_derivative
from ..kernels.precision import HALF, autocast, full_precision
from ..kernels.twice_differentiable import TwiceDifferentiable, differentiable_twice
from ..state.buffers import preserved_buffers
from ..state.padding_rows import held_padding_rows
from ..state.power_iterations import held_power_iterations
from ..state.random_streams import RandomState
from ..state.surroundings import NONE, Surroundings
from .displaced import inverse_step

Entered = TypeVar("Entered")


class Evaluation:
    """A context in which losses are evaluated without side effects, also after an exception.

    At the end, random streams, buffers and ``requires_grad`` are restored; ``.grad`` is never
    written. Lower problems make one: ``with lower.evaluation(graph=False) as evaluation: ...``.

    Args:
        weights: The parameters a hypergradient goes through.
        frozen: Parameters that require no gradient inside.
        surroundings: The buffers that the losses may write to, and layers they may advance.
        device: The device of the losses and of their random stream.
        precision: The precision of training: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        in_full_precision: Compute without autocast.
        computes_in: Returns the type of numbers that losses are computed in; by default that of the
            first of ``weights``.
        name: The problem's name, for messages.
        second_order: Use kernels that can be differentiated twice and in forward mode.
        on_exit: Called at the end.

    Attributes:
        weights: As given.
        has_kinks: ``False`` once a pass has had no operation with kinks.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        *,
        frozen: Iterable[Tensor] = (),
        surroundings: Surroundings = NONE,
        device: torch.device,
        precision: str = "fp32",
        in_full_precision: bool = True,
        second_order: bool = False,
        computes_in: Callable[[], torch.dtype] | None = None,
        name: str = "",
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        self.weights = list(weights)
        self.has_kinks = True
        self._frozen = [p for p in frozen if p.requires_grad]
        self._surroundings = surroundings
        self._device = device
        self._precision = precision
        self._in_full_precision = in_full_precision
        self._second_order = second_order
        self._computes_in = computes_in
        self._name = name
        self._on_exit = on_exit
        self._contexts: list[AbstractContextManager[Any]] = []
        self._kernels: TwiceDifferentiable | None = None
        self._reentrant = not_reentrant()

    def __enter__(self) -> Evaluation:
        self._streams = RandomState(self._device)
        self._reentrant.__enter__()
        if self._surroundings.buffers:
            self._enter(preserved_buffers(self._surroundings.buffers))
        if self._precision != "fp32":
            choose = full_precision if self._in_full_precision else autocast
            self._enter(choose(self._precision, self._device))
        if self._second_order:
            self._kernels = self._enter(differentiable_twice())
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        if self._on_exit is not None:
            self._on_exit()
        try:
            if self._contexts:
                self._leave()
        finally:
            self._reentrant.__exit__()
        self._streams.restore()
        missing = None if error is None else missing_derivative(error)
        if missing is not None:
            raise HypergradientError(
                f"The hypergradient through problem {self._name!r} cannot be formed: {missing} "
                "Parameters are as they were."
            ) from error

    def _enter(self, context: AbstractContextManager[Entered]) -> Entered:
        entered = context.__enter__()
        self._contexts.append(context)
        return entered

    def _leave(self) -> None:
        """Leave all contexts, the last one first, also after one that fails."""
        try:
            self._contexts.pop().__exit__(None, None, None)
        finally:
            if self._contexts:
                self._leave()

    @property
    def computes_as_training(self) -> bool:
        """Whether losses are computed in the precision of training."""
        return self._precision == "fp32" or not self._in_full_precision

    def compared(self) -> AbstractContextManager[Callable[[], None]]:
        """Let passes differ by what is displaced alone, inside a ``with`` statement.

        Enter it before parameters are displaced. Inside, rows of padding and what power iterations
        find are constants of the present parameters. Yields a function to call before each pass,
        which sets buffers that a pass in training mode reads back to their present values.
        """
        return ALIKE if self._surroundings.is_plain else _compared(self._surroundings)

    def gradient_graph(self, loss: Tensor) -> list[Tensor | None]:
        """Return ``∇_w loss`` with its graph, to be differentiated only.

        Its values are not valid: kernels fill in zeros where that saves work.
        """
        with ExitStack() as stack:
            if self._kernels is not None:
                stack.enter_context(self._kernels.values_unread(self.weights))
            return gradients_with_graph(loss, self.weights)

    def inverse_step(
        self, vector: Sequence[Tensor], alpha: float, order: int = 2, *, warned: bool = False
    ) -> Tensor:
        """Return ``1 / eps`` for a displacement ``eps v`` of length ``alpha``, longer in 16 bits.

        ``order`` is the order of the difference's error in ``eps``. In 16 bits it warns, unless the
        caller has ``warned`` already.
        """
        dtype = self._dtype()
        if dtype in HALF and not warned:
            kind, left = ("one-sided", "few digits") if order == 1 else ("central", "one digit")
            warnings.warn(
                f"The hypergradient through problem {self._name!r} is a {kind} difference, and "
                f"its passes compute in {str(dtype).removeprefix('torch.')}: rounding leaves "
                f"{left} of it, at any length. Choose a method that takes no difference, such as "
                "Reweighting() of a ReweightedProblem, or type='unroll'; or keep parameters in "
                "float32, with Config(precision=...) for training.",
                stacklevel=2,
            )
        return inverse_step(vector, alpha, dtype, order)

    def _dtype(self) -> torch.dtype:
        if self._computes_in is not None:
            return self._computes_in()
        return self.weights[0].dtype if self.weights else torch.float32


def _nothing() -> None:
    pass


ALIKE = nullcontext(_nothing)
"""The context of passes that leave nothing behind."""


@contextmanager
def _compared(surroundings: Surroundings) -> Iterator[Callable[[], None]]:
    with (
        held_power_iterations(surroundings.iterating) as rewind_iterations,
        held_padding_rows(surroundings.shared_tables),
    ):
        slots = surroundings.read_in_training
        present = [(owner, name, owner._buffers[name]) for owner, name in slots]
        values = [None if b is None else b.clone() for _, _, b in present]

        def rewind() -> None:
            rewind_iterations()
            for (owner, name, buffer), value in zip(present, values, strict=True):
                owner._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.data.copy_(value)

        yield rewind
