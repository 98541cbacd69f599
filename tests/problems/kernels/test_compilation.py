"""Compiled modules: the same numbers, and no compiled pass where it cannot be differentiated twice.

Compiled by ``aot_eager``, which traces and cuts graphs as the compilers that generate code do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from metaweight.problems.kernels import compilation
from metaweight.problems.kernels.compilation import is_compiled
from support.naive import relative_error
from support.reweighting import Declared, Plain, program
from torch import nn

from metaweight import (
    Config,
    ConfigurationError,
    ConjugateGradient,
    FiniteDifference,
    LastLayers,
    Neumann,
    Reweighting,
    Unroll,
)

COMPILE = {"backend": "aot_eager"}
METHODS: dict[str, tuple[type, Any]] = {
    "central": (Declared, Reweighting()),
    "one-sided": (Declared, Reweighting(derivative="one_sided")),
    "forward mode": (Declared, Reweighting(derivative="forward_mode")),
    "darts": (Plain, FiniteDifference()),
    "unroll": (Plain, Unroll()),
    "unroll, graphs kept": (Plain, Unroll(memory="full")),
    "unroll by differences": (Declared, Unroll(product="finite_difference")),
    "neumann": (Plain, Neumann(alpha=0.01)),
    "cg": (Plain, ConjugateGradient(damping=10.0)),
}


def run(kind: type, method: Any, **settings: Any) -> list[torch.Tensor]:
    engine = program(kind, config=Config(type=method, **settings))
    for _ in range(3):
        engine.train_step()
    problems = (engine.classifier, engine.judge)
    return [t.detach() for p in problems for t in p.module.state_dict().values()]


@pytest.mark.parametrize("name", METHODS)
def test_trains_as_uncompiled(name: str) -> None:
    """To rounding in float64, which differences of length 1e-4 blow up to less than 1e-7."""
    kind, method = METHODS[name]
    torch._dynamo.reset()
    found, expected = run(kind, method, compile=COMPILE), run(kind, method)
    assert relative_error(found, expected) < 1e-7


@pytest.mark.parametrize(
    "method",
    ["one-sided", *(pytest.param(m, marks=pytest.mark.slow) for m in ("central", "darts"))],
)
def test_layers_chosen_of_a_compiled_module(method: str) -> None:
    kind, type_ = METHODS[method]
    settings: Any = {"hypergradient_parameters": LastLayers(1)}
    torch._dynamo.reset()
    found, expected = run(kind, type_, compile=COMPILE, **settings), run(kind, type_, **settings)
    assert relative_error(found, expected) < 1e-7


def test_training_passes_are_compiled() -> None:
    traced: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    engine = program(config=Config(compile={"backend": backend}))
    assert is_compiled(engine.classifier.module)
    assert not is_compiled(engine.judge.module)
    assert next(iter(engine.classifier.module.state_dict())) == "0.weight"
    engine.train_step()
    assert traced
    number = len(traced)
    for _ in range(3):
        engine.train_step()
    assert len(traced) == number


def test_a_module_set_later_is_compiled_too() -> None:
    engine = program(config=Config(compile=COMPILE))
    other = nn.Sequential(nn.Linear(6, 4)).double()
    engine.classifier.set_module(other)
    assert is_compiled(other)


def test_a_module_the_user_compiled_can_be_differentiated_twice() -> None:
    torch._dynamo.reset()
    engine, expected = (program(Plain, config=Config(type=Unroll())) for _ in range(2))
    engine.classifier.module.compile(backend="aot_eager")
    for _ in range(2):
        engine.train_step()
        expected.train_step()
    found = list(engine.judge.module.parameters())
    assert relative_error(found, list(expected.judge.module.parameters())) < 1e-9


@pytest.mark.parametrize("value", ["max-autotune", 1, {2: 3}])
def test_other_settings_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"compile=.*True, False, or a dictionary"):
        Config(compile=value)


@pytest.mark.parametrize("known", [True, False])
def test_nothing_is_compiled_inside_and_everything_again_after_it(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what torch tells itself, and with its own context where that is not known."""
    assert compilation.eager_stance() is not None
    if not known:
        monkeypatch.setattr(compilation, "eager_stance", lambda: None)
    traced: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x.sin() + 1, backend=backend)
    with pytest.raises(KeyError, match="inside"), compilation.uncompiled():
        with compilation.uncompiled():
            compiled(torch.ones(2))
        compiled(torch.ones(2))
        raise KeyError("inside")
    assert traced == []
    compiled(torch.ones(2))
    assert len(traced) == 1


def test_a_stance_that_was_taken_before_is_taken_again() -> None:
    torch._dynamo.reset()
    with torch.compiler.set_stance("fail_on_recompile"):
        with compilation.uncompiled():
            pass
        compiled = torch.compile(lambda x: x.cos(), backend="eager")
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            compiled(torch.ones(2))
