"""Who steps when: overridden loops, rewired graphs, misspelt overrides and seeds."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from support.small import Chase, Inner, Outer, bilevel, numbers, problem, single
from torch import nn

from metaweight import Config, Engine, EngineConfig, GraphError, ImplicitProblem


def test_one_bilevel_step_by_hand() -> None:
    engine = bilevel()
    engine.run()
    # Inner: w = 0 - 0.1 (0 - 1 + 0.5) = 0.05. Outer: v = w - 3 = -2.95; the mixed derivative of
    # outer * w is 1, so the hypergradient is -v and outer = 0.5 - 0.1 * 2.95.
    assert engine.inner.module.w.item() == pytest.approx(0.05, abs=1e-15)
    assert engine.outer.module.w.item() == pytest.approx(0.5 - 0.1 * 2.95, abs=1e-9)


def test_a_betty_style_train_step_drives_the_leaves() -> None:
    class Betty(Engine):
        def train_step(self) -> None:
            for leaf in self.leaves:
                leaf.step(global_step=self.global_step)

    plain, own = bilevel(steps=5), bilevel(engine=Betty, steps=5)
    plain.run()
    own.run()
    assert own.outer.count == 5
    assert torch.equal(own.outer.module.w, plain.outer.module.w)


def test_a_train_step_may_step_a_leaf_several_times() -> None:
    class Twice(Engine):
        def train_step(self) -> None:
            for _ in range(2):
                self.inner.step()

    engine = bilevel(engine=Twice, steps=3, inner_config=Config(unroll_steps=3))
    engine.run()
    assert (engine.global_step, engine.inner.count, engine.outer.count) == (3, 6, 2)


def test_moments_of_a_problem_come_in_order() -> None:
    moments: list[str] = []

    class Noting(Inner):
        def on_inner_loop_start(self) -> None:
            moments.append("start")

        def grad_callback(self) -> None:
            assert self.module.w.grad is not None
            moments.append("grad")

        def param_callback(self) -> None:
            moments.append("param")

    inner = problem(Noting, "inner", config=Config(unroll_steps=2, gradient_accumulation=2))
    bilevel(inner=inner, steps=5).run()
    loop = ["start", "grad", "grad", "param", "grad", "grad", "param"]
    assert moments == [*loop, "start", "grad"]


def test_the_current_batch_is_kept() -> None:
    engine = bilevel(steps=2)
    engine.run()
    assert engine.inner.cur_batch.item() == 2.0


def three(steps: int) -> tuple[Any, Any, Any, Any]:
    class Side(Inner):
        pass

    class Both(Outer):
        def training_step(self, batch: Any) -> Any:
            return super().training_step(batch) + (self.side() ** 2).sum()

    outer = problem(Both, "outer", start=(0.5,), data=numbers(3.0))
    inner, side = problem(Inner, "inner"), problem(Side, "side")
    dependencies = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    config = EngineConfig(train_iters=steps, strategy="cpu")
    return Engine([outer, inner, side], config, dependencies), outer, inner, side


def test_rewiring_changes_who_waits_and_keeps_counts() -> None:
    engine, outer, inner, side = three(2)
    engine.run()
    assert engine.leaves == [inner, side]
    assert [p.count for p in (outer, inner, side)] == [2, 2, 2]
    rewired = {"u2l": {outer: [side]}, "l2u": {side: [outer]}}
    engine.set_dependency(rewired)
    assert engine.dependencies is rewired
    assert (inner.parents, side.parents, outer.children) == ([], [outer], [side])
    assert outer.paths == [[outer, side, outer]]
    engine.side.step()
    assert [p.count for p in (outer, inner, side)] == [3, 2, 3]
    engine.inner.step()
    assert [p.count for p in (outer, inner, side)] == [3, 3, 3]


def test_a_refused_rewiring_leaves_everything_as_it_was() -> None:
    engine, outer, inner, side = three(1)
    before = engine.dependencies
    with pytest.raises(GraphError, match="no 'l2u' path leads from 'side' back to 'outer'"):
        engine.set_dependency({"u2l": {outer: [side]}})
    assert engine.dependencies is before
    assert outer.paths == [[outer, inner, outer]]
    engine.run()
    assert outer.count == 1


def test_rewiring_to_nothing_makes_every_problem_a_leaf() -> None:
    engine, outer, inner, side = three(1)
    engine.set_dependency(None)
    assert engine.leaves == [outer, inner, side]
    assert outer.paths == []


def test_a_misspelt_override_is_warned_of() -> None:
    class Misspelt(Chase):
        def on_inner_loop_strat(self) -> None: ...

    with pytest.warns(
        UserWarning,
        match="Misspelt.on_inner_loop_strat overrides nothing.*did you mean on_inner_loop_start",
    ):
        problem(Misspelt)


def test_other_methods_are_not_warned_of() -> None:
    class Fine(Chase):
        def on_inner_loop_start(self) -> None: ...

        def accuracy(self) -> None: ...

        def state_dicts_of_old(self) -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem(Fine)


class Noisy(ImplicitProblem):
    """A loss that draws from torch, Python and NumPy."""

    def training_step(self, batch: Any) -> Any:
        noise = torch.rand(()).double() + random.random() + np.random.rand()
        outer = self.outer(batch) if "outer" in self.position.peers else 0
        return ((self.module(batch) - noise - outer) ** 2).mean()


def noisy_parameters(seed: int) -> torch.Tensor:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    data = torch.utils.data.DataLoader(torch.randn(12, 3).double(), batch_size=4, shuffle=True)
    single(
        problem(
            Noisy,
            module=net,
            data=data,
            optimizer=torch.optim.Adam(net.parameters()),
        ),
        steps=7,
    ).run()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def test_equal_seeds_give_bit_equal_parameters_and_others_do_not() -> None:
    first = noisy_parameters(3)
    assert torch.equal(first, noisy_parameters(3))
    assert not torch.equal(first, noisy_parameters(4))
