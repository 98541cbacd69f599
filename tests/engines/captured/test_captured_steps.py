"""Steps taken by a graph of operations, against the same steps taken by Python.

In float64, replayed operations are Python's own, one by one: parameters agree to rounding of the
optimizers' rules, some 1e-16 a step; 1e-12 leaves room for sixty.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.engines import ProgressBar, ProgressLine
from metaweight.problems.base.nested import leaves
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
from metaweight.weighting import MetaWeightNet, WeightedClassifier, WeightLearner


def batches(number: int, seed: int, sizes: tuple[int, ...] = (12,)) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(number):
        size = sizes[i % len(sizes)]
        inputs = torch.randn(size, 4, generator=draw, dtype=torch.float64)
        found.append((inputs, torch.randint(3, (size,), generator=draw)))
    return found


def program(
    method: Any = None,
    *,
    steps: int = 1,
    rate: float = 0.1,
    scheduled: bool = False,
    adam: bool = False,
    sizes: tuple[int, ...] = (12,),
    network: Any = None,
    lower_type: Any = WeightedClassifier,
    clipping: float = 0.0,
    hooks: Any = (),
    **settings: Any,
) -> Engine:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)]
    made = nn.Sequential(*layers) if network is None else network()
    net, weights = made.double(), MetaWeightNet(6).double()
    kinds = (torch.optim.SGD, {"momentum": 0.9}) if not adam else (torch.optim.AdamW, {})
    below = kinds[0](net.parameters(), rate, **kinds[1])
    above = torch.optim.Adam(weights.parameters(), 0.01)
    scheduler = (
        torch.optim.lr_scheduler.LambdaLR(below, lambda t: (t + 1) ** -0.5) if scheduled else None
    )
    type_ = {} if method is None else {"type": method}
    lower = lower_type(
        "classifier",
        Config(unroll_steps=steps, gradient_clipping=clipping, **type_),
        weights="weights",
        module=net,
        optimizer=below,
        scheduler=scheduler,
        train_data_loader=batches(7, 1, sizes),
    )
    upper = WeightLearner(
        "weights",
        classifier="classifier",
        module=weights,
        optimizer=above,
        train_data_loader=batches(5, 2),
    )
    given = {"train_iters": 60, "progress": False, "valid_step": 1000, **settings}
    return Engine.bilevel(upper, lower, hooks=hooks, **given)


def state(engine: Engine) -> list[Tensor]:
    return [t.detach().clone() for p in engine.problems for t in p.module.state_dict().values()]


def is_captured(engine: Engine) -> bool:
    recorded = engine._captured._recorded
    return recorded is not None and recorded.is_verified


def assert_same(found: Engine, expected: Engine) -> None:
    assert found.global_step == expected.global_step
    assert [p.count for p in found.problems] == [p.count for p in expected.problems]
    for a, b in zip(state(found), state(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


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


class Broken:
    """A loader that raises an error once, in place of a batch."""

    def __init__(self, given: list[Any], at: int) -> None:
        self._given, self._at = given, at
        self.drawn = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        self.drawn += 1
        if self.drawn == self._at:
            raise OSError("The disk is gone.")
        return self._given[self.drawn % len(self._given)]


@pytest.mark.parametrize("level", ["classifier", "weights"])
@pytest.mark.parametrize("at", [2, 12, 28, 30])
def test_an_error_of_a_loader_comes_where_it_came(level: str, at: int) -> None:
    """At every place of a graph of five iterations, of either level; nothing else is lost."""
    engines = []
    for capture in ({}, {"capture": "replay", "capture_iterations": 5}):
        engine = program(**capture)
        problem = getattr(engine, level)
        problem.set_train_data_loader(Broken(batches(7, 3), at))
        with pytest.raises(OSError, match="The disk is gone") as raised:
            engine.run()
        notes = raised.value.__notes__
        seen = (engine.global_step, engine.run_state.iteration, notes, state(engine))
        engine.run()
        engines.append((seen, engine))
    (expected, plain), (found, captured) = engines
    assert found[:3] == expected[:3]
    for a, b in zip(found[3], expected[3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert is_captured(captured)
    assert_same(captured, plain)


def test_an_exceptional_first_batch_is_not_what_is_captured() -> None:
    """The third batch is the first that is captured, and the only one of its size for long."""
    sizes = (12, 12, 9, *[12] * 40)
    engines = []
    for capture in (None, "replay"):
        engine = program(capture=capture)
        engine.classifier.set_train_data_loader(batches(43, 1, sizes))
        engine.run()
        engines.append(engine)
    assert is_captured(engines[1])
    assert engines[1]._captured._recorded.taken > 30
    assert_same(engines[1], engines[0])


def test_batches_that_are_mostly_left_are_told(caplog: pytest.LogCaptureFixture) -> None:
    engine = program(capture="replay", sizes=(12, 9, 8, 7, 6, 5, 4), train_iters=200)
    with caplog.at_level("WARNING"):
        engine.run()
    assert "left 20 periods to Python" in caplog.text
    assert "let loaders give batches of one size, such as by drop_last=True" in caplog.text
    assert caplog.text.count("to Python, whose batches") == 1


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
@pytest.mark.parametrize("progress", [None, True])
def test_what_only_shows_is_told_of_steps_afterwards(progress: Any, steps: int) -> None:
    engine = program(steps=steps, capture="replay", progress=progress)
    shown = next(
        hook for hook in engine.hooks.hooks if isinstance(hook, (ProgressBar, ProgressLine))
    )
    engine.run()
    assert is_captured(engine)
    losses = {problem.name: float(loss) for problem, loss in shown._losses.items()}
    plain = program(steps=steps, progress=progress)
    expected = next(h for h in plain.hooks.hooks if type(h) is type(shown))
    plain.run()
    assert losses == pytest.approx({p.name: float(v) for p, v in expected._losses.items()})


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
