"""Ramps at steps computed by hand, and in a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.semi_supervised import run, student
from torch import nn

from metaweight import ConfigurationError, Engine, EngineConfig, ImplicitProblem
from metaweight.consistency import PiModel, Ramp, RampHook, ramp

WARM_UP = 200_000


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0067379470),
        (1, 0.0067382839),
        (5000, 0.0086247009),
        (100_000, 0.2865047969),
        (WARM_UP, 1.0),
        (10 * WARM_UP, 1.0),
    ],
)
def test_sigmoid_by_hand(step: int, expected: float) -> None:
    assert ramp("sigmoid", step, WARM_UP) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("weight", "printed"), [(1, 0.0086247), (20, 0.1724940), (0.3, 0.0025874), (100, 0.8624701)]
)
def test_weights_a_run_of_5000_steps_reaches_with_a_ramp_of_200_000(
    weight: float, printed: float
) -> None:
    assert Ramp(weight, end=WARM_UP).value(5000, 5000) == pytest.approx(printed, abs=1e-7)


def test_linear_and_constant() -> None:
    lee = Ramp(3.0, "linear", end=600, begin=100)
    assert [lee.value(t, 1) for t in (0, 99, 100, 350, 600, 900)] == [0, 0, 0, 1.5, 3, 3]
    share = Ramp(2.0, "linear", end=0.5, begin=0.25)
    assert [share.value(t, 100) for t in (24, 25, 30, 50, 99)] == pytest.approx([0, 0, 0.4, 2, 2])
    assert [Ramp(4.0, "constant", begin=0.5, end=1.0).value(t, 10) for t in (4, 5)] == [0, 4]


def test_a_hook_sets_the_weight_of_every_step() -> None:
    seen = []

    class Noting(RampHook):
        def after_step(self, engine: Any, problem: Any, result: Any) -> None:
            seen.append(problem.consistency_weight)

    learner = student(PiModel())
    run(learner, 6, Noting("student", Ramp(2.0, "linear", end=0.5)))
    assert seen == pytest.approx([0, 2 / 3, 4 / 3, 2, 2, 2])


def test_a_ramp_that_never_rises_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"200000 steps, but the run has 3.*0.0067"):
        run(student(PiModel()), 3, RampHook("student", Ramp(end=WARM_UP)))


def test_a_hook_refuses_other_problems() -> None:
    class Plain(ImplicitProblem):
        def training_step(self, batch: Any) -> Any:
            return self.module(batch).sum()

    net = nn.Linear(1, 1)
    plain = Plain(
        "plain",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_data_loader=[torch.ones(1, 1)],
    )
    for asked in ("plain", "student"):
        engine = Engine(
            [plain],
            EngineConfig(train_iters=1),
            {"u2l": {}, "l2u": {}},
            hooks=[RampHook(asked, Ramp())],
        )
        with pytest.raises(ConfigurationError, match=f"{asked!r}, which is no SemiSup.*none"):
            engine.run()
