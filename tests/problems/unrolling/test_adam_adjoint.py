"""The closed-form adjoint of Adam against torch's differentiable optimizer, and against autograd
through our rule.

Tolerance: relative 1e-12 in float64, since sums are of a few numbers near 1. torch's differentiable
Adam has infinite derivatives where a second moment is 0, and is compared elsewhere.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from metaweight.problems.recording.recorded_steps import RecordedUpdate, optimizer_moment
from metaweight.problems.unrolling import adjoint
from metaweight.problems.unrolling.adam_adjoint import MOMENTS, adam_adjoint
from metaweight.problems.unrolling.torch_rule import differentiable_step
from support.each import for_each
from support.naive import relative_error
from support.unrolled import Lower, Setting, engine_gradient, naive_gradient
from torch import Tensor

from metaweight import ImplicitProblem, Unroll

TOLERANCE = 1e-12
KINDS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
CASES = [
    {"kind": kind, "amsgrad": amsgrad, "weight_decay": decay, "maximize": maximize, "steps": steps}
    for kind, amsgrad, decay, maximize, steps in itertools.product(
        KINDS, (False, True), (0.0, 0.2), (False, True), (0, 1, 3)
    )
]


class Program:
    """Recorded steps of an optimizer over two groups; the last parameter has no gradient."""

    def __init__(self, case: dict[str, Any], *, zeros: bool) -> None:
        settings = dict(case)
        kind, steps = KINDS[settings.pop("kind")], settings.pop("steps")
        generator = torch.Generator().manual_seed(0)
        self.generator = generator
        self.parameters = [self.drawn(*shape) for shape in ((3, 2), (4,), (2,), ())]
        a, b, c, d = self.parameters
        groups = [{"params": [a, b]}, {"params": [c, d], "lr": 0.3, "betas": (0.5, 0.7)}]
        self.optimizer = kind(groups, lr=0.1, **settings)
        for number in range(steps + 1):
            for p in (a, b, c):
                # Smaller from step to step, so that the largest second moment is an earlier one.
                p.grad = self.drawn(*p.shape) / (1 + number)
            if zeros:
                a.grad[0] = 0.0
            if number < steps:
                self.optimizer.step()
        start = {p: p.clone() for p in self.parameters}
        self.update = RecordedUpdate(start=start, moment=optimizer_moment(self.optimizer))
        self.of_w = {p: self.drawn(*p.shape) for p in self.parameters}
        keys = [k for k in MOMENTS if k != "max_exp_avg_sq" or settings["amsgrad"]]
        self.of_state = {p: {k: self.drawn(*p.shape) for k in keys} for p in (a, b, c)}

    def drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def closed(self, **flags: bool) -> Any:
        return adam_adjoint(self.update, self.of_w, self.of_state, **flags)

    def by_autograd(self) -> Any:
        step: Any = SimpleNamespace(
            optimizer=self.optimizer, clipping=0.0, is_scaled=False, has_learned_settings=False
        )
        moment = self.update.moment
        return adjoint._by_autograd(step, self.update, moment, self.of_w, self.of_state, [])

    def by_torch(self, p: Tensor) -> dict[str, Tensor]:
        """Cotangents before the step of one parameter, through torch's differentiable optimizer."""
        moment = self.update.moment
        w = self.update.start[p].clone().requires_grad_()
        g = moment.gradients[p].clone().requires_grad_()
        # torch counts steps in single precision, and corrects by powers of them.
        state = {
            k: v.clone().requires_grad_() if k in MOMENTS else v.double()
            for k, v in moment.states[p].items()
        }
        after, new = differentiable_step(self.optimizer, w, g, state, moment.settings[p])
        outputs = [after, *(new[k] for k in self.of_state[p])]
        seeds = [self.of_w[p], *self.of_state[p].values()]
        leaves = {"w": w, "g": g, **{k: v for k, v in state.items() if k in MOMENTS}}
        found = torch.autograd.grad(outputs, list(leaves.values()), seeds, allow_unused=True)
        return {
            key: torch.zeros_like(p) if value is None else value
            for key, value in zip(leaves, found, strict=True)
        }


@for_each(CASES)
def test_is_the_derivative_of_torchs_differentiable_step(case: dict[str, Any]) -> None:
    program = Program(case, zeros=False)
    found = program.closed(gradients_only=False)
    for p in program.parameters[:3]:
        expected = program.by_torch(p)
        ours = {"w": found.parameters[p], "g": found.gradients[p], **found.states[p]}
        assert set(ours) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(ours[key], value, rtol=TOLERANCE, atol=TOLERANCE)


@for_each(CASES)
def test_equals_autograd_through_the_rule_also_at_gradients_of_zero(case: dict[str, Any]) -> None:
    program = Program(case, zeros=True)
    found, expected = program.closed(gradients_only=False), program.by_autograd()
    for p in program.parameters:
        pairs = [(found.parameters[p], expected.parameters[p])]
        if p in expected.gradients:
            pairs.append((found.gradients[p], expected.gradients[p]))
            assert set(found.states[p]) == set(expected.states[p])
        pairs += [(found.states[p][k], t) for k, t in expected.states[p].items()]
        for ours, theirs in pairs:
            assert bool(ours.isfinite().all())
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@for_each(CASES)
def test_gradients_alone_are_the_same(case: dict[str, Any]) -> None:
    program = Program(case, zeros=True)
    whole = program.closed(gradients_only=False).gradients
    alone = program.closed(gradients_only=True).gradients
    assert set(whole) == set(alone)
    assert all(torch.equal(whole[p], alone[p]) for p in whole)


class Fixed(Lower):
    """Its optimizer has no learned settings, not even by a method that returns none."""

    learned_settings = ImplicitProblem.learned_settings


@pytest.mark.parametrize("memory", ["flat", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_takes_it_and_equals_naive_autograd(
    kind: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e-9: as every unrolled program, of sums of some hundred numbers."""
    settings = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.1}
    settings |= {"amsgrad": False, "maximize": False}
    setting = Setting(KINDS[kind], settings, steps=3, scheduler=True)
    calls: list[bool] = []

    def counted(*args: Any, **flags: Any) -> Any:
        calls.append(True)
        return adam_adjoint(*args, **flags)

    monkeypatch.setattr(adjoint, "adam_adjoint", counted)
    found = engine_gradient(setting, Unroll(memory=memory), lower=Fixed)
    assert len(calls) == 3 * 3
    assert relative_error(found, naive_gradient(setting)) < 1e-9
