"""Class weights that begin late: what they compute, when they begin, and what a resume finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.learners import batches, network
from support.resuming import CLASSES, assert_resumes_exactly, loader
from support.resuming import network as with_dropout
from support.zoo import Judge, over
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from metaweight import Config, ConfigurationError, Engine, EngineConfig, ImplicitProblem, LossError
from metaweight.noise import SymmetricCrossEntropy, WithCriterion
from metaweight.weighting import (
    DeferredReweighting,
    DeferredReweightingHook,
    LDAMLoss,
    class_balanced_weights,
    focal_loss,
)

COUNTS = [90, 9, 1]
WEIGHTS = class_balanced_weights(COUNTS).double()
CRITERIA = {
    "cross-entropy": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "focal": focal_loss,
    "margins": LDAMLoss(COUNTS),
    "symmetric": SymmetricCrossEntropy(),
}


class Classifier(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        loss: Tensor = self.module.criterion(self.module(batch[0]), batch[1])
        return loss


def each(criterion: Any, z: Tensor, y: Tensor) -> list[float]:
    """The criterion of every sample, one at a time."""
    return [criterion(z[i : i + 1], y[i : i + 1]).item() for i in range(len(z))]


@pytest.mark.parametrize("name", CRITERIA)
def test_losses_are_weighted_once_switched(name: str) -> None:
    source = torch.Generator().manual_seed(0)
    z = torch.randn(7, 3, generator=source, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 0, -1, 1])
    kept = [i for i in range(7) if y[i] >= 0]
    losses = each(CRITERIA[name], z[kept], y[kept])
    criterion = DeferredReweighting(CRITERIA[name], WEIGHTS)
    for on in (False, True, False):
        criterion.switch(on)
        weights = [criterion.weights[c].item() if on else 1.0 for c in y[kept].tolist()]
        weighted = [w * loss for w, loss in zip(weights, losses, strict=True)]
        # A few float64 operations on losses up to 60.
        total = sum(weighted)
        assert criterion(z, y).item() == pytest.approx(total / sum(weights), abs=1e-12)
        assert criterion(z, y, reduction="sum").item() == pytest.approx(total, abs=1e-11)
        found = criterion(z, y, reduction="none").tolist()
        assert found == pytest.approx([*weighted[:5], 0.0, weighted[5]], abs=1e-12)


def test_with_cross_entropy_it_is_torchs_own_weighting() -> None:
    x, y = batches(1, 0)[0]
    criterion = DeferredReweighting(F.cross_entropy, WEIGHTS.float())
    criterion.switch()
    z = network()(x)
    expected = F.cross_entropy(z, y, weight=criterion.weights.double())
    torch.testing.assert_close(criterion(z, y), expected)
    (gradient,) = torch.autograd.grad(criterion(z, y), z)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, z)[0])


@pytest.mark.parametrize("labels", [[-1, -1], [2, 2]])
def test_a_batch_of_no_weight_has_the_loss_zero_with_a_graph(labels: list[int]) -> None:
    z = torch.randn(2, 3, requires_grad=True)
    criterion = DeferredReweighting(F.cross_entropy, [1.0, 1.0, 0.0])
    criterion.switch()
    loss = criterion(z, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and not z.grad.any()


STEPS = 10
STARTS = {"share": (0.8, 8), "late": (0.55, 6), "steps": (3, 3), "at once": (0, 0)}


def program(start: Any, kind: Any = None, **settings: Any) -> Any:
    """One problem, or one below another that does not move."""
    module = WithCriterion(network(), DeferredReweighting(F.cross_entropy, WEIGHTS))
    config = None if kind is None else Config(type=kind)
    low = Classifier(
        "lower",
        config,
        module,
        torch.optim.SGD(module.parameters(), 0.1),
        train_data_loader=batches(4, 1),
    )
    hooks = [DeferredReweightingHook(start)]
    settings = {"train_iters": STEPS, "strategy": "cpu"} | settings
    if kind is None:
        return Engine([low], EngineConfig(**settings), hooks=hooks)

    class Idle(Judge):
        def training_step(self, batch: Any) -> Tensor:
            return super().training_step(batch) + 0 * self.module.weight.sum()

    top_net = nn.Linear(1, 1).double()
    top = Idle(
        "upper", None, top_net, torch.optim.SGD(top_net.parameters(), 0.0), None, batches(2, 2)
    )
    return over(top, low, hooks=hooks, **settings)


@pytest.mark.parametrize("name", STARTS)
def test_a_run_is_that_of_a_plain_loop_that_changes_its_loss(name: str) -> None:
    start, first = STARTS[name]
    run = program(start)
    run.run()
    net, weights = network(), class_balanced_weights(COUNTS).double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(STEPS):
        x, y = batches(4, 1)[step % 4]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y, weight=weights if step >= first else None).backward()
        optimizer.step()
    for found, right in zip(run.lower.module.parameters(), net.parameters(), strict=True):
        # Rounding of ten float64 steps.
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    assert bool(run.lower.module.criterion.active)


def test_every_step_resumes_exactly(tmp_path: Path) -> None:
    def build(**more: Any) -> Engine:
        criterion = DeferredReweighting(LDAMLoss([5, 4, 3]), class_balanced_weights([5, 4, 3]))
        assert CLASSES == 3
        module = WithCriterion(with_dropout(), criterion)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        low = Classifier("lower", Config(log_step=1), module, optimizer, None, loader(12, 1))
        settings = {"train_iters": 6, "strategy": "cpu", "logger_type": "csv"}
        return Engine(
            [low], EngineConfig(**(settings | more)), hooks=[DeferredReweightingHook(0.5)]
        )

    assert_resumes_exactly(build, tmp_path, [2, 3, 4])


def test_a_longer_run_that_resumes_switches_back_until_its_own_share(tmp_path: Path) -> None:
    short = program(0.5)
    short.run()
    short.save(tmp_path / "short.ckpt")
    longer = program(0.5, train_iters=30)
    longer.load(tmp_path / "short.ckpt")
    longer.hooks.run_start(longer)
    assert short.lower.module.criterion.active and not longer.lower.module.criterion.active


def test_nothing_is_read_back_from_the_device() -> None:
    criterion = DeferredReweighting(F.cross_entropy, torch.ones(3))
    with FakeTensorMode(allow_non_fake_inputs=True):
        criterion.switch()
        z = torch.randn(8, 3, requires_grad=True)
        criterion(z, torch.randint(0, 3, (8,))).backward()


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [[1.0]], [1.0, float("nan")], []])
def test_weights_that_make_no_sense_are_refused(weights: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"received weights of shape .*class_balanced_w"):
        DeferredReweighting(F.cross_entropy, weights)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LossError, match="DeferredReweighting was made for 3 classes"):
        DeferredReweighting(F.cross_entropy, WEIGHTS)(torch.zeros(2, 4), torch.zeros(2).long())
    for start in (1.0, -0.1, -1, True, "late"):
        with pytest.raises(ConfigurationError, match=r"start=.*share of a run nor .*\[0, 1\)"):
            DeferredReweightingHook(start)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'all'"):
        DeferredReweighting(F.cross_entropy, WEIGHTS, reduction="all")


def test_programs_that_could_not_switch_are_refused() -> None:
    run = program(0.5)
    run.lower.module.criterion = nn.CrossEntropyLoss()
    with pytest.raises(ConfigurationError, match=r"found no DeferredReweighting .* lower; give"):
        run.run()
    with pytest.raises(ConfigurationError, match="use roll_back=False"):
        program(0.5, "unroll", roll_back=True).run()
    run = program(0.5, "unroll")
    run.upper.module.criterion = DeferredReweighting(F.cross_entropy, WEIGHTS)
    with pytest.raises(ConfigurationError, match=r"start=0\.5\) is a share of the steps of a leaf"):
        run.run()


def test_a_switch_beyond_the_run_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="after 10 steps, but the run has 10: .* never used"):
        program(10).run()
