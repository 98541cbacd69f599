"""Upper parameters that no loss sees together with what is trained below are named in the first
step; every other way of getting a hypergradient is let through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from metaweight.problems.products.dependence import reached_beside
from support.small import Outer, Point, bilevel, numbers, problem
from torch import Tensor, nn

from metaweight import (
    SAMA,
    Config,
    ConjugateGradient,
    Engine,
    EngineConfig,
    FiniteDifference,
    Hypergradient,
    ImplicitProblem,
    LastLayers,
    LossError,
    Neumann,
    Nystrom,
    Penalty,
    Product,
    SampledLayers,
    Status,
    Unroll,
)

METHODS = [
    FiniteDifference(),
    SAMA(),
    Neumann(),
    ConjugateGradient(),
    Nystrom(rank=1),
    Penalty(),
    Unroll(),
    Unroll(memory="full"),
]
MESSAGE = (
    r"Parameters 'unused' of problem 'outer' have no hypergradient \(edge outer -> inner\).*"
    r"requires_grad=False.*Config\(allow_absent_hypergradient=True\) of 'outer'"
)


class Two(nn.Module):
    """A parameter that is used and one whose use varies."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
        self.unused = nn.Parameter(torch.tensor([0.25], dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.used


Extra = Callable[[Any, Tensor], Any]


class Lower(ImplicitProblem):
    """``½ (w - batch)² + used · w``, and what ``cfg`` makes of the upper network and ``w``."""

    def training_step(self, batch: Any) -> Any:
        w = self.module()
        loss = 0.5 * (w - batch).pow(2).sum() + (self.outer() * w).sum()
        return loss if self.cfg is None else loss + self.cfg(self, w)


class Judged(Outer):
    """``½ (w - batch)²``, and what ``cfg`` makes of the own network."""

    def training_step(self, batch: Any) -> Any:
        loss = super().training_step(batch)
        return loss if self.cfg is None else loss + self.cfg(self, batch)


def program(
    method: Any = "darts",
    *,
    extra: Extra | None = None,
    direct: Extra | None = None,
    module: nn.Module | None = None,
    lower: type[Lower] = Lower,
    data: Any = None,
    **config: Any,
) -> Any:
    settings = {k: config.pop(k) for k in ("unroll_steps", "inner") if k in config}
    return bilevel(
        inner=problem(
            lower,
            "inner",
            data=numbers(1.0, 2.0) if data is None else data,
            config=Config(type=method, **settings),
            extra_config=extra,
        ),
        outer=problem(
            Judged,
            "outer",
            module=Two() if module is None else module,
            data=numbers(3.0),
            config=Config(**config),
            extra_config=direct,
        ),
        steps=4,
    )


def unused(problem: Any) -> Tensor:
    return problem.outer.module.unused


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_parameter_nobody_uses_is_named(method: Hypergradient) -> None:
    engine = program(method)
    with pytest.raises(LossError, match=MESSAGE):
        engine.run()
    assert engine.outer.module.unused.grad is None


APART: dict[str, Extra] = {
    "a term of its own": lambda lower, w: unused(lower).pow(2).sum(),
    "in a mean of terms": lambda lower, w: (
        torch.stack([(w * w).sum(), 3 * unused(lower).exp().sum() / 2]).mean() - 1
    ),
    "detached": lambda lower, w: (unused(lower).detach() * w).sum(),
}


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("extra", APART.values(), ids=APART)
def test_a_parameter_apart_from_what_is_trained_is_named(
    method: Hypergradient, extra: Extra
) -> None:
    with pytest.raises(LossError, match=MESSAGE):
        program(method, extra=extra).run()


def test_beside_detached_weights_exact_derivatives_do_not_see_it() -> None:
    with pytest.raises(LossError, match=MESSAGE):
        program("neumann", extra=lambda lower, w: (unused(lower) * w.detach()).sum()).run()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_parameter_of_the_lower_loss_is_learned(method: Hypergradient) -> None:
    engine = program(method, extra=lambda lower, w: (unused(lower) * w * w).sum() / 4)
    engine.run()
    assert unused(engine).item() != 0.25


def test_one_of_the_upper_loss_alone_is_learned() -> None:
    engine = program(direct=lambda outer, batch: outer.module.unused.pow(2).sum())
    engine.run()
    # Four gradient steps of length 0.1 down u².
    assert unused(engine).item() == pytest.approx(0.25 * 0.8**4)


def test_what_is_not_trained_needs_none() -> None:
    frozen = Two()
    frozen.unused.requires_grad_(False)
    program(module=frozen).run()
    engine = program(module=Two())
    left_out = torch.optim.SGD([engine.outer.module.used], lr=0.1)
    engine.outer.set_optimizer(left_out)
    engine.run()


def test_it_may_be_meant() -> None:
    engine = program(allow_absent_hypergradient=True)
    engine.run()
    assert unused(engine).item() == 0.25
    assert engine.outer.module.used.item() != 0.5


class Sometimes(Lower):
    """Uses the parameter on batches of the number ``cfg``."""

    def training_step(self, batch: Any) -> Any:
        w = self.module()
        theta = self.outer() + (unused(self) if float(batch) == self.cfg else 0.0)
        return 0.5 * (w - batch).pow(2).sum() + (theta * w).sum()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("unroll", {"unroll_steps": 2}),
        ("darts", {"inner": True}),
        ("cg", {"inner": True}),
    ],
)
def test_all_steps_that_are_differentiated_count(method: str, settings: Any) -> None:
    """Used in the first of two unrolled steps, or of two micro-batches, alone."""
    if settings.pop("inner", False):
        settings["lower_accumulation"] = 2
    engine = used_at(1.0, method, **settings)
    engine.run()
    assert unused(engine).item() != 0.25


def test_what_is_used_later_alone_is_named_in_the_first_step() -> None:
    with pytest.raises(LossError, match=MESSAGE):
        used_at(2.0, "darts").run()


def used_at(number: float, method: str, lower_accumulation: int = 1, **settings: Any) -> Any:
    return bilevel(
        inner=problem(
            Sometimes,
            "inner",
            data=numbers(1.0, 2.0),
            config=Config(type=method, gradient_accumulation=lower_accumulation, **settings),
            extra_config=number,
        ),
        outer=problem(Judged, "outer", module=Two(), data=numbers(3.0)),
        steps=8,
    )


@pytest.mark.parametrize("number", [3.0, 4.0])
def test_all_micro_batches_of_the_upper_step_count(number: float) -> None:
    engine = program(
        direct=lambda outer, batch: (
            outer.module.unused.pow(2).sum() if float(batch) == number else 0.0
        ),
        gradient_accumulation=2,
    )
    engine.outer.set_train_data_loader(numbers(3.0, 4.0))
    engine.run()
    assert unused(engine).item() != 0.25


class Learning(Lower):
    """The parameter is the logarithm of the learning rate, or the start of loops."""

    def learned_settings(self) -> Any:
        return {"lr": unused(self).exp().squeeze()} if self.cfg is None else {}

    def initial_parameters(self) -> Any:
        return {"w": 2 * unused(self)} if self.cfg else {}


@pytest.mark.parametrize("start", [None, lambda lower, w: 0.0], ids=["settings", "start"])
def test_learned_settings_and_starts_count(start: Any) -> None:
    engine = program("unroll", lower=Learning, extra=start, unroll_steps=2)
    engine.run()
    assert unused(engine).item() != 0.25


class OwnRule(Hypergradient):
    """A rule that no graph shows."""

    def vjp(self, lower: Any, vector: Any, upper_parameters: Any) -> Product:
        return Product([torch.ones_like(p) for p in upper_parameters], Status("OwnRule"))


def test_a_method_of_ones_own_may_know_better() -> None:
    engine = program(OwnRule())
    engine.run()
    assert unused(engine).item() == pytest.approx(0.25 - 0.4)


def test_zeroth_order_methods_see_what_no_graph_shows() -> None:
    program("zero_order").run()


class TwoJudged(ImplicitProblem):
    """The distance of two networks below from each other."""

    def training_step(self, batch: Any) -> Any:
        return 0.5 * (self.inner() - self.second()).pow(2).sum()


class Second(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        w = self.module()
        return 0.5 * (w - batch).pow(2).sum() + self.cfg(self, w)


@pytest.mark.parametrize("uses", [True, False])
def test_one_of_several_edges_is_enough(uses: bool) -> None:
    outer = problem(TwoJudged, "outer", module=Two(), data=numbers(3.0))
    inner = problem(Lower, "inner")

    def extra(lower: Any, w: Tensor) -> Any:
        return ((unused(lower) if uses else lower.outer()) * w).sum()

    second = problem(Second, "second", extra_config=extra)
    edges = {"u2l": {outer: [inner, second]}, "l2u": {inner: [outer], second: [outer]}}
    engine = Engine([outer, inner, second], EngineConfig(train_iters=2, strategy="cpu"), edges)
    if uses:
        engine.run()
        assert outer.module.unused.item() != 0.25
    else:
        with pytest.raises(LossError, match=r"edge outer -> inner or outer -> second"):
            engine.run()


class Middle(ImplicitProblem):
    """A level that learns from the one below, and is judged."""

    def training_step(self, batch: Any) -> Any:
        w = self.module()
        return 0.5 * (w - batch).pow(2).sum() + (self.lowest() * w).sum()


@pytest.mark.parametrize("uses", [True, False])
def test_a_parameter_may_act_through_two_levels(uses: bool) -> None:
    extra = (lambda lower, w: (unused(lower) * w).sum()) if uses else None
    outer = problem(Judged, "outer", module=Two(), data=numbers(3.0))
    middle, lowest = problem(Middle, "inner"), problem(Lower, "lowest", extra_config=extra)
    edges = {"u2l": {outer: [lowest]}, "l2u": {lowest: [middle], middle: [outer]}}
    engine = Engine([outer, middle, lowest], EngineConfig(train_iters=2, strategy="cpu"), edges)
    if uses:
        engine.run()
        assert outer.module.unused.item() != 0.25
    else:
        with pytest.raises(LossError, match=r"'unused'.*edge outer -> lowest"):
            engine.run()


class Layered(ImplicitProblem):
    """``unused`` acts on the first layer alone, ``used`` on both."""

    def training_step(self, batch: Any) -> Any:
        first, last = self.module[0].w, self.module[1].w
        loss = 0.5 * (first + last - batch).pow(2).sum() + (self.outer() * first * last).sum()
        return loss + (unused(self) * first).sum()


class LayeredJudge(ImplicitProblem):
    def training_step(self, batch: Any) -> Any:
        return 0.5 * (self.inner.module[0].w + self.inner.module[1].w - batch).pow(2).sum()


@pytest.mark.parametrize(
    ("choice", "learned"),
    [(None, True), (("0",), True), (("1",), False), (LastLayers(1), False)]
    + [(SampledLayers(1, seed), True) for seed in range(3)],
    ids=str,
)
def test_the_parameters_that_hypergradients_go_through_count(choice: Any, learned: bool) -> None:
    inner = problem(
        Layered,
        "inner",
        module=nn.Sequential(Point(0.5), Point(1.0)),
        config=Config(type="cg", hypergradient_parameters=choice),
    )
    outer = problem(LayeredJudge, "outer", module=Two(), data=numbers(3.0), lr=1e-3)
    engine = bilevel(inner=inner, outer=outer, steps=4)
    if not learned:
        with pytest.raises(LossError, match=MESSAGE):
            engine.run()
    else:
        engine.run()


def test_an_edge_that_nothing_passes_is_warned_of() -> None:
    class Apart(Lower):
        def training_step(self, batch: Any) -> Any:
            return 0.5 * (self.module() - batch).pow(2).sum()

    engine = program(
        lower=Apart, module=Point(0.5), direct=lambda outer, batch: outer.module.w.pow(2).sum()
    )
    with pytest.warns(UserWarning, match="'inner' does not depend on the parameters .*'outer'"):
        engine.run()
    with pytest.raises(LossError, match=r"Parameters 'w' of problem 'outer'"):
        program(lower=Apart, module=Point(0.5)).run()


def test_a_loss_that_sees_no_lower_problem_is_told_so() -> None:
    """The lower loss does use the parameters; the upper one is to blame."""
    seen = torch.ones(1, dtype=torch.float64, requires_grad=True)

    class Blind(Outer):
        def training_step(self, batch: Any) -> Any:
            return (seen * batch).sum()

    engine = bilevel(outer=problem(Blind, "outer", start=(0.5,), data=numbers(3.0)))
    words = (
        r"the loss of problem 'outer' depends neither on them nor on what is trained in 'inner'.*"
        r"Use self\.inner in its training_step, without detaching"
    )
    with (
        pytest.warns(UserWarning, match="does not depend on the parameters of 'inner' below it"),
        pytest.raises(LossError, match=words),
    ):
        engine.train_step()


def test_new_dependencies_are_looked_at_again() -> None:
    engine = program(extra=lambda lower, w: (unused(lower) * w).sum())
    engine.run()
    engine.inner.cfg = None
    engine.train_step()
    engine.set_dependency(engine.dependencies)
    with pytest.raises(LossError, match=MESSAGE):
        engine.train_step()


def test_a_resumed_run_is_not_asked_again(tmp_path: Path) -> None:
    """The step used it before the run was saved, and none does afterwards."""
    engine = used_at(1.0, "unroll", unroll_steps=2)
    engine.train_step()
    engine.save(tmp_path / "saved.pt")
    again = used_at(1.0, "unroll", unroll_steps=2)
    again.load(tmp_path / "saved.pt")
    again.run()


def test_terms_of_a_loss() -> None:
    a, b, w = (torch.tensor(x, requires_grad=True) for x in (0.5, 0.7, 0.9))
    for loss in (
        (a * w + b) / 2 - 1,
        torch.cat([(a * w).reshape(1), b.reshape(1)]).sum(),
        -(b.expand(3).mean() - (a + w).exp()),
        2 * b.clone() - 3 * torch.stack([a * w, b]).mean(0),
    ):
        assert reached_beside(loss, [a, b], [w]) == {a}
    assert reached_beside((a + b).exp() * w, [a, b], [w]) == {a, b}
    assert reached_beside(1 / (a + w) + b, [a, b], [w]) == {a}
    # Of a graph without any weight nothing can be said.
    assert reached_beside(a * b, [a, b], [w]) == {a, b}
    assert reached_beside(a, [a, b], [w]) == {a}
    assert reached_beside(a.detach(), [a, b], [w]) == set()
