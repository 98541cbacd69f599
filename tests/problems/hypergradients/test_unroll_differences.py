"""Unrolled hypergradients by differences, and of attached losses.

Differences state their tolerances; what is exact has 1e-9 relative in float64.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.naive import relative_error
from support.reweighting import Declared, program
from support.unrolled import (
    Lower,
    Setting,
    build,
    engine_gradient,
    naive_gradient,
)
from support.unrolled_declared import MOMENTUM, gradients_of

from metaweight import (
    Config,
    Unroll,
)


def declared(kind: Unroll, steps: int, **more: Any) -> list[torch.Tensor]:
    config = Config(type=kind, unroll_steps=steps)
    engine = program(Declared, config=config, **more)
    return gradients_of(engine, engine.judge, steps)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("alpha", "tolerance"), [(1e-2, 3e-4), (1e-3, 3e-6)])
def test_differences_of_gradients_respect_detach_where_weights_are_declared(
    steps: int, alpha: float, tolerance: float
) -> None:
    """The error of a central difference falls with the square of its step."""
    kind = Unroll(product="finite_difference", alpha=alpha)
    exact = declared(Unroll(), steps, dropout=0.5)
    assert relative_error(declared(kind, steps, dropout=0.5), exact) < tolerance


@pytest.mark.parametrize("product", ["exact", "forward_over_reverse"])
def test_dropout_and_batch_norm_are_replayed(product: str) -> None:
    """All steps see the masks they were trained with, and kept graphs have seen no others."""
    kept = declared(Unroll(memory="full"), 4, dropout=0.5)
    assert relative_error(declared(Unroll(product=product), 4, dropout=0.5), kept) < 1e-9


@pytest.mark.parametrize("steps", [1, 3])
def test_one_sided_differences_fall_with_their_step(steps: int) -> None:
    """The error of a one-sided difference is in proportion to its step."""
    exact = declared(Unroll(), steps, dropout=0.5)
    errors = [
        relative_error(
            declared(Unroll(product="one_sided", alpha=alpha), steps, dropout=0.5), exact
        )
        for alpha in (1e-3, 1e-4)
    ]
    assert errors[0] < 1e-2
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.2)


@pytest.mark.parametrize("case", ["callback", "own training step", "accumulation", "clipping"])
def test_one_sided_differences_use_only_what_training_left_as_it_was(case: str) -> None:
    class Callback(Declared):
        def grad_callback(self):
            for p in self.module.parameters():
                p.grad = p.grad * 1.0

    class Own(Declared):
        def training_step(self, batch):
            losses = self.sample_losses(batch)
            return (self.judge(losses.detach()) * losses).mean() + 0.01 * losses.sum()

    kind = {"callback": Callback, "own training step": Own}.get(case, Declared)
    more = {"accumulation": {"gradient_accumulation": 2}, "clipping": {"gradient_clipping": 0.1}}

    def gradient(method: Unroll) -> list[torch.Tensor]:
        config = Config(type=method, unroll_steps=2, **more.get(case, {}))
        engine = program(kind, config=config)
        return gradients_of(engine, engine.judge, 2 * config.gradient_accumulation)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*grad_callback may change")
        converged = "finite_difference" if case == "own training step" else "exact"
        exact = gradient(Unroll(product=converged, alpha=1e-4))
        assert relative_error(gradient(Unroll(product="one_sided", alpha=1e-6)), exact) < 1e-4


def test_finite_differences_of_a_plain_loss_do_not_respect_detach() -> None:
    setting = Setting(settings=MOMENTUM, steps=2)
    kind = Unroll(product="finite_difference", alpha=1e-4)
    assert relative_error(engine_gradient(setting, kind), naive_gradient(setting)) > 1e-3


class Attached(Lower):
    def training_step(self, batch):
        inputs, labels = batch
        losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
        return (self.upper.module.weigh(losses.unsqueeze(1)).squeeze(1) * losses).mean()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_equals_finite_differences_of_the_whole_lower_run(optimizer: Any) -> None:
    """With torch's own optimizer steps; central differences of step 1e-5 leave about 1e-7."""
    setting = Setting(optimizer, {"lr": 0.05}, steps=5, earlier=0)
    found = engine_gradient(setting, lower=Attached)
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in found]

    def judged(shift: float) -> float:
        engine = build(setting, lower=Attached)
        with torch.no_grad():
            for p, d in zip(engine.upper.module.parameters(), directions, strict=True):
                p.add_(d, alpha=shift)
        for _ in range(setting.steps - 1):
            engine.train_step()
        losses: list[float] = []
        step = engine.upper.training_step

        def watched(batch: Any) -> torch.Tensor:
            loss = step(batch)
            losses.append(float(loss.detach()))
            return loss

        engine.upper.training_step = watched
        engine.train_step()
        return losses[0]

    numeric = (judged(1e-5) - judged(-1e-5)) / 2e-5
    analytic = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True))
    assert analytic == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize(
    ("product", "alpha"),
    [("finite_difference", 1e-3), ("forward_over_reverse", 1.0), ("one_sided", 1e-6)],
)
def test_products_of_an_attached_loss(product: str, alpha: float) -> None:
    setting = Setting(settings=MOMENTUM, steps=3)
    exact = engine_gradient(setting, Unroll(), lower=Attached)
    kind = Unroll(product=product, alpha=alpha)
    assert relative_error(engine_gradient(setting, kind, lower=Attached), exact) < 1e-5
