"""Steps taken by a graph of operations, against the same steps taken by Python.

In float64, replayed operations are Python's own, one by one: parameters agree to rounding of the
optimizers' rules, some 1e-16 a step; 1e-12 leaves room for sixty.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines import ProgressBar, ProgressLine
from metaweight.problems.base.nested import leaves
from support.captured import assert_same, batches, is_captured, program, state
from support.devices import DEVICES
from torch import Tensor, nn

from metaweight import (
    MASOBA,
    SABA,
    SOBA,
    Config,
    ConfigurationError,
    Engine,
    FiniteDifference,
    Hook,
    HypergradientError,
    ImplicitProblem,
    Neumann,
    Reweighting,
    Unroll,
)
from metaweight.weighting import WeightedClassifier

PROGRAMS: dict[str, dict[str, Any]] = {
    "native": {},
    "one-sided": {"method": Reweighting("one_sided")},
    "forward mode": {"method": Reweighting("forward_mode")},
    "darts": {"method": FiniteDifference()},
    "three lower steps": {"steps": 3, "train_iters": 61},
    "unrolled": {"method": Unroll(), "steps": 3},
    "unrolled, graphs kept": {"method": Unroll(memory="full"), "steps": 2},
    "unrolled, AdamW": {"method": Unroll(), "steps": 2, "adam": True, "rate": 0.01},
    "soba": {"method": SOBA(lr=0.05)},
    "masoba": {"method": MASOBA(lr=0.05)},
    "neumann": {"method": Neumann(alpha=0.05, iterations=3)},
    "a rate that falls": {"scheduled": True},
    "unrolled at a rate that falls": {"method": Unroll(), "steps": 2, "scheduled": True},
    "batches of two sizes": {"sizes": (12, 12, 12, 9)},
    "clipped": {"clipping": 0.05},
    "batch norm": {
        "network": lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    },
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_replayed_steps_are_those_of_python(name: str) -> None:
    engines = []
    for capture in (None, "replay"):
        engine = program(capture=capture, **PROGRAMS[name])
        engine.run()
        engines.append(engine)
    assert is_captured(engines[1])
    assert_same(engines[1], engines[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["native", "unrolled at a rate that falls", "soba"])
def test_a_card_replays_what_the_cpu_does(name: str, device: str) -> None:
    """To 1e-9: a card sums in another order, which a central difference enlarges."""
    captured = program(capture="replay", device=device, **PROGRAMS[name])
    captured.run()
    plain = program(device="cpu", **PROGRAMS[name])
    plain.run()
    assert is_captured(captured)
    for a, b in zip(state(captured), state(plain), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["native", "soba", "a rate that falls"])
def test_several_iterations_are_one_graph(name: str, steps: int) -> None:
    """Those left over at the end, and before a validation, are taken by Python."""
    settings = {**PROGRAMS[name], "steps": steps, "train_iters": 67, "valid_step": 32}
    captured = program(capture="replay", capture_iterations=5, **settings)
    plain = program(**settings)
    captured.run()
    plain.run()
    assert is_captured(captured)
    assert captured._captured._recorded.taken >= (6 if steps == 1 else 5)
    assert len(captured._captured._recorded.form) == (5 if steps == 1 else 6)
    assert_same(captured, plain)
    again = captured._captured._recorded
    captured.run()
    plain.run()
    assert captured._captured._recorded is again
    assert_same(captured, plain)


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_no_number_of_iterations_is_refused(number: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"EngineConfig\(capture_iterations="):
        program(capture="replay", capture_iterations=number)


def test_iterations_of_steps_that_are_not_captured_are_refused() -> None:
    said = (
        r"capture_iterations=8\) is of steps that are captured; give capture='compile' or 'replay'"
    )
    with pytest.raises(ConfigurationError, match=said):
        program(capture_iterations=8)


def test_losses_are_logged_as_ever(tmp_path: Path) -> None:
    logs = []
    for capture in (None, "replay"):
        folder = tmp_path / str(capture)
        engine = program(steps=2, capture=capture, logger_type="jsonl", log_dir=folder)
        for problem in engine.problems:
            assert problem.config.log_step
        engine.run()
        (file,) = folder.rglob("*.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        logs.append([{k: v for k, v in line.items() if k != "time"} for line in lines])
    assert len(logs[0]) == len(logs[1]) > 0
    for ours, theirs in zip(logs[1], logs[0], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            same = pytest.approx(theirs[key], rel=1e-9) if isinstance(value, float) else theirs[key]
            assert value == same


class Validated(Engine):
    def validation(self) -> dict[str, float]:
        self.seen = [*getattr(self, "seen", []), self.global_step]
        return {"loss": 1.0}


def test_validations_come_when_they_are_due() -> None:
    engine = program(steps=3, capture="replay", valid_step=10)
    engine.__class__ = Validated
    engine.run()
    assert engine.seen == [10, 20, 30, 40, 50, 60]


def test_a_run_resumes_inside(tmp_path: Path) -> None:
    whole = program(SOBA(lr=0.05), capture="replay")
    whole.run()
    first = program(SOBA(lr=0.05), capture="replay", train_iters=31)
    first.run()
    first.save(tmp_path / "saved")
    second = program(SOBA(lr=0.05), capture="replay")
    second.run(resume=tmp_path / "saved")
    assert is_captured(second)
    assert_same(second, whole)


def test_what_changes_between_runs_is_captured_again() -> None:
    engines = []
    for capture in (None, "replay"):
        engine = program(capture=capture, train_iters=20)
        engine.run()
        engine.classifier.optimizer.param_groups[0]["momentum"] = 0.5
        engine.classifier.module[0].weight.requires_grad_(False)
        engine.run()
        engines.append(engine)
    assert is_captured(engines[1])
    assert_same(engines[1], engines[0])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [ProgressBar, ProgressLine])
def test_what_only_shows_is_told_of_steps_afterwards(kind: Any, steps: int) -> None:
    losses = []
    for capture in ("replay", None):
        # A second between two questions for the time, after which a line's losses are kept anew.
        hook = kind() if kind is ProgressBar else kind(clock=map(float, count()).__next__)
        engine = program(steps=steps, capture=capture, hooks=[hook])
        engine.run()
        assert capture is None or is_captured(engine)
        losses.append({problem.name: float(loss) for problem, loss in hook._losses.items()})
    assert losses[0] == pytest.approx(losses[1])


class Watches(Hook):
    def after_step(self, engine: Any, problem: Any, result: Any) -> None:
        pass


class Reads(WeightedClassifier):
    def sample_losses(self, batch: Any) -> Any:
        losses = super().sample_losses(batch)
        return losses if float(losses.detach().sum()) > 0 else 2 * losses


class Counts(WeightedClassifier):
    """A loss that depends on how often it was computed."""

    calls = 0

    def sample_losses(self, batch: Any) -> Any:
        self.calls += 1
        return super().sample_losses(batch) * (1 + self.calls % 7)


class Calls(WeightedClassifier):
    def param_callback(self) -> None:
        pass


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a hook": ({"hooks": [Watches()]}, r"the hook Watches looks at each step; leave that out"),
    "a number that is read": ({"lower_type": Reads}, r"reads a number from a tensor, by .item"),
    "a loss that counts": (
        {"lower_type": Counts},
        r"ends elsewhere than Python does|end elsewhere",
    ),
    "a callback": ({"lower_type": Calls}, r"'classifier' has a param_callback of its own"),
    "dropout": (
        {"network": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))},
        r"draws random numbers \(aten.*\), since passes",
    ),
    "a table by number": (
        {"method": SABA(lr=0.05)},
        r"'classifier' is differentiated by SABA, of which that is not known",
    ),
    "a rolled back step": ({"roll_back": True}, r"roll_back=True takes steps again"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    settings, said = REFUSED[name]
    engine = program(capture="replay", **settings)
    with pytest.raises(ConfigurationError, match=said):
        engine.run()
    assert all(t.isfinite().all() for t in state(engine))


def test_another_word_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"capture='graph'\) is not one of replay, compile"
    ):
        program(capture="graph")


class Poisoned:
    """A loader that makes a method's state no number as it draws its fourteenth batch."""

    def __init__(self, given: list[Any]) -> None:
        self._given = given
        self.states: Any = None
        self.drawn = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        self.drawn += 1
        if self.drawn == 14:
            for tensor in leaves(self.states.kept):
                tensor.fill_(torch.nan)
        return self._given[self.drawn % len(self._given)]


def test_a_product_that_diverges_is_told() -> None:
    engine = program(SOBA(lr=0.05), capture="replay", train_iters=11)
    engine.run()
    loader = Poisoned(batches(7, 1))
    engine.classifier.set_train_data_loader(loader)
    loader.states = engine.classifier.step_state.method_states
    engine.train_iters = 20
    with pytest.raises(HypergradientError, match=r"diverged or is not finite in iteration \d+, wh"):
        engine.run()


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(3, dtype=torch.float64))


class Inner(ImplicitProblem):
    def training_step(self, batch: Tensor) -> Any:
        loss = ((self.module.x - self.outer.module.x * batch) ** 2).sum()
        return {"loss": loss, "largest": self.module.x.detach().abs().max()}


class Outer(ImplicitProblem):
    def training_step(self, batch: Tensor) -> Tensor:
        return ((self.inner.module.x - batch) ** 2).sum()


def points(capture: str | None) -> Engine:
    modules = {"inner": Point(), "outer": Point()}
    inner, outer = (
        kind(
            name,
            Config(type="darts"),
            module=modules[name],
            optimizer=torch.optim.SGD(modules[name].parameters(), 0.1),
            train_data_loader=[torch.full((3,), v, dtype=torch.float64) for v in (0.5, 1.0)],
        )
        for name, kind in (("inner", Inner), ("outer", Outer))
    )
    return Engine.bilevel(outer, inner, train_iters=12, progress=False, capture=capture)


def test_problems_of_a_users_own() -> None:
    captured, plain = points("replay"), points(None)
    captured.run()
    plain.run()
    assert is_captured(captured)
    assert_same(captured, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "unrolled at a rate that falls", "soba"])
def test_compiled_steps_are_those_of_python(name: str) -> None:
    """Kernels fuse and round otherwise, which a central difference of length 0.01 enlarges a
    hundredfold."""
    engines = []
    for capture in (None, "compile"):
        engine = program(capture=capture, **PROGRAMS[name])
        engine.run()
        engines.append(engine)
    assert is_captured(engines[1])
    for a, b in zip(state(engines[1]), state(engines[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
