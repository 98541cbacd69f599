"""The memory that ``engine.describe()`` tells of is the memory there is, counted another way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from metaweight.engines.memory import bytes_of_optimizer, bytes_of_record
from metaweight.problems.base.memory import shown_bytes
from metaweight.problems.base.settings import LeftOut
from support.small import Inner, Outer, numbers, problem
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from metaweight import SAMA, Config, Engine, Penalty, Unroll


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (38440, "38.4 kB"), (2_500_000, "2.5 MB")),
        *((10**9, "1 GB"), (12_345_000_000_000, "1.23e+04 GB")),
    ],
)
def test_bytes_are_told_in_units(size: int, text: str) -> None:
    assert shown_bytes(size) == text


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 2).double())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.1),
    "fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True, foreach=True),
    "groups": lambda p: torch.optim.SGD([{"params": p[:2], "momentum": 0.9}, {"params": p[2:]}], 1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.1, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.1),
}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of a saved state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)


def total(tensors: Any) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_an_optimizer_is_foreseen(name: str) -> None:
    module = network()
    optimizer = OPTIMIZERS[name](list(module.parameters()))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    foreseen = bytes_of_optimizer(optimizer)
    assert foreseen is not None
    assert foreseen.is_counted == (name == "Adagrad")  # which has its state from the start
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in module.parameters())
    assert bool(optimizer.state) == (name == "Adagrad")
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    counted = total(tensors_in(optimizer.state_dict()["state"]))
    assert foreseen.bytes == counted
    assert bytes_of_optimizer(optimizer) == (counted, name not in ("SGD",))


def test_what_cannot_be_foreseen_is_not() -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

        def step(self, closure: Any = None) -> None:
            raise AssertionError("took a step")

    given = list(network().parameters())
    assert bytes_of_optimizer(Own(given)) is None
    assert bytes_of_optimizer(torch.optim.LBFGS(given)) is None


def test_hooks_of_all_optimizers_do_not_see_the_estimate() -> None:
    seen: list[Any] = []
    handle = register_optimizer_step_pre_hook(lambda *given: seen.append(1))
    try:
        assert bytes_of_optimizer(torch.optim.Adam(network().parameters())) is not None
    finally:
        handle.remove()
    assert seen == []


class Buffered(nn.Module):
    """A parameter of three numbers and a buffer of two."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("b", torch.zeros(2))

    def forward(self) -> Tensor:
        return self.w


def program(config: Config, optimizer: Any = torch.optim.Adam, **settings: Any) -> Engine:
    module = Buffered()
    low = problem(
        Inner, "inner", config=config, module=module, optimizer=optimizer(module.parameters(), 0.01)
    )
    up = problem(Outer, "outer", start=(0.5,), data=numbers(3.0))
    return Engine.bilevel(up, low, **({"strategy": "cpu", "train_iters": 6} | settings))


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        (Unroll(), torch.optim.Adam),
        (Unroll(), torch.optim.SGD),
        (Unroll(product="one_sided"), torch.optim.Adam),
        (Penalty(steps=2), torch.optim.Adam),
        (SAMA(), torch.optim.Adam),
        ("darts", torch.optim.Adam),
    ],
    ids=["unroll", "unroll of SGD", "one-sided", "penalty", "sama", "darts"],
)
def test_what_a_method_keeps_is_foreseen(method: Any, optimizer: Any) -> None:
    engine = program(Config(type=method, unroll_steps=3), optimizer)
    foreseen = bytes_of_record(engine.inner)
    engine.run()
    trajectory = engine.inner.step_state.trajectory
    kept = 0
    for update in trajectory.updates:
        kept += total(update.start.values()) + total(value for _, value in update.buffers)
        moment = update.moment
        if moment is not None and moment.values:
            kept += total(moment.gradients.values())
            kept += sum(total(tensors_in(state)) for state in moment.states.values())
    assert len(trajectory.updates) == trajectory.recording.updates
    assert foreseen == kept == bytes_of_record(engine.inner)
    assert (foreseen > 0) == (method != "darts" and not isinstance(method, Penalty))


def test_it_is_told_of_each_problem() -> None:
    engine = program(Config(type=Unroll(steps=2), unroll_steps=3), train_iters=3, roll_back=True)
    before = engine.describe().splitlines()
    start = before.index("inner: uppers ['outer'], lowers [], paths []")
    assert before[start + 1 : start + 4] == [
        "  3 parameters, 3 of them trained, in float64 on cpu",
        # 3 numbers in double precision, 2 in single; two moments and a count of 4 bytes.
        "  memory: 32 B of parameters and buffers; 24 B of gradients in a step; state of Adam: "
        "52 B, estimated before its first step; snapshot for roll_back: 84 B",
        "  Unroll goes through 2 of unroll_steps=3 steps, and keeps 216 B of states, batches "
        "(not counted)",
    ]
    assert before[-1] == "run: 3 steps of inner"
    engine.run()
    assert "state of Adam: 52 B; snapshot" in engine.describe()
    darts = program(Config(), train_iters=LeftOut(1), epochs=4).describe()
    assert (
        "FiniteDifference goes through 1 of unroll_steps=1 steps, and keeps batches (not" in darts
    )
    assert "snapshot" not in darts
    assert darts.endswith("run: 4 steps of inner (epochs=4)")
    (outer, *_) = re.findall(r"state of SGD: (.*)", darts)
    assert outer == "0 B, estimated before its first step"


def test_an_optimizer_that_has_not_stepped_may_leave_sizes_open() -> None:
    class Own(torch.optim.Adam):
        pass

    engine = program(Config(type=Unroll(product="one_sided")), Own, roll_back=True)
    text = engine.describe()
    assert (
        "state of Own: unknown before its first step; snapshot for roll_back: at least 32" in text
    )
    assert "keeps states of unknown size, batches (not counted)" in text
    engine.run()
    assert "state of Own: 52 B; snapshot for roll_back: 84 B" in engine.describe()


def test_frozen_parameters_are_told_apart() -> None:
    module = network()
    module[0].requires_grad_(False)  # type: ignore[index]
    frozen = problem(name="a", module=module, data=[torch.ones(4, 5)])
    text = Engine([frozen]).describe()
    assert "32 parameters, 14 of them trained, in float32 and float64 on" in text
