"""The vector of a hypergradient is given away where one method reads it once, and nowhere else."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from metaweight.problems.base import vectors
from metaweight.problems.step.plan import plan_of
from support.naive import relative_error
from support.reweighting import Declared, Plain, program
from support.small import numbers, problem

from metaweight import (
    SAMA,
    Config,
    Engine,
    EngineConfig,
    FiniteDifference,
    ImplicitProblem,
    Neumann,
    Reweighting,
)


class Twice(Reweighting):
    """Reads the vector twice."""

    def vjp(self, lower: Any, vector: Any, upper_parameters: Any) -> Any:
        super().vjp(lower, vector, upper_parameters)
        return super().vjp(lower, vector, upper_parameters)


class TwoSided(Declared):
    """Says of every pass whether the vector is still in memory."""

    seen: Any = None

    def sample_losses(self, batch: Any) -> torch.Tensor:
        if self.seen is not None:
            self.seen.append(self.alive())
        return super().sample_losses(batch)

    def alive(self) -> int:
        return sum(ref() is not None for ref in self.vector)


def gradients(method: Any, kind: Any) -> list[torch.Tensor]:
    engine = program(kind, config=Config(type=method))
    found: list[torch.Tensor] = []
    engine.judge.grad_callback = lambda: found.extend(
        p.grad.clone() for p in engine.judge.trainable_parameters()
    )
    engine.run()
    return found


@pytest.mark.parametrize(
    ("method", "kind", "expected"),
    [
        (Reweighting(), Declared, True),
        (Reweighting(derivative="one_sided"), Declared, True),
        (FiniteDifference(), Plain, True),
        (Twice(), Declared, False),
        (SAMA(), Plain, False),
        (Neumann(iterations=2, alpha=0.01), Plain, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_it_is_given_to_methods_that_say_so_themselves(
    method: Any, kind: Any, expected: bool
) -> None:
    engine = program(kind, config=Config(type=method))
    (path,) = plan_of(engine.judge).paths
    assert path.spends is expected


def test_a_subclass_that_reads_it_twice_finds_it_whole() -> None:
    """The same passes, so the same to the bit."""
    once, twice = gradients(Reweighting(), Declared), gradients(Twice(), Declared)
    assert len(once) == len(twice) > 0
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize(
    "method", [Reweighting(derivative="central_difference"), Reweighting(derivative="one_sided")]
)
def test_displaced_passes_run_without_it(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a copy of all parameters, in the passes that take most memory."""
    engine = program(TwoSided, config=Config(type=method))
    classifier, add = engine.classifier, vectors.add_quotient
    classifier.vector = []

    def noted(into: Any, vector: Any, divisor: Any) -> None:
        classifier.vector = [weakref.ref(t) for t in vector]
        classifier.seen = []
        add(into, vector, divisor)

    monkeypatch.setattr(vectors, "add_quotient", noted)
    engine.run()
    assert len(classifier.vector) == len(classifier.trainable_parameters())
    assert classifier.seen
    assert not any(classifier.seen)


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A displacement of each parameter by itself changes nothing, to the bit."""
    methods = (
        (Reweighting(), Declared),
        (Reweighting(derivative="one_sided"), Declared),
        (FiniteDifference(), Plain),
    )
    whole = [gradients(*each) for each in methods]
    monkeypatch.setattr(vectors, "AT_ONCE", 1)
    for each, expected in zip(methods, whole, strict=True):
        found = gradients(*each)
        assert relative_error(found, expected) == 0.0, each


class Low(ImplicitProblem):
    """``0.5 |w - top - mid|²``, whose mixed derivatives are -1."""

    def training_step(self, batch: Any) -> torch.Tensor:
        found: torch.Tensor = 0.5 * (self.module() - self.top() - self.mid()).square().sum()
        return found


class Mid(ImplicitProblem):
    """``0.5 |w - top - low|²``."""

    def training_step(self, batch: Any) -> torch.Tensor:
        found: torch.Tensor = 0.5 * (self.module() - self.top() - self.low()).square().sum()
        return found


class Top(ImplicitProblem):
    """``0.5 |mid|² + 0.5 |low|²``."""

    def training_step(self, batch: Any) -> torch.Tensor:
        found: torch.Tensor = 0.5 * (self.mid().square() + self.low().square()).sum()
        return found


def test_two_paths_that_start_alike_share_it() -> None:
    """Each product negates -v. Along mid, mid and low, and low, the vectors are mid, mid, low."""
    kinds = {"top": Top, "mid": Mid, "low": Low}
    made = [problem(kind, name, start=(0.5,), data=numbers(0.0)) for name, kind in kinds.items()]
    top, mid, low = made
    graph = {"u2l": {top: [low, mid], mid: [low]}, "l2u": {low: [mid, top], mid: [top]}}
    engine = Engine(made, EngineConfig(train_iters=1), graph)
    found: list[torch.Tensor] = []
    top.grad_callback = lambda: found.extend(
        t.detach().clone() for t in (top.module.w.grad, mid.module.w, low.module.w)
    )
    engine.run()
    assert {path.names: path.spends for path in plan_of(top).paths} == {
        ("top", "mid", "low", "top"): False,
        ("top", "mid", "top"): False,
        ("top", "low", "top"): True,
    }
    # The difference of a quadratic in double precision: rounding over the displacement of 0.01.
    assert torch.allclose(found[0], 2 * found[1] + found[2], rtol=1e-11)
