"""Graphs that are kept if the memory that is free has place for them."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from metaweight.problems.recording import graph_memory
from support.naive import relative_error
from support.reweighting import Declared, program
from support.small import Inner, numbers, problem
from support.three_levels import chain
from support.unrolled import Setting, build, engine_gradient, naive_gradient
from support.unrolled_declared import gradients_of

from metaweight import Config, Engine, EngineConfig, ImplicitProblem, Unroll

AUTO = Unroll(memory="auto")
FREE = {"kept": 10**9, "rebuilt": 10, "unknown": None}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what is free; how often that was asked is in the list."""
    asked: list[torch.device] = []

    def put(size: int | None) -> list[torch.device]:
        def found(device: torch.device) -> int | None:
            asked.append(device)
            return size

        monkeypatch.setattr(graph_memory, "free_memory", found)
        return asked

    return put


CASES = {
    "momentum": Setting(settings={"lr": 0.1, "momentum": 0.9}, steps=3),
    "adam": Setting(torch.optim.Adam, {"lr": 0.01}, steps=3, accumulation=2, clipping=1.0),
}


@pytest.mark.parametrize("size", FREE)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_naive_program_and_the_other_two(free: Any, case: str, size: str) -> None:
    asked = free(FREE[size])
    setting = CASES[case]
    found = engine_gradient(setting, AUTO)
    assert len(asked) == 1
    assert relative_error(found, naive_gradient(setting)) < 1e-9
    for memory in ("flat", "full"):
        # They differ in the order of sums, over three loops.
        assert relative_error(found, engine_gradient(setting, Unroll(memory=memory))) < 1e-12


def kept(engine: Engine) -> list[bool]:
    """Whether each recorded pass has its graph."""
    updates = engine.lower.step_state.trajectory.updates
    return [step.graph is not None for update in updates for step in update.steps]


@pytest.mark.parametrize("size", FREE)
def test_it_says_what_it_does(free: Any, size: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and before it is decided both."""
    free(FREE[size])
    engine = build(Setting(steps=3, accumulation=2), AUTO)
    graph, pass_ = "a backward pass of the kept graph of each of 3 steps", "3 forward and 3 backw"
    assert f"{graph}, if they fit in memory; otherwise {pass_}" in engine.describe()
    assert "gradient with its graph, to be measured" in engine.describe()
    with caplog.at_level(logging.INFO, "metaweight"):
        for _ in range(5):
            engine.train_step()
    assert set(kept(engine)) == {size == "kept"}
    said = engine.describe()
    assert (graph in said) is (size == "kept")
    assert (pass_ in said) is (size != "kept")
    assert ("graphs (not counted)" in said) is (size == "kept")
    lines = [m for m in caplog.messages if "Unroll(memory='auto') of problem 'lower'" in m]
    words = {
        "kept": "are kept. .* 1 GB of",
        "rebuilt": "built again.* 10 B of",
        "unknown": "an unknown amount of",
    }
    assert len(lines) == 1
    assert re.search(f"the graphs of 6 passes .*{words[size]}.*they may take 50%", lines[0])


def test_the_graphs_of_all_passes_have_to_fit_in_half_of_what_is_free(free: Any) -> None:
    """The first one is in memory when the others are asked for."""

    def keeps(size: int) -> bool:
        free(size)
        engine = build(Setting(steps=3, accumulation=2), AUTO)
        engine.train_step()
        return bool(engine.lower.step_state.trajectory.keeps_graphs)

    low, high = 1, 10**9
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    # Activations of a batch of 8 in a network of 5, 6 and 3, in double precision.
    size, rest = divmod(high, 2 * 5)
    assert rest == 0
    assert 8 * (8 * (6 + 3)) < size < 20_000


def test_several_problems_share_the_half(free: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What was granted to the first of them is not granted again to the second."""

    def keeping(size: int) -> list[bool]:
        free(size)
        config = {"config": Config(type=AUTO, unroll_steps=3), "data": numbers(1.0, 2.0)}
        lowers = [problem(Inner, name, **config) for name in ("first", "second")]
        outer = problem(Both, "outer", data=numbers(3.0))
        edges = {"u2l": {outer: lowers}, "l2u": {lower: [outer] for lower in lowers}}
        engine = Engine([outer, *lowers], EngineConfig(train_iters=3, strategy="cpu"), edges)
        with caplog.at_level(logging.INFO, "metaweight"):
            engine.run()
        return [bool(lower.step_state.trajectory.keeps_graphs) for lower in lowers]

    assert keeping(10**9) == [True, True]
    each = re.search(r"Each takes (\d+) B", caplog.text)
    assert each is not None
    # Two graphs more of each, and the first one's three of the other.
    one, both = 2 * 2 * int(each[1]), 2 * 5 * int(each[1])
    assert keeping(one) == keeping(both - 1) == [True, False]
    assert keeping(one - 1) == [False, False]
    assert keeping(both) == [True, True]
    assert f"with {3 * int(each[1])} B of other problems" in caplog.text


class Both(ImplicitProblem):
    """``½ |w - batch|²`` of both."""

    def training_step(self, batch: Any) -> Any:
        return 0.5 * ((self.first() - batch) ** 2 + (self.second() - batch) ** 2).sum()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_under_autocast_graphs_are_built_again(free: Any, precision: str) -> None:
    """Kept ones are of the precision of training."""
    asked = free(10**9)
    engine = program(
        Declared,
        config=Config(type=AUTO, unroll_steps=2, precision=precision),
        dtype=torch.float32,
    )
    assert "kept graph" not in engine.describe()
    for _ in range(4):
        engine.train_step()
    assert asked == []


def test_above_other_problems_graphs_are_built_again(free: Any) -> None:
    asked = free(10**9)
    found = gradients_of(*chain(AUTO), 2)
    assert asked == []
    assert relative_error(found, gradients_of(*chain(Unroll()), 2)) < 1e-12


def test_a_check_of_the_hypergradient_keeps_the_decision(free: Any) -> None:
    asked = free(10**9)
    engine = build(Setting(steps=3), AUTO)
    for _ in range(3):
        engine.train_step()
    (report,) = engine.check_hypergradient()
    assert report.unrolled is not None
    assert report.unrolled.relative_error < 1e-9
    assert len(asked) == 1
