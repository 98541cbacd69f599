"""Programs whose iterations are never captured: a run says so, once, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.captured import is_captured, program, state
from torch import Tensor, nn

from metaweight import Config, ConfigurationError, Engine, EngineConfig, Hook, ImplicitProblem
from metaweight.weighting import WeightedClassifier


class Level(ImplicitProblem):
    """Follows the problems above and below it."""

    def training_step(self, batch: Tensor) -> Tensor:
        x = self.module.weight.sum() - batch.mean()
        others = [p.module.weight.sum() for p in (*self.parents, *self.children)]
        return (x - 0.1 * sum(others)) ** 2


def level(name: str, steps: int) -> Level:
    module = nn.Linear(1, 2, bias=False).double()
    return Level(
        name,
        Config(unroll_steps=steps, type="darts"),
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), 0.01),
        train_data_loader=[torch.ones(2, dtype=torch.float64)],
    )


def over_two() -> Engine:
    """The top problem waits for a lowest and a middle one, of other rhythms."""
    low, middle, top = level("low", 3), level("middle", 2), level("top", 1)
    return Engine(
        [top, middle, low],
        EngineConfig(train_iters=3100, progress=False, capture="replay"),
        {"u2l": {top: [middle, low], middle: [low]}, "l2u": {low: [middle, top], middle: [top]}},
    )


class Alternates(Hook):
    """Lets every, and then every other loop be for the upper problem."""

    def iteration_end(self, engine: Engine) -> None:
        if engine.schedule.is_between_loops():
            engine.schedule.upper_update_every("classifier", 1 + engine.global_step % 2)


LEFT: dict[str, tuple[Callable[[], Engine], str]] = {
    "loops that do not end together": (over_two, "no iteration ends between the loops of all"),
    "validations inside loops": (
        lambda: program(capture="replay", steps=6, valid_step=5, train_iters=3100),
        "a validation, a checkpoint or the end of run() comes before",
    ),
    "graphs longer than what is left": (
        lambda: program(capture="replay", capture_iterations=8, valid_step=4, train_iters=3100),
        "a validation, a checkpoint or the end of run() comes before",
    ),
    "schedules that alternate": (
        lambda: program(capture="replay", train_iters=3100, hooks=[Alternates()]),
        "the steps of one period are not those of the next",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_never_captured_is_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    build, why = LEFT[name]
    engine = build()
    with caplog.at_level("WARNING"):
        engine.run()
    assert not is_captured(engine)
    assert caplog.text.count("has captured none of 3000 iterations") == 1
    assert why in caplog.text


def test_a_warm_up_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    engine = program(capture="replay", warmup=10_000, train_iters=3100)
    with caplog.at_level("WARNING"):
        engine.run()
    assert "has captured none" not in caplog.text


class Copies(WeightedClassifier):
    def training_step(self, batch: Any) -> Any:
        inputs, labels = batch
        return super().training_step((copy.copy(inputs), labels))


class DeepCopies(WeightedClassifier):
    def training_step(self, batch: Any) -> Any:
        return super().training_step(copy.deepcopy(batch))


@pytest.mark.parametrize("kind", [Copies, DeepCopies])
def test_copies_of_tensors_as_objects_are_refused(kind: type[WeightedClassifier]) -> None:
    with pytest.raises(ConfigurationError, match=r"makes a tensor of a storage.*x\.clone"):
        program(lower_type=kind, capture="replay").run()


@pytest.mark.parametrize("rate", [1e200, 1e308])
@pytest.mark.parametrize("deep", [False, True])
def test_a_run_that_diverges_ends_as_by_python(rate: float, deep: bool) -> None:
    """Its numbers are too large to be squared, and then none at all."""

    def network() -> nn.Module:
        middle = [nn.Linear(8, 8)] if deep else [nn.Tanh()]
        return nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 3))

    engines = []
    for capture in (None, "replay"):
        engine = program(rate=rate, network=network, capture=capture)
        engine.run()
        engines.append(engine)
    assert any(not t.isfinite().all() or t.abs().max() > 1e100 for t in state(engines[0]))
    for a, b in zip(*map(state, engines), strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


class Recalibrates(Hook):
    """Replaces a buffer at every tenth iteration, for which steps are captured anew."""

    def iteration_end(self, engine: Engine) -> None:
        if engine.global_step % 10 == 0:
            module = engine.classifier.module
            module.register_buffer("scale", torch.ones((), dtype=torch.float64))


def test_what_is_captured_again_and_again_is_not_said_to_be_uncaptured(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaweight.engines.captured.uncaptured.PATIENCE", 9)
    engine = program(capture="replay", hooks=[Recalibrates()], train_iters=60)
    with caplog.at_level("WARNING"):
        engine.run()
    assert is_captured(engine)
    assert "has captured none" not in caplog.text
