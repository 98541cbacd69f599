"""How often an upper problem steps follows from whether its gradients agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small import Inner, Outer, Point, numbers
from torch import Tensor

from metaweight import (
    AdaptiveInterval,
    Config,
    ConfigurationError,
    Engine,
    EngineConfig,
    GraphError,
    ImplicitProblem,
)


class Told(ImplicitProblem):
    """An upper problem whose gradients point where a list of signs says."""

    def training_step(self, batch: Any) -> Tensor:
        sign = self.cfg[self.count - 1] if self.count <= len(self.cfg) else self.cfg[-1]
        return (sign * self.module()).sum() + 0.0 * self.inner().sum()


def program(signs: list[float], hook: AdaptiveInterval, **settings: Any) -> Engine:
    def made(kind: Any, name: str, **more: Any) -> Any:
        module = Point(0.0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        return kind(
            name, module=module, optimizer=optimizer, train_data_loader=numbers(1.0), **more
        )

    outer = made(Told, "outer", extra_config=signs)
    inner = made(Inner, "inner", config=Config(**settings))
    graph = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    config = EngineConfig(train_iters=1, strategy="cpu")
    return Engine([outer, inner], config, graph, hooks=[hook])


def intervals(engine: Engine, hook: AdaptiveInterval, steps: int) -> list[int]:
    found = []
    for _ in range(steps):
        engine.train_step()
        found.append(hook.interval)
    return found


def test_gradients_that_disagree_are_asked_for_more_rarely_up_to_a_limit() -> None:
    hook = AdaptiveInterval("outer", most=4, patience=5)
    engine = program([1.0, -1.0] * 50, hook)
    found = intervals(engine, hook, 60)
    # Five upper steps wait and the sixth doubles; six more, each two steps apart, and it doubles.
    assert found == [1] * 5 + [2] * 12 + [4] * 43
    assert engine.outer.count == 6 + 6 + (60 - 18) // 4


def test_gradients_that_agree_are_asked_for_at_every_step() -> None:
    hook = AdaptiveInterval("outer", patience=3)
    engine = program([1.0], hook)
    assert intervals(engine, hook, 30) == [1] * 30
    assert engine.outer.count == 30


def test_the_interval_shrinks_when_gradients_agree_again() -> None:
    hook = AdaptiveInterval("outer", most=2, patience=4, beta=0.5)
    engine = program([1.0, -1.0] * 5 + [1.0], hook)
    found = intervals(engine, hook, 40)
    assert found[5] == 2
    assert found[-1] == 1


def test_loops_of_several_steps_are_counted_whole() -> None:
    hook = AdaptiveInterval("outer", most=2, patience=2)
    engine = program([1.0, -1.0] * 20, hook, unroll_steps=3)
    intervals(engine, hook, 9 + 6 * 4)
    assert hook.interval == 2
    assert engine.outer.count == 3 + 4


def test_the_agreement_is_the_length_of_the_mean_direction() -> None:
    """Against the formula, term by term."""
    hook = AdaptiveInterval("outer", beta=0.8)
    parameter = torch.zeros(5, requires_grad=True)
    gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for gradient in gradients:
        parameter.grad = gradient * 10
        found = hook._agreement([parameter])
    shares = 0.8 ** torch.arange(5, -1, -1)
    units = gradients / gradients.norm(dim=1, keepdim=True)
    expected = (shares[:, None] * units).sum(0).norm() / shares.sum()
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_is_left_out(value: float, first: bool) -> None:
    gradients = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for broken in (False, True):
        hook, parameter = AdaptiveInterval("outer", beta=0.8), torch.zeros(5, requires_grad=True)
        for number, gradient in enumerate(gradients):
            if broken and (number == 2 or (first and not number)):
                parameter.grad = torch.full((5,), value)
                hook._agreement([parameter])
            parameter.grad = gradient
            agreement = hook._agreement([parameter])
        found.append(agreement)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_run_goes_on_from_a_sum_that_is_not_finite() -> None:
    """Earlier versions saved one after a gradient that overflowed."""
    hook = AdaptiveInterval("outer", patience=1, most=2)
    state = {"interval": 1, "steps": 5, "weight": 3.0, "seen": torch.nan}
    hook.load_state_dict({**state, "sum": torch.full((1,), torch.nan)})
    assert intervals(program([1.0, -1.0] * 10, hook), hook, 8)[-1] == 2


def test_goes_on_where_it_was_saved() -> None:
    signs = [1.0, -1.0] * 30
    whole = AdaptiveInterval("outer", patience=4)
    expected = intervals(program(signs, whole), whole, 33)
    first, second = (AdaptiveInterval("outer", patience=4) for _ in range(2))
    engine = program(signs, first)
    found = intervals(engine, first, 13)
    second.load_state_dict(first.state_dict())
    engine.hooks = type(engine.hooks)([second])
    assert found + intervals(engine, second, 20) == expected
    assert expected[12] == 2 and expected[-1] == 4


@pytest.mark.parametrize(
    "settings",
    [{"most": 0}, {"patience": 0}, {"widen_below": 0.8}, {"beta": 1.0}, {"narrow_above": 1.5}],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"AdaptiveInterval\('outer', .* at least 1"):
        AdaptiveInterval("outer", **settings)


def test_a_name_without_lower_problems_is_refused() -> None:
    engine = program([1.0], AdaptiveInterval("inner"))
    with pytest.raises(GraphError, match=r"'inner'\) needs a problem of that name that waits"):
        engine.run()


def test_a_lower_problem_of_several_upper_ones_is_refused() -> None:
    def made(kind: Any, name: str) -> Any:
        module = Point(0.0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        return kind(name, module=module, optimizer=optimizer, train_data_loader=numbers(1.0))

    outer, second, inner = made(Outer, "outer"), made(Outer, "second"), made(Inner, "inner")
    graph = {"u2l": {outer: [inner], second: [inner]}, "l2u": {inner: [outer, second]}}
    config = EngineConfig(train_iters=1, strategy="cpu")
    engine = Engine([outer, second, inner], config, graph, hooks=[AdaptiveInterval("outer")])
    with pytest.raises(GraphError, match="since inner has several upper problems"):
        engine.run()


def test_a_run_that_is_resumed_keeps_its_interval(tmp_path: Any) -> None:
    signs = [1.0, -1.0] * 30
    whole = AdaptiveInterval("outer", patience=4)
    engine = program(signs, whole)
    expected = intervals(engine, whole, 33)
    first, second = (AdaptiveInterval("outer", patience=4) for _ in range(2))
    before = program(signs, first)
    intervals(before, first, 14)
    before.save(tmp_path / "state")
    after = program(signs, second)
    after.load(tmp_path / "state")
    assert intervals(after, second, 19) == expected[14:]
    for found, wanted in zip(after.problems, engine.problems, strict=True):
        assert torch.equal(found.module.w, wanted.module.w)
