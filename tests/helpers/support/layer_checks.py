"""Second and forward derivatives of a layer, against finite differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from metaweight.problems.kernels.twice_differentiable import differentiable_twice
from metaweight.problems.products.second_derivatives import double_backward, forward_over_reverse
from metaweight.problems.state.swapped_tensors import swapped
from torch import Tensor, nn
from torch.autograd import forward_ad

from support.layers import Case, Tall

STEP = 1e-5
"""Of a central difference in double precision: errors near 1e-9, 1e-6 with large derivatives."""


class LayerLoss:
    """A loss that is not linear in the outputs of a layer, as a function of all its tensors."""

    def __init__(self, case: Case) -> None:
        torch.default_generator.manual_seed(0)
        make, specs = case
        self.generator = torch.Generator().manual_seed(1)
        self.net = make().double()
        self.inputs: list[Tensor] = []
        self.args = tuple(self._drawn(spec) for spec in specs)
        if any(isinstance(p, nn.UninitializedParameter) for p in self.net.parameters()):
            self.net(*self.args)
        self.parameters: list[Tensor] = list(self.net.parameters())
        for p in self.parameters:
            p.data += 0.1 * self.normal(p.shape)
        self.buffers = [b.clone() for b in self.net.buffers()]
        self.leaves = [*self.parameters, *self.inputs]
        self.along = [self.normal(t.shape) for t in self.leaves]

    def normal(self, shape: Any) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _drawn(self, spec: Any) -> Any:
        if isinstance(spec, Tensor):
            return spec
        if isinstance(spec[0], tuple):
            return tuple(self._drawn(each) for each in spec)
        drawn = self.normal(spec)
        drawn = drawn.sigmoid() * 0.8 + 0.1 if isinstance(spec, Tall) else drawn
        self.inputs.append(drawn.requires_grad_())
        return drawn

    def __call__(self, at: Sequence[Tensor]) -> Tensor:
        torch.default_generator.manual_seed(3)
        instead = {id(t): new for t, new in zip(self.leaves, at, strict=True)}
        swap = {p: instead[id(p)] for p in self.parameters}
        swap |= {b: kept.clone() for b, kept in zip(self.net.buffers(), self.buffers, strict=True)}
        with swapped(self.net, swap):
            outputs = tensors(self.net(*replaced(self.args, instead)))
        return sum(
            (
                torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape) * (0.7 * t).sin()
            ).sum()
            for t in outputs
        )

    def gradient(self, at: Sequence[Tensor]) -> Tensor:
        places = [t.detach().clone().requires_grad_() for t in at]
        return self.flat(torch.autograd.grad(self(places), places, allow_unused=True))

    def flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(gradients, self.leaves, strict=True)
        return torch.cat(
            [(torch.zeros_like(t) if g is None else g.to_dense()).reshape(-1) for g, t in pairs]
        ).detach()

    def moved(self, sign: float) -> list[Tensor]:
        pairs = zip(self.leaves, self.along, strict=True)
        return [(t + sign * STEP * u).detach() for t, u in pairs]

    def numeric(self) -> tuple[Tensor, Tensor]:
        """``<∇L, u>`` and ``∇²L u``, by torch's own functions."""
        first = (self(self.moved(1)) - self(self.moved(-1))) / (2 * STEP)
        second = (self.gradient(self.moved(1)) - self.gradient(self.moved(-1))) / (2 * STEP)
        return first.detach(), second

    def forward_mode(self) -> Tensor:
        with differentiable_twice(), forward_ad.dual_level():
            pairs = zip(self.leaves, self.along, strict=True)
            duals = [forward_ad.make_dual(t.detach(), u) for t, u in pairs]
            return forward_ad.unpack_dual(self(duals)).tangent.detach()

    def double_backward(self) -> Tensor:
        with differentiable_twice():
            gradient = torch.autograd.grad(
                self(self.leaves), self.leaves, create_graph=True, allow_unused=True
            )
            return self.flat(double_backward(gradient, self.along, self.leaves))

    def forward_over_reverse(self) -> Tensor:
        with differentiable_twice():
            return self.flat(forward_over_reverse(self, self.leaves, self.along, self.leaves))


def tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    return [t for each in outputs if each is not None for t in tensors(each)]


def replaced(args: tuple[Any, ...], instead: dict[int, Tensor]) -> tuple[Any, ...]:
    return tuple(
        replaced(each, instead) if isinstance(each, tuple) else instead.get(id(each), each)
        for each in args
    )


def close(found: Tensor, expected: Tensor, within: float) -> None:
    error = (found - expected).norm() / expected.norm().clamp(min=1e-3)
    assert error < within, f"relative error {error:.1e}"


def check_derivatives(case: Case, *, held: bool = False) -> None:
    """Compare all second and forward derivatives; of held constants, among themselves."""
    loss = LayerLoss(case)
    if held:
        gradient, second = loss.gradient(loss.leaves), loss.double_backward()
        first, within = torch.dot(gradient, torch.cat([u.reshape(-1) for u in loss.along])), 1e-10
    else:
        (first, second), within = loss.numeric(), 1e-6
        close(loss.double_backward(), second, within)
    close(loss.forward_mode(), first, within)
    close(loss.forward_over_reverse(), second, within)
