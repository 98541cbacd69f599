"""Programs of all kinds, saved after every step and resumed by fresh objects, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.programs import Options, metaweight, three_levels, two_leaves
from support.resuming import (
    CLASSES,
    FEATURES,
    Judge,
    Unrolled,
    assert_resumes_exactly,
    everything,
    loader,
    network,
    seed_all,
    semi_supervised,
    two_levels,
)
from torch import Tensor, nn

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, Unroll
from metaweight.consistency import (
    FixMatch,
    MeanTeacher,
    RampHook,
    UnlabelledWeightNet,
    learn_gate,
    learn_threshold,
)
from metaweight.ensembles import EnsembleHook, OnlineEnsemble
from metaweight.noise import OnlineConfidentLearning, OnlineConfidentLearningHook, WithCriterion


@pytest.mark.parametrize("buffers", ["copy", "ema", "own", "none"])
def test_mean_teacher(buffers: str, tmp_path: Path) -> None:
    assert_resumes_exactly(semi_supervised(MeanTeacher, buffers), tmp_path)


@pytest.mark.parametrize(
    "buffers",
    ["ema", "own", *(pytest.param(name, marks=pytest.mark.slow) for name in ("copy", "none"))],
)
def test_mean_teacher_amid_an_accumulation(buffers: str, tmp_path: Path) -> None:
    build = semi_supervised(MeanTeacher, buffers, gradient_accumulation=3)
    assert_resumes_exactly(build, tmp_path)


@pytest.mark.parametrize("warm_up", ["mean_teacher", "ict", "bias_corrected"])
def test_averages_amid_their_warm_up(warm_up: str, tmp_path: Path) -> None:
    build = semi_supervised(MeanTeacher, warm_up=warm_up, gradient_accumulation=2)
    assert_resumes_exactly(build, tmp_path, [3])


def test_ramps_go_on_where_they_were(tmp_path: Path) -> None:
    seen: dict[int, float] = {}

    class Noted(RampHook):
        def after_step(self, engine: Any, problem: Any, result: Any) -> None:
            seen[problem.count] = problem.consistency_weight

    build = semi_supervised(FixMatch, ramp=Noted)
    settings: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_step": 1, "keep_last": None}
    build(**settings, logger_type="none").run()
    # exp(-5 (1 - u)²) with u = t / (0.8 · 9), from t = 0.
    by_hand = [3 * math.exp(-5 * max(0.0, 1 - t / 7.2) ** 2) for t in range(9)]
    assert list(seen.values()) == pytest.approx(by_hand)
    seen.clear()
    build(logger_type="none").run(resume=tmp_path / "step-0000000004.ckpt")
    assert list(seen) == [5, 6, 7, 8, 9]
    assert list(seen.values()) == pytest.approx(by_hand[4:])


GATES = {
    "thresholds": lambda *given, **more: learn_threshold(*given, classes=CLASSES, **more),
    "weights": lambda *given, **more: learn_gate(
        *given[:2], UnlabelledWeightNet().double(), *given[2:], **more
    ),
}


@pytest.mark.parametrize("learn", GATES.values(), ids=GATES)
def test_learned_gates_amid_a_ramp(learn: Any, tmp_path: Path) -> None:
    build = semi_supervised(FixMatch, learn=learn)
    assert_resumes_exactly(build, tmp_path, [4])


def test_fix_match(tmp_path: Path) -> None:
    assert_resumes_exactly(semi_supervised(FixMatch), tmp_path, [1, 4, 5])


class Confident(ImplicitProblem):
    def training_step(self, batch: Any) -> Tensor:
        loss: Tensor = self.module.criterion(self.module(batch[0]), batch[1])
        return loss


def test_online_confident_learning(tmp_path: Path) -> None:
    def build(**more: Any) -> Engine:
        module = WithCriterion(network(), OnlineConfidentLearning(CLASSES, thresholds="ema"))
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        lower = Confident("lower", Config(log_step=1), module, optimizer, None, loader(12, 1))
        settings = {"train_iters": 7, "strategy": "cpu", "logger_type": "csv"}
        hooks = [OnlineConfidentLearningHook()]
        return Engine([lower], EngineConfig(**(settings | more)), hooks=hooks)

    assert_resumes_exactly(build, tmp_path)


@pytest.mark.parametrize("action", ["resample", "reweight"])
def test_an_ensemble_that_changes_the_data(action: Any, tmp_path: Path) -> None:
    def build(**more: Any) -> Engine:
        members = [network(seed) for seed in (3, 4)]
        hook = EnsembleHook(
            OnlineEnsemble(members), "lower", action=action, every=2, low=0.1, high=0.8
        )

        class Chosen(ImplicitProblem):
            def training_step(self, batch: Any) -> Tensor:
                losses = F.cross_entropy(self.module(batch[0]), batch[1], reduction="none")
                return (losses if hook.weights is None else losses * hook.weights[batch[2]]).mean()

        net = network()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        data = loader(20, 1, with_indices=True)
        lower = Chosen("lower", Config(log_step=1), net, optimizer, None, data)
        settings = {"train_iters": 9, "strategy": "cpu", "logger_type": "csv"}
        return Engine([lower], EngineConfig(**(settings | more)), hooks=[hook])

    assert_resumes_exactly(build, tmp_path)


@pytest.mark.parametrize(
    ("program", "kind", "roll_back"),
    [
        # All pairs.
        (three_levels, "darts", False),
        (three_levels, "unroll", True),
        (two_leaves, "darts", True),
        (two_leaves, "unroll", False),
        pytest.param(three_levels, "darts", True, marks=pytest.mark.slow),
        pytest.param(three_levels, "unroll", False, marks=pytest.mark.slow),
        pytest.param(two_leaves, "darts", False, marks=pytest.mark.slow),
        pytest.param(two_leaves, "unroll", True, marks=pytest.mark.slow),
    ],
)
def test_levels_above_levels_and_several_leaves(
    program: Any, kind: str, roll_back: bool, tmp_path: Path
) -> None:
    def build(**more: Any) -> Engine:
        options = Options(
            inner={"type": kind, "unroll_steps": 2, "gradient_accumulation": 2},
            outer={"gradient_accumulation": 2},
            engine={"roll_back": roll_back, **more},
        )
        engine: Engine = program(metaweight(), options, 17)
        return engine

    assert_resumes_exactly(build, tmp_path, [3, 5, 6, 10])


class Start(nn.Module):
    """Where inner loops start, and how fast they go."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CLASSES, FEATURES))
        self.log_lr = nn.Parameter(torch.tensor(-2.0))


class Task(Unrolled):
    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(F.dropout(self.module(batch[0]), 0.2), batch[1])

    def initial_parameters(self) -> dict[str, Tensor]:
        return {"weight": self.upper.module.weight}

    def learned_settings(self) -> dict[str, Tensor]:
        return {"lr": self.upper.module.log_lr.exp()}


def test_learned_starts_and_learning_rates(tmp_path: Path) -> None:
    def build(**more: Any) -> Engine:
        net, start = nn.Linear(FEATURES, CLASSES, bias=False), Start()
        sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.5)
        config = Config(unroll_steps=3, log_step=1)
        low = Task("lower", config, net, sgd, train_data_loader=loader(20, 1))
        adam = torch.optim.Adam(start.parameters(), 0.05)
        top = Judge("upper", None, start, adam, train_data_loader=loader(8, 2, 4))
        settings = {"train_iters": 10, "strategy": "cpu", "logger_type": "csv"}
        edges = {"u2l": {top: [low]}, "l2u": {low: [top]}}
        return Engine([top, low], EngineConfig(**(settings | more)), edges)

    assert_resumes_exactly(build, tmp_path)


def test_kept_graphs_are_built_anew(tmp_path: Path) -> None:
    # No file can hold them. What is computed without is the same derivative, to rounding.
    build = two_levels(Unrolled, lower={"unroll_steps": 3, "type": Unroll(memory="full")})
    seed_all(0)
    whole = build(checkpoint_dir=tmp_path, checkpoint_step=1, keep_last=None, logger_type="none")
    whole.run()
    resumed = build(logger_type="none")
    resumed.run(resume=tmp_path / "step-0000000005.ckpt")
    for name in ("lower", "upper"):
        a, b = getattr(whole, name).module, getattr(resumed, name).module
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    build = two_levels(
        early_stopping=True, early_stopping_tolerance=1, valid_step=1, train_iters=40
    )
    seed_all(0)
    first = build(checkpoint_dir=tmp_path / "saved", log_dir=tmp_path / "logs")
    first.run()
    assert first.run_state.stopped is not None
    again = build(checkpoint_dir=tmp_path / "saved", log_dir=tmp_path / "logs")
    again.run(resume="auto")
    assert again.global_step == first.global_step < 40
    assert everything(again)["run"] == everything(first)["run"]
