"""The zeroth-order hypergradient against the exact unrolled one, in float64.

One sample is ``(Φ(θ + s e) - Φ(θ - s e)) / (2s) e``, which for a smooth ``Φ`` and a small ``s`` is
``<g, e> e`` with the exact gradient ``g``: its direction can be drawn again, and the two compared
to ``O(s²)``, without any statistics. With ``s = 1e-5`` a relative 1e-5 leaves room for rounding,
1e-16 / s over a slope of 1e-4. That the mean is unbiased is tested once, with z-scores.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.measured_losses import (
    ONE,
    along,
    directions,
)
from support.naive import relative_error
from support.reweighting import Plain, program
from support.unrolled import Setting, build, engine_gradient, keep_gradients

from metaweight import (
    Config,
    ImplicitProblem,
    Unroll,
    ZeroOrder,
)


class Implicit(ImplicitProblem):
    """The lower problem of the unrolled programs, without their stop-gradient."""

    def training_step(self, batch):
        inputs, labels = batch
        upper, weights = self.upper.module, self.module.parameters()
        losses = F.cross_entropy(self.module(inputs), labels, reduction="none")
        penalty = sum((s.exp() * w**2).sum() for s, w in zip(upper.penalty, weights, strict=True))
        return (upper.weigh(losses.unsqueeze(1)).squeeze(1) * losses).mean() + penalty

    def learned_settings(self):
        return {name: self.upper.module.learned()[name] for name in self.cfg or ()}


SETTINGS = {
    "momentum": Setting(settings={"lr": 0.1, "momentum": 0.9}),
    "adam, scheduler": Setting(torch.optim.Adam, {"lr": 0.02}, scheduler=True),
    "clipping, accumulation": Setting(settings={"lr": 0.1}, clipping=0.1, accumulation=3),
    "learned rate": Setting(settings={"lr": 0.1, "momentum": 0.9}, learned=("lr", "momentum")),
    "adagrad": Setting(torch.optim.Adagrad, {"lr": 0.1}),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_sample_is_the_exact_slope_along_its_direction(case: str) -> None:
    setting = SETTINGS[case]
    exact = engine_gradient(setting, Unroll(), lower=Implicit)
    engine = build(setting, ONE, lower=Implicit)
    seen = keep_gradients(engine)
    for _ in range(setting.steps * setting.accumulation * (setting.earlier + 1)):
        engine.train_step()
    expected = along(exact, directions(ONE, engine.lower, engine.upper))
    assert relative_error(seen["upper"], expected) < 1e-5


@pytest.mark.parametrize("accumulation", [1, 2])
def test_masks_are_replayed_and_batch_statistics_used(accumulation: int) -> None:
    """Dropout would otherwise be noise of the size of the loss, divided by 1e-5."""
    results = []
    for method in (Unroll(), ONE):
        engine = program(
            Plain,
            extra="attached",
            config=Config(type=method, unroll_steps=3, gradient_accumulation=accumulation),
            dropout=0.5,
        )
        found = []

        def look(engine=engine, found=found):
            found[:] = [p.grad.clone() for p in engine.judge.module.parameters()]

        engine.judge.grad_callback = look
        torch.default_generator.manual_seed(4)
        for _ in range(6 * accumulation):
            engine.train_step()
        results.append(found)
    expected = along(results[0], directions(ONE, engine.classifier, engine.judge))
    assert relative_error(results[1], expected) < 1e-5


def test_the_mean_is_unbiased() -> None:
    """50 seeds of 4 samples; every coordinate within 4 measured standard errors of the unroll.

    The seeds are fixed, so this cannot fail by chance later; over all seeds 20 coordinates would
    pass with probability 0.999. The squares of the z-scores average 1. The standard error in the
    status is that of 4 samples; over the seeds its square averages the variance that is seen.
    """
    setting = Setting(settings={"lr": 0.1, "momentum": 0.9}, steps=2, earlier=0)
    exact = torch.cat([t.reshape(-1) for t in engine_gradient(setting, Unroll(), lower=Implicit)])
    used, errors = [], []

    class Many(ZeroOrder):
        def estimate(self, lower, value, upper_parameters):
            used.clear(), errors.clear()
            for seed in range(50):
                method = ZeroOrder(samples=4, radius=1e-3, seed=seed)
                product = method.estimate(lower, value, upper_parameters)
                used.append(torch.cat([t.reshape(-1) for t in product.values]))
                errors.append(product.status.values["standard error"])
            return product

    engine = build(setting, Many(), lower=Implicit)
    for _ in range(setting.steps * (setting.earlier + 1)):
        engine.train_step()
    estimates = torch.stack(used)
    z = (estimates.mean(0) - exact) / (estimates.std(0) / len(used) ** 0.5)
    print(f"{len(z)} z-scores: largest {float(z.abs().max()):.2f}, mean square {(z**2).mean():.2f}")
    assert float(exact.norm()) > 1e-4
    assert z.abs().max() < 4
    assert 0.3 < (z**2).mean() < 2
    predicted = torch.stack(errors).square().mean()
    assert float(predicted / estimates.var(0).sum()) == pytest.approx(1, rel=0.3)
