"""Directional derivatives ``<∇_w l_i, v>`` of the sample losses of a recorded step, exactly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from ..recording.trajectory import RecordedStep
    from ..reweighted import ReweightedProblem


def replayed_losses(problem: ReweightedProblem, step: RecordedStep) -> Tensor:
    """Return the sample losses of one recorded micro-batch, with the random numbers it drew."""
    step.random.restore()
    return problem.checked_losses(step.batch)


def forward_mode_derivatives(
    problem: ReweightedProblem,
    steps: Sequence[RecordedStep],
    parameters: Sequence[Tensor],
    vector: Sequence[Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Return ``(l_i, <∇_w l_i, v>)`` per micro-batch from one pass of dual numbers."""
    network = _SampleLosses(problem)
    names = {id(p): name for name, p in network.named_parameters()}
    # Nothing requires a gradient, rather than no_grad: what the network itself computes under that
    # is a constant.
    tensors = {name: p.detach() for name, p in network.named_parameters()}
    pairs = []
    with quiet_first_use(), forward_ad.dual_level():
        for p, v in zip(parameters, vector, strict=True):
            tensors[names[id(p)]] = forward_ad.make_dual(p.detach(), v)  # type: ignore[no-untyped-call]
        for step in steps:
            step.random.restore()
            buffers = {name: b.clone() for name, b in network.named_buffers()}
            output = torch.func.functional_call(network, {**tensors, **buffers}, (step.batch,))
            dual = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
            losses = dual.primal.detach()
            tangent = torch.zeros_like(losses) if dual.tangent is None else dual.tangent.detach()
            pairs.append((losses, tangent))
    return pairs


@contextmanager
def quiet_first_use() -> Iterator[None]:
    """Silence a deprecation that torch's own forward-mode formulas raise when first used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)
        yield


class _SampleLosses(nn.Module):
    """The problem's network with its sample losses as output, for a functional call."""

    def __init__(self, problem: ReweightedProblem) -> None:
        super().__init__()
        self.network = problem.module
        self._losses = problem.checked_losses

    def forward(self, batch: Any) -> Tensor:
        return self._losses(batch)
