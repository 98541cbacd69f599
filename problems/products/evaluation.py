"""A context that evaluates a lower loss without side effects."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..base.errors import HypergradientError
from ..kernels.checkpointing import not_reentrant
from ..kernels.missing_derivatives import missing_derivative
from ..kernels.precision import HALF, autocast, full_precision
from ..kernels.twice_differentiable import TwiceDifferentiable, differentiable_twice
from ..state.buffers import BufferSlot, preserved_buffers, read_in_training
from ..state.padding_rows import held_padding_rows
from ..state.power_iterations import held_power_iterations
from ..state.random_streams import RandomState
from .displaced import inverse_step


class Evaluation:
    """A context in which losses are evaluated without side effects, also after an exception.

    At the end, random streams, buffers and ``requires_grad`` are restored; ``.grad`` is never
    written. Lower problems make one: ``with lower.evaluation(graph=False) as evaluation: ...``.

    Args:
        weights: The parameters a hypergradient goes through.
        frozen: Parameters that require no gradient inside.
        buffers: The buffers that the losses may write to.
        modules: The networks that hold them.
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
        buffers: Sequence[BufferSlot] = (),
        modules: Sequence[nn.Module] = (),
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
        self._slots = buffers
        self._modules = modules
        self._device = device
        self._precision = precision
        self._in_full_precision = in_full_precision
        self._second_order = second_order
        self._computes_in = computes_in
        self._name = name
        self._on_exit = on_exit
        self._stack = ExitStack()
        self._kernels: TwiceDifferentiable | None = None

    def __enter__(self) -> Evaluation:
        self._streams = RandomState(self._device)
        choose = full_precision if self._in_full_precision else autocast
        if self._slots:
            self._stack.enter_context(preserved_buffers(self._slots))
        self._stack.enter_context(choose(self._precision, self._device))
        if self._second_order:
            self._kernels = self._stack.enter_context(differentiable_twice())
        else:
            self._stack.enter_context(not_reentrant())
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        if self._on_exit is not None:
            self._on_exit()
        self._stack.close()
        self._streams.restore()
        missing = missing_derivative(error)
        if missing is not None:
            raise HypergradientError(
                f"The hypergradient through problem {self._name!r} cannot be formed: {missing} "
                "Parameters are as they were."
            ) from error

    @property
    def computes_as_training(self) -> bool:
        """Whether losses are computed in the precision of training."""
        return self._precision == "fp32" or not self._in_full_precision

    @contextmanager
    def compared(self) -> Iterator[Callable[[], None]]:
        """Let passes differ by what is displaced alone, inside a ``with`` statement.

        Enter it before parameters are displaced. Inside, rows of padding and what power iterations
        find are constants of the present parameters. Yields a function to call before each pass,
        which sets buffers that a pass in training mode reads back to their present values.
        """
        with (
            held_power_iterations(self._slots, self._modules) as rewind_iterations,
            held_padding_rows(self._modules),
        ):
            slots = read_in_training(self._slots)
            present = [(owner, name, owner._buffers[name]) for owner, name in slots]
            values = [None if b is None else b.clone() for _, _, b in present]

            def rewind() -> None:
                rewind_iterations()
                for (owner, name, buffer), value in zip(present, values, strict=True):
                    owner._buffers[name] = buffer
                    if buffer is not None and value is not None:
                        buffer.data.copy_(value)

            yield rewind

    def gradient_graph(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        """Return ``∇_w loss`` with its graph, to be differentiated only.

        Its values are not valid: kernels fill in zeros where that saves work.
        """
        with ExitStack() as stack:
            if self._kernels is not None:
                stack.enter_context(self._kernels.values_unread(self.weights))
            return torch.autograd.grad(loss, self.weights, create_graph=True, allow_unused=True)

    def inverse_step(self, vector: Sequence[Tensor], alpha: float, order: int = 2) -> Tensor:
        """Return ``1 / eps`` for a displacement ``eps v`` of length ``alpha``, longer in 16 bits.

        ``order`` is the order of the difference's error in ``eps``.
        """
        dtype = self._dtype()
        if order == 1 and dtype in HALF:
            warnings.warn(
                f"The hypergradient through problem {self._name!r} is a one-sided difference, and "
                f"its passes compute in {str(dtype).removeprefix('torch.')}: rounding leaves few "
                "digits of it, at any length. Choose a method that takes no difference, such as "
                "Reweighting() of a ReweightedProblem, or type='unroll'.",
                stacklevel=2,
            )
        return inverse_step(vector, alpha, dtype, order)

    def _dtype(self) -> torch.dtype:
        if self._computes_in is not None:
            return self._computes_in()
        return self.weights[0].dtype if self.weights else torch.float32
