"""One problem over another in a line: the same program as by its edges."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from support.small import Inner, Outer, numbers, problem

from metaweight import ConfigurationError, Engine, EngineConfig, GraphError, Hook


def outer() -> Any:
    return problem(Outer, "outer", start=(0.5,), data=numbers(3.0))


def inner(name: str = "inner") -> Any:
    return problem(Inner, name, data=numbers(1.0, 2.0))


def test_it_is_the_program_with_both_edges_written_out() -> None:
    up, low = outer(), inner()
    config = EngineConfig(train_iters=7, strategy="cpu", roll_back=True)
    Engine([up, low], config, {"u2l": {up: [low]}, "l2u": {low: [up]}}).run()
    for given in ({"config": config}, {"train_iters": 7, "strategy": "cpu", "roll_back": True}):
        upper, lower = outer(), inner()
        engine = Engine.bilevel(upper, lower, **given)
        assert engine.config == config
        assert engine.problems == [upper, lower]
        engine.run()
        assert torch.equal(upper.module.w, up.module.w)
        assert torch.equal(lower.module.w, low.module.w)


@pytest.mark.parametrize("several", [list, tuple])
def test_one_problem_stands_over_several(several: Any) -> None:
    upper, lowers = outer(), several([inner(), inner("second")])
    engine = Engine.bilevel(upper, lowers, strategy="cpu")
    edges = {"u2l": {upper: list(lowers)}, "l2u": {lower: [upper] for lower in lowers}}
    assert engine.dependencies == edges
    assert engine.leaves == list(lowers)
    assert [[p.name for p in path] for path in upper.paths] == [
        ["outer", "inner", "outer"],
        ["outer", "second", "outer"],
    ]


def test_it_makes_an_engine_of_the_class_with_its_hooks_and_default_settings() -> None:
    class Own(Engine):
        pass

    hook = Hook()
    engine = Own.bilevel(outer(), inner(), hooks=[hook])
    assert type(engine) is Own
    assert hook in engine.hooks.hooks
    assert engine.config == EngineConfig()


def test_every_setting_of_a_configuration_can_be_given_by_its_name() -> None:
    # None may be the name of a parameter of the method itself.
    own = {"upper", "lower", "config", "env", "hooks"}
    assert not own & {field.name for field in fields(EngineConfig)}


def test_settings_are_given_once() -> None:
    message = r"Engine.bilevel\(config=..., train_iters=...\) gives settings twice; write all"
    with pytest.raises(ConfigurationError, match=message):
        Engine.bilevel(outer(), inner(), config=EngineConfig(), train_iters=3)


@pytest.mark.parametrize(
    ("upper", "lower", "message"),
    [
        (None, inner, r"bilevel\(upper=None\) is no problem; give objects of classes derived"),
        (outer, "inner", r"bilevel\(lower='inner'\) is no problem"),
        (outer, {}, r"bilevel\(lower=\{\}\) is no problem"),
        (outer, [], r"bilevel\(lower=\[\]\) has no lower problem; give one or several"),
    ],
)
def test_what_is_no_problem_is_refused(upper: Any, lower: Any, message: str) -> None:
    made = [each() if callable(each) else each for each in (upper, lower)]
    with pytest.raises(GraphError, match=message):
        Engine.bilevel(*made)


def test_the_same_problem_twice_is_refused() -> None:
    lower = inner()
    with pytest.raises(GraphError, match="problems has 'inner' twice"):
        Engine.bilevel(outer(), [lower, lower])
